"""Checkpoints of a run, the thread that writes them, and the history that goes with them."""
