"""The sub-commands of ``shards/build.py`` for corpora that lie in a folder as they were downloaded."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.corpus import (
    AnnotationColumns,
    Corpus,
    read_audformat,
    read_cmu_mosei,
    read_crema_d,
    read_emobox,
    read_emodb,
    read_esd,
    read_iemocap,
    read_meld,
    read_msp_podcast,
    read_ravdess,
    read_tess,
)
from ccts_dist.corpus.open.crema_d import CATEGORIES_FROM
from ccts_dist.corpus.open.esd import LANGUAGES
from ccts_dist.shards.build.hf_command import parse_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderCorpus:
    """A corpus that is read from its folder."""

    name: str
    words: str
    """For ``--help``."""

    root: str
    """Contents of the folder, for ``--help``."""

    read: Callable[[argparse.Namespace], Corpus]
    add_options: Callable[[argparse.ArgumentParser], object] = lambda _: None
    can_resplit: bool = False
    """True if it takes ``--by-speaker``."""


def _folds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="deal the speakers to splits Fold1 to FoldK (default: three of five to Train, one to Development, one to "
        "Test, in the order of their names)",
    )


def _msp_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="msp-podcast", help="of another corpus of this layout (default: %(default)s)")
    parser.add_argument(
        "--shares",
        action="store_true",
        help="add the shares of the raters who chose each category (A.share) and each grade (valence.7.share)",
    )


def _ravdess_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--song", action="store_true", help="take the songs too")
    _folds(parser)


def _crema_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--categories",
        choices=CATEGORIES_FROM,
        default="acted",
        help="the emotion that was acted, or the most frequent vote of the listeners (default: %(default)s)",
    )
    _folds(parser)


def _emobox_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--audio", type=Path, required=True, metavar="DIR", help="folder that holds downloads/")


def _audformat_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", action="append", default=[], metavar="NAME=TABLE.COLUMN",
        help="a column with ratings; as often as needed. A * stands for any characters but dots: several columns of a "
        "table are raters, whose mean is the label",
    )  # fmt: skip
    for name in ("category", "text", "speaker", "gender"):
        parser.add_argument(f"--{name}", metavar="TABLE.COLUMN", help=f"with the {name}")
    parser.add_argument(
        "--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="default: minimum and maximum of the schemes"
    )


def _read_audformat(args: argparse.Namespace) -> Corpus:
    columns = AnnotationColumns(
        targets=parse_targets(args.target),
        category=args.category,
        text=args.text,
        speaker=args.speaker,
        gender=args.gender,
    )
    scale = None if args.scale is None else (args.scale[0], args.scale[1])
    return read_audformat(args.root, columns=columns, scale=scale, release=args.release)


def _esd_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--language", choices=LANGUAGES, help="take only this language (default: both)")
    _folds(parser)


FOLDER_CORPORA = (
    FolderCorpus(
        name="msp-podcast",
        words="MSP-Podcast, any release, and corpora in its layout",
        root="folder with Audios/, Labels/ and perhaps Transcripts/",
        read=lambda args: read_msp_podcast(args.root, name=args.name, release=args.release, shares=args.shares),
        add_options=_msp_options,
    ),
    FolderCorpus(
        name="iemocap",
        words="IEMOCAP, a split per session",
        root="folder with Session1/ to Session5/",
        read=lambda args: read_iemocap(args.root, release=args.release),
    ),
    FolderCorpus(
        name="ravdess",
        words="RAVDESS, splits by actor",
        root="folder with Actor_01/ to Actor_24/",
        read=lambda args: read_ravdess(args.root, release=args.release, song=args.song, num_folds=args.folds),
        add_options=_ravdess_options,
    ),
    FolderCorpus(
        name="crema-d",
        words="CREMA-D with its votes, splits by actor",
        root="folder with AudioWAV/ and perhaps processedResults/",
        read=lambda args: read_crema_d(
            args.root, release=args.release, categories=args.categories, num_folds=args.folds
        ),
        add_options=_crema_options,
    ),
    FolderCorpus(
        name="emodb",
        words="EmoDB, splits by speaker",
        root="folder with wav/",
        read=lambda args: read_emodb(args.root, release=args.release, num_folds=args.folds),
        add_options=_folds,
    ),
    FolderCorpus(
        name="esd",
        words="ESD, splits by speaker",
        root="folder with 0001/ to 0020/",
        read=lambda args: read_esd(
            args.root,
            release=args.release,
            languages=(args.language,) if args.language else LANGUAGES,
            num_folds=args.folds,
        ),
        add_options=_esd_options,
    ),
    FolderCorpus(
        name="emobox",
        words="a fold of EmoBox's partitions of many corpora",
        root="fold with NAME_train_fold_1.jsonl and so on, such as data/emodb/fold_1",
        read=lambda args: read_emobox(args.root, audio=args.audio, release=args.release),
        add_options=_emobox_options,
    ),
    FolderCorpus(
        name="audformat",
        words="a database in audformat, audEERING's form of annotated media",
        root="folder with db.yaml",
        read=_read_audformat,
        add_options=_audformat_options,
        can_resplit=True,
    ),
    FolderCorpus(
        name="tess",
        words="TESS, a split per speaker",
        root="folder with OAF_angry/ and so on",
        read=lambda args: read_tess(args.root, release=args.release),
    ),
    FolderCorpus(
        name="meld",
        words="MELD, its own splits; audio extracted beside the clips",
        root="folder with train_sent_emo.csv, train_splits/ and so on",
        read=lambda args: read_meld(args.root, release=args.release),
    ),
    FolderCorpus(
        name="cmu-mosei",
        words="CMU-MOSEI, cut by its table of segments",
        root="folder with CMU_MOSEI_Labels.csv, Audio/ and perhaps Transcript/",
        read=lambda args: read_cmu_mosei(args.root, release=args.release),
    ),
)
