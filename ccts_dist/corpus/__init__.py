"""Corpora on disk. One file and one read function per corpus; ``spoken`` makes the demo corpus by speech synthesis."""

from ccts_dist.corpus.audformat.reader import AnnotationColumns, read_audformat
from ccts_dist.corpus.corpus import Corpus
from ccts_dist.corpus.demo.spoken import SpokenConfig, make_spoken_corpus, plan_spoken_corpus, read_spoken_corpus
from ccts_dist.corpus.iemocap import read_iemocap
from ccts_dist.corpus.manifest import read_manifest
from ccts_dist.corpus.msp_podcast.reader import read_msp_podcast
from ccts_dist.corpus.open.cmu_mosei import read_cmu_mosei
from ccts_dist.corpus.open.crema_d import read_crema_d
from ccts_dist.corpus.open.emobox import read_emobox
from ccts_dist.corpus.open.emodb import read_emodb
from ccts_dist.corpus.open.esd import read_esd
from ccts_dist.corpus.open.meld import read_meld
from ccts_dist.corpus.open.ravdess import read_ravdess
from ccts_dist.corpus.open.tess import read_tess

__all__ = [
    "AnnotationColumns",
    "Corpus",
    "SpokenConfig",
    "make_spoken_corpus",
    "plan_spoken_corpus",
    "read_audformat",
    "read_cmu_mosei",
    "read_crema_d",
    "read_emobox",
    "read_emodb",
    "read_esd",
    "read_iemocap",
    "read_manifest",
    "read_meld",
    "read_msp_podcast",
    "read_ravdess",
    "read_spoken_corpus",
    "read_tess",
]
