"""A run file to start from, written for a shard set."""
