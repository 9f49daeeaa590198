"""Plans: which utterances form which shard, from sizes alone; and the parts of a job array."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.make_shard import MakeSettings, write_shard
from ccts_dist.shards.build.plan_shards import (
    Part,
    PlannedShard,
    SourceFile,
    estimate_bytes,
    look_at,
    parse_part,
    plan_shards,
)

TAR_END = 10_240


def utterance(number: int, *, split: str = "Train", audio: str = "") -> Utterance:
    name = audio or f"{number}.wav"
    return Utterance(key=f"key {number}", audio=Path(name), split=split, labels={}, scale=(1.0, 7.0))


def plan(
    sizes: list[int | None], shard_bytes: int, *, suffix: str = ".wav", changed_ns: int = 0
) -> tuple[PlannedShard, ...]:
    """A plan of files of so many bytes, None for a missing one."""
    given = [utterance(number, audio=f"{number}{suffix}") for number in range(len(sizes))]

    def look(path: Path) -> SourceFile | None:
        size = sizes[int(path.stem)]
        return None if size is None else SourceFile(size_bytes=size, changed_ns=changed_ns)

    splits = {"Train": given}
    return plan_shards(splits, targets=(), root=None, shard_bytes=shard_bytes, settings="s", look=look)


def numbers(shards: tuple[PlannedShard, ...]) -> list[list[int]]:
    return [[int(one.key.removeprefix("key ")) for one in shard.utterances] for shard in shards]


def test_an_estimate_by_hand():
    (shard,) = plan([32_044], 10**9)
    # Header 512, audio 32,044 + 125 + 512 in blocks of 512; header 512, a record of under 480 bytes and 32 digits.
    assert shard.estimated_bytes == 512 + 64 * 512 + 512 + 512


def test_a_shard_is_closed_before_the_utterance_that_would_not_fit():
    one = plan([32_044], 10**9)[0].estimated_bytes
    assert numbers(plan([32_044] * 5, 2 * one)) == [[0, 1], [2, 3], [4]]
    assert numbers(plan([32_044] * 5, 2 * one - 1)) == [[0], [1], [2], [3], [4]]
    assert numbers(plan([32_044, 10 * one, 32_044], 2 * one)) == [[0], [1], [2]]


def test_compressed_files_count_for_what_they_become_and_missing_ones_for_nothing():
    wave, mp3, opus = (plan([10_000], 10**9, suffix=suffix)[0].estimated_bytes for suffix in (".wav", ".MP3", ".opus"))
    assert wave < mp3 < opus
    assert mp3 > 5 * 10_000
    assert plan([None], 10**9)[0].estimated_bytes == 0


def test_part_of_a_file_counts_for_its_seconds_of_16_bit_audio_and_at_most_for_the_file():
    first = Utterance(key="k", audio=Path("x.wav"), split="s", labels={}, scale=(0.0, 1.0), segment_s=(10.0, 12.0))
    whole, part = dataclasses.replace(first, segment_s=None), SourceFile(size_bytes=1_000_000, changed_ns=0)
    # 2 s of 32,000 bytes, a 256th more, 512 of FLAC's headers: 64,762, in blocks 65,024; two headers, one block of JSON
    assert estimate_bytes(first, b"", part) == 1024 + 65_024 + 512
    small = SourceFile(size_bytes=1_000, changed_ns=0)
    assert estimate_bytes(first, b"", small) == estimate_bytes(whole, b"", small)


def test_splits_have_shards_of_their_own_in_the_order_they_come():
    splits = {"b": [utterance(0, split="b"), utterance(1, split="b")], "a": [utterance(2, split="a")]}
    planned = plan_shards(splits, targets=(), root=None, shard_bytes=1, settings="s", look=lambda _: None)
    assert [shard.name for shard in planned] == ["b-000000.tar", "a-000000.tar"]
    planned = plan_shards(
        splits,
        targets=(),
        root=None,
        shard_bytes=1,
        settings="s",
        look=lambda _: SourceFile(size_bytes=9, changed_ns=0),
    )
    assert [shard.name for shard in planned] == ["b-000000.tar", "b-000001.tar", "a-000000.tar"]


@given(st.lists(st.none() | st.integers(0, 200_000), max_size=40), st.integers(1, 500_000))
def test_every_utterance_is_planned_once_in_order_and_no_shard_of_several_is_above_the_limit(
    sizes: list[int | None], shard_bytes: int
):
    planned = plan(sizes, shard_bytes)
    assert [number for shard in numbers(planned) for number in shard] == list(range(len(sizes)))
    for shard in planned:
        assert shard.estimated_bytes <= shard_bytes or len(shard.utterances) == 1 or shard.estimated_bytes == 0


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=12), st.integers(1, 300_000))
def test_a_plan_and_its_content_do_not_depend_on_times_but_the_digest_of_sources_does(
    sizes: list[int], shard_bytes: int
):
    before, after = plan(sizes, shard_bytes), plan(sizes, shard_bytes, changed_ns=1)
    assert [dataclasses.replace(shard, source_digest="") for shard in before] == [
        dataclasses.replace(shard, source_digest="") for shard in after
    ]
    assert all(old.source_digest != new.source_digest for old, new in zip(before, after, strict=True))


@given(st.integers(1, 9), st.integers(0, 30))
def test_the_parts_of_a_plan_are_the_plan(of: int, count: int):
    planned = plan([10_000] * count, 1)
    parts = [Part(number=number, of=of).own(planned) for number in range(1, of + 1)]
    assert sorted(shard.name for part in parts for shard in part) == [shard.name for shard in planned]
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("kind", ["noise", "loud noise", "silence", "tone"])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_shard_of_16_khz_audio_is_not_larger_than_estimated(tmp_path: Path, kind: str, suffix: str):
    source = np.random.default_rng(0)
    given = []
    for number, num_samples in enumerate((400, 401, 4_095, 50_000)):
        wave = {
            "noise": source.integers(-300, 300, num_samples),
            "loud noise": source.integers(-32_768, 32_768, num_samples),
            "silence": np.zeros(num_samples),
            "tone": 9000 * np.sin(np.arange(num_samples) / 7),
        }[kind].astype(np.int16)
        soundfile.write(tmp_path / f"{number}{suffix}", wave, 16_000, subtype="PCM_16")
        key = "長" * 60 if number == 0 else f"ü {number}"  # 540 bytes once escaped: an extended header
        given.append(dataclasses.replace(utterance(number), key=key, audio=tmp_path / f"{number}{suffix}"))
    (planned,) = plan_shards(
        {"Train": given}, targets=DIMENSIONS, root=tmp_path, shard_bytes=10**9, settings="s", look=look_at
    )
    settings = MakeSettings(root=tmp_path, targets=DIMENSIONS, max_duration_s=60.0, num_threads=1)
    made = write_shard(tmp_path / planned.name, planned, settings, lambda _: None)
    assert made.num_utterances == 4
    assert made.size_bytes <= planned.estimated_bytes + TAR_END


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", "1.5/4", "", " 1/4", "1/4\n"])
def test_what_is_no_part_is_refused(text: str):
    with pytest.raises(ConfigError, match="must be I/N with I from 1 to N"):
        parse_part(text)


def test_a_part_is_read_as_it_is_written():
    assert str(parse_part("3/8")) == "3/8"
    assert parse_part("8/8") == Part(number=8, of=8)
