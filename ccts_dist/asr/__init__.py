"""Words for corpora that have none, by a speech recogniser."""
