"""The inputs of a run, opened and checked once each: shards, tokenizer, teacher, gate, loaders, cached features."""
