"""Words for corpora that have none, by a speech recognizer."""
