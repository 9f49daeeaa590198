"""The spoken corpus of the demo: phrases, voices and the labels that they carry."""
