"""Commands that make shard sets and look after them."""
