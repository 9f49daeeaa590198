"""The demo's study: rows over seeds, intervals, tables, pictures."""
