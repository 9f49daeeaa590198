"""Where the files of a shard set lie: a folder, or an address whose files are fetched into a bounded cache."""
