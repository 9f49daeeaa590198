"""A trained student at work on any number of recordings: found, decoded ahead, heard, written down in their order."""
