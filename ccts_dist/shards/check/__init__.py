"""Finding damage in shard sets and teacher caches."""
