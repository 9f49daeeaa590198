"""A shard set, a teacher cache and a merged set that are sound, for damage to be planted in copies of them."""

from collections.abc import Callable
from pathlib import Path

from ccts_dist.records import Rejected
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.check.check import check_shard_set
from ccts_dist.shards.merge import merge_shards
from tests.helpers.examples.shard_examples import build_example, example_cache, make_utterances
from tests.helpers.faults import damage

SHARD = "Train-000000.tar"
KEYS = [f"MSP/ü {number}.wav" for number in (0, 1, 2, 4, 5, 6)]
"""Of that shard; next to it there are one of 3 utterances in Train, and one in Development."""


def build_sound(folder: Path) -> Path:
    """Make ``shards``, ``cache`` and ``merged`` in a folder."""
    build_shards(folder / "shards", folder)
    shard_set = open_shard_set(folder / "shards")
    assert tuple(shard_set.rows(SHARD).keys) == tuple(KEYS)
    merge_shards(shard_set, example_cache(folder / "cache", shard_set), folder / "merged")
    return folder


def build_shards(out: Path, folder: Path, change: Callable[[Path, int], object] | None = None) -> None:
    """Twelve utterances, and a thirteenth that was rejected.

    Args:
        change: called with every audio file and its number, to make the corpus another.
    """
    utterances = make_utterances(folder)
    for number, utterance in enumerate(utterances):
        if change is not None:
            change(utterance.audio, number)
    rejected = Rejected(key="gone", reason="the audio file is missing", source="gone.wav")
    build_example([rejected, *utterances], out, folder, shard_bytes=40_000, max_rejected=0.5)


def build_other_shards(out: Path, folder: Path) -> None:
    """The same corpus with other audio: same keys, same names of shards."""
    build_shards(out, folder, lambda audio, number: damage.flip(audio, 3000 + number, bit=6))


def findings(root: str | Path, teacher: str | Path | None = None, *, fast: bool = False) -> list[str]:
    """What the checker states, line by line."""
    return [str(finding) for finding in check_shard_set(root, teacher, fast=fast)]
