"""Faults: heartbeat, watchdog, stop requests, skipped steps, storage errors."""
