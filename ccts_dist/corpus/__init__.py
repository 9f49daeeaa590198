"""Corpora on disk. One file and one read function per corpus; ``spoken`` makes the demo corpus by speech synthesis."""

from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.iemocap import read_iemocap
from ccts_dist.corpus.manifest import read_manifest
from ccts_dist.corpus.msp_podcast import read_msp_podcast
from ccts_dist.corpus.spoken import SpokenConfig, make_spoken_corpus, plan_spoken_corpus, read_spoken_corpus

__all__ = [
    "Corpus",
    "SpokenConfig",
    "make_spoken_corpus",
    "plan_spoken_corpus",
    "read_iemocap",
    "read_manifest",
    "read_msp_podcast",
    "read_spoken_corpus",
]
