"""The shard format: tars, records, index, sealed documents."""
