"""Stores of a shard set's files: a folder, or an address whose files are fetched into a bounded cache."""
