"""Parts of speech encoders: feature encoders, filter banks, masks, and encoders that transformers lacks."""
