"""What a run trains on, opened and checked once each: shards, tokenizer, teacher, gate, loaders, cached features."""
