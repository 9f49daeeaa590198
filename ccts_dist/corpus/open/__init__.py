"""Corpora that anyone can get: one reader per corpus, in the layout that its download has."""
