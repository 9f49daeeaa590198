"""Sound shard sets whose scores would state less than they seem to: shared speakers, constant labels, clipped audio."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.audio.clipping import is_clipped
from ccts_dist.errors import run_main
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.set_warnings import set_warnings
from shards import build as build_command
from shards import check as check_command
from shards import info as info_command

Row = tuple[str, str | None, tuple[float, float, float]]


def make(folder: Path, rows: Sequence[Row], *, samples: Sequence[np.ndarray] = ()) -> Path:
    """A set of utterances by split, speaker and labels."""
    utterances = []
    for number, (split, speaker, labels) in enumerate(rows):
        audio = folder / f"{number}.wav"
        wave = samples[number] if samples else np.full(1_600, 0.1)
        soundfile.write(audio, wave, 16_000, subtype="PCM_16")
        values = {name: label for name, label in zip(DIMENSIONS, labels, strict=True) if not np.isnan(label)}
        utterances.append(
            Utterance(key=f"u{number}", audio=audio, split=split, labels=values, scale=(1.0, 7.0), speaker=speaker)
        )
    build_shard_set(
        utterances, folder / "set", corpus="c", release="1", scale=(1.0, 7.0), targets=DIMENSIONS, root=folder
    )
    return folder / "set"


def varied(split: str, *speakers: str | None) -> list[Row]:
    return [(split, speaker, (0.1 * number, 0.2, 0.9 - 0.1 * number)) for number, speaker in enumerate(speakers)]


def test_speakers_of_two_splits_are_named_and_unknown_ones_are_not_the_same(tmp_path: Path):
    rows = varied("Train", "a", "b", "c", "d", None) + varied("Test1", "b", "d", "e", None) + varied("Test2", "f", "g")
    shared = [line for line in set_warnings(open_shard_set(make(tmp_path, rows))) if "share" in line]
    assert shared == [
        "warning: Train and Test1 share 2 of 4 and 3 speakers ('b', 'd'): a score on one after training on the other "
        "is not that of new speakers"
    ]


def test_many_shared_speakers_are_counted_and_some_of_them_named(tmp_path: Path):
    both = [f"s{number}" for number in range(5)]
    rows = varied("Train", *both) + varied("Development", *both)
    (line, *_) = set_warnings(open_shard_set(make(tmp_path, rows)))
    assert "Train and Development share 5 of 5 and 5 speakers ('s0', 's1', 's2', ...)" in line


def test_labels_that_never_vary_are_named_by_target_and_split(tmp_path: Path):
    rows: list[Row] = [
        ("Train", None, (0.1, 0.5, np.nan)), ("Train", None, (0.2, 0.5, 0.7)),
        ("Test1", None, (0.3, 0.5, np.nan)), ("Test1", None, (0.3, 0.5, np.nan)),
    ]  # fmt: skip
    assert sorted(set_warnings(open_shard_set(make(tmp_path, rows)))) == [
        "warning: every label of 'activation' in Test1 is 0.3 (on 0..1): its CCC is 0 whatever is predicted",
        "warning: every label of 'valence' in Train, Test1 is 0.5 (on 0..1): its CCC is 0 whatever is predicted",
    ]


@pytest.mark.parametrize(
    ("low", "high", "warns"), [(0.0, 4 / 6, True), (0.3, 1.0, True), (0.1, 0.8, False), (0.24, 0.76, False)]
)
def test_ratings_that_leave_an_end_of_the_scale_empty_are_named(tmp_path: Path, low, high, warns):
    rows: list[Row] = [("Train", None, (label, high, low)) for label in np.linspace(low, high, 17)]
    found = [line for line in set_warnings(open_shard_set(make(tmp_path, rows))) if "scale" in line]
    wanted = f"warning: all ratings are from {1 + 6 * low:g} to {1 + 6 * high:g}, on a scale from 1 to 7: "
    assert [line.startswith(wanted) for line in found] == [True] * warns


def test_few_ratings_warn_of_no_scale(tmp_path: Path):
    rows: list[Row] = [("Train", None, (label, 0.5, 0.4)) for label in np.linspace(0.4, 0.5, 16)]
    assert not [line for line in set_warnings(open_shard_set(make(tmp_path, rows))) if "scale" in line]


def test_share_of_samples_at_full_scale_above_which_a_recording_is_clipped():
    ends = np.array([32_767, -32_768, -32_767, 0, 0], np.int16)
    assert is_clipped(ends)  # 3 of 5
    assert not is_clipped(np.concatenate([ends, np.zeros(1, np.int16)]))  # half
    assert not is_clipped(np.full(9, 32_766, np.int16))


def test_clipped_recordings_are_counted_in_the_manifest_and_reported_by_build_info_and_check(tmp_path: Path, capsys):
    square = np.sign(np.sin(np.arange(1_600)))
    quiet = 0.1 * square
    for number, wave in enumerate((square, quiet, square)):
        soundfile.write(tmp_path / f"{number}.wav", wave, 16_000, subtype="PCM_16")
    table = tmp_path / "table.csv"
    lines = [f"k{n},{n}.wav,{split},s,{n + 1}" for n, split in enumerate(("Train", "Train", "Test1"))]
    table.write_text("\n".join(["key,audio,split,speaker,valence", *lines]) + "\n")
    out = str(tmp_path / "set")
    wanted = {
        "warning: 2 recordings have more than 50% of their samples at full scale: they are clipped, or of another "
        "scale than their format states",
        "warning: Train and Test1 share 1 of 1 and 1 speakers ('s'): a score on one after training on the other is not "
        "that of new speakers",
    }
    assert run_main(build_command.main, ["manifest", str(table), "--out", out, "--processes", "1"]) == 0
    assert wanted <= {*capsys.readouterr().err.splitlines()}
    assert open_shard_set(out).manifest.counts["clipped"] == 2
    assert run_main(info_command.main, [out]) == 0
    assert wanted <= {*capsys.readouterr().out.splitlines()}
    assert run_main(info_command.main, [out, "--json"]) == 0
    assert wanted == {*json.loads(capsys.readouterr().out)["warnings"]}
    assert run_main(check_command.main, [out, "--fast"]) == 0
    assert wanted <= {*capsys.readouterr().err.splitlines()}


def test_manifest_of_a_set_without_clipped_recordings_is_as_it_was(tmp_path: Path):
    counts = open_shard_set(make(tmp_path, varied("Train", "a", "b"))).manifest.counts
    assert sorted(counts) == ["mixed_down", "rejected", "resampled"]
