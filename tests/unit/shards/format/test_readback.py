"""Index rows come from the written tar, which must hold what it should and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from ccts_dist.errors import ShardError
from ccts_dist.records import Utterance
from ccts_dist.shards.format.readback import read_back
from ccts_dist.shards.format.schema import utterance_to_json
from ccts_dist.shards.format.tars import crc32_of, write_tar

FLAC = b"fLaC" + bytes(14) + ((16_000 << 44) | 400).to_bytes(8, "big")


def record(key: str, **labels: float) -> bytes:
    utterance = Utterance(
        key=key, audio=Path("a.wav"), split="Train", labels=labels, scale=(1.0, 7.0), speaker="s", gender=None
    )
    return utterance_to_json(utterance, targets=("valence",), num_samples=400, source="a.wav")


def write(path: Path, *samples: tuple[str, dict[str, bytes]]) -> Path:
    write_tar(path / "a.tar", samples)
    return path / "a.tar"


def read(path: Path):
    return read_back(path, targets=("valence",), members=("flac", "json"))


def test_rows_state_what_lies_in_the_tar(tmp_path: Path):
    path = write(
        tmp_path, ("a", {"flac": FLAC, "json": record("a", valence=0.5)}), ("b", {"flac": FLAC, "json": record("b")})
    )
    rows, data = read(path), path.read_bytes()
    assert (rows.shard, rows.keys, rows.speakers, rows.genders) == ("a.tar", ("a", "b"), ("s", "s"), (None, None))
    np.testing.assert_array_equal(rows.num_samples, [400, 400])
    np.testing.assert_array_equal(rows.labels["valence"], [0.5, np.nan])
    for member, wanted in (("flac", FLAC), ("json", record("b"))):
        places = rows.members[member]
        assert data[places.offset[1] : places.offset[1] + places.size[1]] == wanted
        assert places.crc32[1] == crc32_of(wanted)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([("a", {"flac": FLAC})], r"a\.tar: 1 members, not 2 each"),
        ([("a", {"flac": FLAC, "json": record("b")})], r"a\.tar: 'a' states it is 'b'"),
        ([("a", {"flac": FLAC, "json": record("a")})] * 2, r"a\.tar: a key comes twice"),
        ([("a", {"json": record("a"), "pickle": b""})], r"met file 'a\.json' where flac of 'a' must be"),
        ([("a", {"flac": FLAC}), ("b", {"json": record("b")})], r"met file 'b\.json' where json of 'a' must be"),
        ([("a b", {"flac": FLAC, "json": record("a b")})], "'a b' is no escaped key"),
    ],
)
def test_what_has_no_place_in_a_shard_is_refused(tmp_path: Path, samples: list, words: str):
    with pytest.raises(ShardError, match=words):
        read(write(tmp_path, *samples))
