"""One optimizer step: micro-batches, rounds of forward passes, metrics."""
