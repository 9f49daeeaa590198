"""A trained student at work on any number of recordings: found, decoded ahead, processed, written down in their
order."""
