"""Making a shard set: planned, built in parts and processes, written to a folder or a store, joined and finished."""
