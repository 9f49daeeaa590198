"""Files that are whole or not there, digests, strict JSON, tensors read in pieces."""
