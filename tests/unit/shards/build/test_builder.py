"""The builder: equal input, equal bytes; what cannot be used is counted; an interrupted build goes on."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from ccts_dist.errors import ConfigError, CorpusError, ShardError
from ccts_dist.records import Rejected, Utterance
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.build.output import BUILDING
from ccts_dist.shards.build.validate_input import same_files
from ccts_dist.shards.check.check import check_shard_set
from tests.helpers.examples.shard_examples import build_example, make_utterances, write_noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_utterances(folder)
    return folder


@pytest.fixture
def utterances(corpus: Path) -> list[Utterance]:
    return make_utterances(corpus)


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a set; what begins with a dot is none of it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


class StoppedError(Exception):
    """Stands for a kill after so many utterances."""


def stop_after(count: int):
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if done >= count:
            raise StoppedError

    return progress


def keys_by_shard(root: Path) -> dict[str, list[str]]:
    shard_set = open_shard_set(root)
    return {shard.name: list(shard_set.rows(shard.name).keys) for shard in shard_set.manifest.shards}


def test_equal_input_gives_equal_bytes_wherever_the_corpus_and_however_many_threads(corpus: Path, tmp_path: Path):
    build_example(make_utterances(corpus), tmp_path / "a", corpus, num_threads=1)
    build_example(make_utterances(tmp_path / "moved"), tmp_path / "b", tmp_path / "moved", num_threads=4)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert set(files_of(tmp_path / "a")) >= {"manifest.json", "index.arrow", "rejected.jsonl", "Train-000000.tar"}
    assert [path.name for path in (tmp_path / "a").iterdir() if path.is_dir()] == []


def test_each_utterance_comes_once_in_the_order_given_within_its_split(
    corpus: Path, utterances: list[Utterance], tmp_path: Path
):
    summary = build_example(utterances, tmp_path / "s", corpus)
    for split in ("Train", "Development"):
        keys = [key for name, keys in keys_by_shard(tmp_path / "s").items() if name.startswith(split) for key in keys]
        assert keys == [utterance.key for utterance in utterances if utterance.split == split]
    assert {name: totals.num_utterances for name, totals in summary.splits.items()} == {"Train": 9, "Development": 3}
    samples = sum(1600 + 40 * number for number in range(12) if number % 4 != 3)
    assert summary.splits["Train"].hours == pytest.approx(samples / 16_000 / 3600)
    assert check_shard_set(tmp_path / "s") == []


def test_a_shard_is_closed_once_it_holds_enough_bytes(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    build_example(utterances, tmp_path / "small", corpus, shard_bytes=1)
    assert [len(keys) for keys in keys_by_shard(tmp_path / "small").values()] == [1] * 12
    build_example(utterances, tmp_path / "large", corpus, shard_bytes=10**9)
    assert list(keys_by_shard(tmp_path / "large")) == ["Train-000000.tar", "Development-000000.tar"]
    build_example(utterances, tmp_path / "s", corpus)
    for shard in open_shard_set(tmp_path / "s").manifest.shards[:-1]:
        assert shard.size_bytes < 12_000 + 5000 + 20_480  # the bound, one utterance more, and tar's own padding


def test_sources_are_named_relative_to_the_corpus(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    build_example(utterances, tmp_path / "s", corpus)
    shard_set = open_shard_set(tmp_path / "s")
    path = shard_set.path("Train-000000.tar")
    assert json.loads(shard_set.member(shard_set.rows(path.name), 0, "json"))["source"] == "Audios/0.wav"
    build_example(utterances, tmp_path / "t", corpus / "elsewhere")
    shard_set = open_shard_set(tmp_path / "t")
    assert json.loads(shard_set.member(shard_set.rows(path.name), 0, "json"))["source"] == "0.wav"


def bad_utterances(folder: Path, good: Utterance) -> list[Utterance | Rejected]:
    noise = folder / "noise.wav"
    noise.write_bytes(b"noise")

    def bad(key: str, **changes: object) -> Utterance:
        return dataclasses.replace(good, key=key, **changes)

    return [
        bad("noise", audio=noise),
        bad("gone", audio=folder / "gone.wav"),
        bad("short", audio=write_noise(folder / "short.wav", 300)),
        bad("long", audio=write_noise(folder / "long.wav", 20_000)),
        bad("nan", labels={"valence": float("nan")}),
        bad("high", labels={"valence": 1.01}),
        bad("variance", label_variance={"valence": -0.1}),
        bad("a\nb"),
        bad("surrogate", transcript="\udce4"),
        bad("split", split="\u65e5" * 26),
        bad("\udce4"),
        good,
        Rejected(key="known", reason="no label", source="Labels/labels.csv"),
    ]


def test_what_cannot_be_used_is_written_down_with_its_reason_and_counted(
    corpus: Path, utterances: list[Utterance], tmp_path: Path
):
    given = [*utterances, *bad_utterances(tmp_path, utterances[0])]
    summary = build_example(given, tmp_path / "s", corpus, max_rejected=0.6, max_duration_s=1.0)
    lines = [json.loads(line) for line in (tmp_path / "s" / "rejected.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines} == {
        "nan": "label 'valence' is nan, off the scale 0..1",
        "high": "label 'valence' is 1.01, off the scale 0..1",
        "variance": "variance of label 'valence' is -0.1, off the scale 0..1",
        "a\nb": "the key is empty or has a control character",
        "surrogate": "a text is not valid Unicode",
        "split": "the split's name takes 234 bytes in a file name, which has room for 229; shorten it",
        "\udce4": "a text is not valid Unicode",
        utterances[0].key: "the key comes twice",
        "known": "no label",
        "noise": "cannot be decoded (Format not recognised)",
        "gone": "the audio file is missing",
        "short": "lasts 300 samples at 16000 Hz, fewer than an encoder's first frame (400)",
        "long": "lasts 1.2 s, more than 1 s",
    }
    assert {line["source"] for line in lines} >= {"Labels/labels.csv", "gone.wav"}
    assert summary.rejected == 13
    assert open_shard_set(tmp_path / "s").manifest.counts == {"rejected": 13, "resampled": 0, "mixed_down": 0}
    assert "13 rejected" in summary.in_words(tmp_path)
    assert check_shard_set(tmp_path / "s") == []


def test_a_split_with_the_longest_name_is_built(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    split = "s" * 229
    build_example([dataclasses.replace(one, split=split) for one in utterances], tmp_path / "s", corpus)
    assert check_shard_set(tmp_path / "s") == []
    assert open_shard_set(tmp_path / "s").manifest.split_names == (split,)


def test_splits_that_differ_in_case_alone_are_refused_before_a_shard_is_written(
    corpus: Path, utterances: list[Utterance], tmp_path: Path
):
    """On a file system that ignores case the second split's shards would replace the first one's."""
    given = [dataclasses.replace(one, split=("Train", "train")[number % 2]) for number, one in enumerate(utterances)]
    with pytest.raises(CorpusError, match=r"splits 'Train' and 'train' differ in upper and lower case alone"):
        build_example(given, tmp_path / "s", corpus)
    assert not (tmp_path / "s").exists()
    # Other letters are escaped: their shards have names of their own everywhere.
    assert same_files(["Train", "\u00e4", "\u00c4", "Test"]) is None
    assert same_files(["a.b", "x", "A.B"]) == ("a.b", "A.B")


def test_a_record_that_cannot_be_read_stops_the_build_in_words(
    corpus: Path, utterances: list[Utterance], tmp_path: Path
):
    record = tmp_path / "s" / ".building" / "Train-000000.tar.json"
    record.mkdir(parents=True)
    with pytest.raises(ShardError, match=r"Train-000000\.tar: cannot be read or written in .*/s \(Is a directory\)"):
        build_example(utterances, tmp_path / "s", corpus)


def test_resampled_and_mixed_down_utterances_are_counted(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    stereo = write_noise(tmp_path / "a.wav", 4000, rate=8000, channels=2)
    given = [*utterances, dataclasses.replace(utterances[0], key="stereo", audio=stereo)]
    summary = build_example(given, tmp_path / "s", corpus)
    assert (summary.resampled, summary.mixed_down, summary.rejected) == (1, 1, 0)


def test_too_many_rejected_fail_the_build_after_they_are_written_down(
    corpus: Path, utterances: list[Utterance], tmp_path: Path
):
    given = [*utterances, dataclasses.replace(utterances[0], key="gone", audio=tmp_path / "gone.wav")]
    with pytest.raises(CorpusError, match=r"1 of 13 utterances rejected \(7\.7%\), and at most 0 may be \(1\.0%\)"):
        build_example(given, tmp_path / "s", corpus)
    assert "gone" in (tmp_path / "s" / "rejected.jsonl").read_text()
    assert not (tmp_path / "s" / "manifest.json").exists()
    build_example(given, tmp_path / "s", corpus, max_rejected=0.1)
    build_example(given, tmp_path / "t", corpus, max_rejected=0.1)
    assert files_of(tmp_path / "s") == files_of(tmp_path / "t")


def test_nothing_or_nothing_usable_is_no_shard_set(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    with pytest.raises(CorpusError, match="no utterance was given"):
        build_example([], tmp_path / "s", corpus)
    gone = [dataclasses.replace(utterances[0], audio=tmp_path / "gone.wav")]
    with pytest.raises(CorpusError, match=r"1 of 1 utterances rejected \(100\.0%\)"):
        build_example(gone, tmp_path / "s", corpus, max_rejected=1.0)


@pytest.mark.parametrize("count", [1, 4, 9, 12])
def test_an_interrupted_build_goes_on_and_ends_byte_equal(
    corpus: Path, utterances: list[Utterance], tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
):
    build_example(utterances, tmp_path / "whole", corpus)
    with pytest.raises(StoppedError):
        build_example(utterances, tmp_path / "s", corpus, progress=stop_after(count))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*.tar")}
    assert not (tmp_path / "s" / "manifest.json").exists()
    build_example(utterances, tmp_path / "s", corpus)
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")
    assert kept == {name: (tmp_path / "s" / name).stat().st_mtime_ns for name in kept}  # not written again


@pytest.fixture
def stopped(corpus: Path, utterances: list[Utterance], tmp_path: Path) -> Path:
    """A build that was stopped near its end."""
    with pytest.raises(StoppedError):
        build_example(utterances, tmp_path / "s", corpus, progress=stop_after(12))
    return tmp_path / "s"


def test_a_finished_shard_is_not_kept_when_its_bytes_or_record_changed(
    corpus: Path, utterances: list[Utterance], stopped: Path, tmp_path: Path
):
    damaged, *_ = sorted(stopped.glob("Train*.tar"))
    data = bytearray(damaged.read_bytes())
    data[700] ^= 1
    damaged.write_bytes(data)
    record = sorted((stopped / BUILDING).glob("*.json"))[-1]
    record.write_text("{")
    build_example(utterances, stopped, corpus)
    build_example(utterances, tmp_path / "whole", corpus)
    assert files_of(stopped) == files_of(tmp_path / "whole")


def changed_transcript(utterances: list[Utterance]) -> Iterator[list[Utterance]]:
    yield [dataclasses.replace(utterances[0], transcript="other"), *utterances[1:]]
    yield [*utterances[:5], *utterances[6:]]
    yield [*utterances, dataclasses.replace(utterances[0], key="new")]
    yield utterances[::-1]


@pytest.mark.parametrize("number", range(4))
def test_an_interrupted_build_of_another_input_is_not_taken_over(
    corpus: Path, utterances: list[Utterance], stopped: Path, tmp_path: Path, number: int
):
    changed = list(changed_transcript(utterances))[number]
    build_example(changed, stopped, corpus)
    build_example(changed, tmp_path / "whole", corpus)
    assert files_of(stopped) == files_of(tmp_path / "whole")
    assert check_shard_set(stopped) == []


@pytest.mark.parametrize("settings", [{}, {"shard_bytes": 9000}])
def test_changed_audio_and_other_settings_start_the_shards_anew(tmp_path: Path, settings: dict[str, int]):
    utterances = make_utterances(tmp_path / "corpus")
    with pytest.raises(StoppedError):
        build_example(utterances, tmp_path / "s", tmp_path / "corpus", progress=stop_after(12))
    samples, rate = soundfile.read(utterances[0].audio)
    soundfile.write(utterances[0].audio, samples / 2, rate)  # of the same size
    build_example(utterances, tmp_path / "s", tmp_path / "corpus", **settings)
    build_example(utterances, tmp_path / "whole", tmp_path / "corpus", **settings)
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")


def test_the_same_build_again_does_nothing_and_another_one_is_refused(
    corpus: Path, utterances: list[Utterance], tmp_path: Path
):
    first = build_example(utterances, tmp_path / "s", corpus)
    before = files_of(tmp_path / "s")
    again = build_example(utterances, tmp_path / "s", corpus)
    assert again == dataclasses.replace(first, was_there=True)
    with pytest.raises(ConfigError, match="holds a shard set of other input or settings"):
        build_example(utterances[1:], tmp_path / "s", corpus)
    with pytest.raises(ConfigError, match="holds a shard set of other input or settings"):
        build_example(utterances, tmp_path / "s", corpus, shard_bytes=9000)
    assert files_of(tmp_path / "s") == before


def test_a_second_builder_in_the_same_folder_is_refused(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    (tmp_path / "s" / BUILDING).mkdir(parents=True)
    with open(tmp_path / "s" / BUILDING / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another builder is at work here"):
            build_example(utterances, tmp_path / "s", corpus)
    build_example(utterances, tmp_path / "s", corpus)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"shard_bytes": 0}, "shard_bytes=0: must be at least 1"),
        ({"max_rejected": 1.5}, "max_rejected=1.5: must be between 0 and 1"),
        ({"max_duration_s": 0.0}, "max_duration_s=0.0: must be above 0"),
    ],
)
def test_limits_off_their_range_are_refused(
    corpus: Path, utterances: list[Utterance], tmp_path: Path, limit: dict, words: str
):
    with pytest.raises(ConfigError, match=words):
        build_example(utterances, tmp_path / "s", corpus, **limit)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"corpus": "m\udce4"}, r"--name 'm\\udce4': is not UTF-8"),
        ({"release": "1\udce4"}, r"--release '1\\udce4': is not UTF-8"),
        ({"targets": ("valence", "j\udcf6y")}, r"--targets 'j\\udcf6y': is not UTF-8"),
    ],
)
def test_names_that_are_not_utf8_are_refused(
    corpus: Path, utterances: list[Utterance], tmp_path: Path, setting: dict, words: str
):
    with pytest.raises(ConfigError, match=words):
        build_example(utterances, tmp_path / "s", corpus, **setting)
    assert os.listdir(tmp_path) == []


def test_a_split_of_rejected_utterances_alone_has_no_shard(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    gone = dataclasses.replace(utterances[0], key="gone", split="Empty", audio=tmp_path / "gone.wav")
    summary = build_example([*utterances, gone], tmp_path / "s", corpus, max_rejected=0.1)
    assert "Empty" not in summary.splits
    assert not list((tmp_path / "s").glob("Empty*"))


def test_the_scale_and_the_corpus_stand_in_the_manifest(corpus: Path, utterances: list[Utterance], tmp_path: Path):
    build_shard_set(
        utterances, tmp_path / "s", corpus="name", release="1.11", scale=(1.0, 7.0), targets=("valence",), root=corpus
    )
    manifest = open_shard_set(tmp_path / "s").manifest
    assert (manifest.corpus, manifest.release, manifest.scale, manifest.targets) == (
        "name",
        "1.11",
        (1.0, 7.0),
        ("valence",),
    )


def test_a_shard_that_was_planned_of_too_much_is_no_larger_than_asked(
    corpus: Path, utterances: list[Utterance], tmp_path: Path
):
    build_example(utterances, tmp_path / "s", corpus)
    sizes = [shard.size_bytes for shard in open_shard_set(tmp_path / "s").manifest.shards]
    assert max(sizes) <= 12_000 + 10_240  # tar's own padding
    assert len(sizes) < 12


def finished(folder: Path) -> tuple[list[Utterance], Path]:
    utterances = make_utterances(folder / "corpus")
    build_example(utterances, folder / "s", folder / "corpus")
    return utterances, folder / "s"


def test_audio_that_was_replaced_by_audio_of_its_size_is_noticed_after_the_build(tmp_path: Path):
    utterances, out = finished(tmp_path)
    before = files_of(out)
    samples, rate = soundfile.read(utterances[1].audio)
    soundfile.write(utterances[1].audio, samples / 2, rate)
    words = r"the audio of 1 shards has changed since they were built \(Train-000000\.tar\)\. Delete the shard set"
    with pytest.raises(ConfigError, match=words):
        build_example(utterances, out, tmp_path / "corpus")
    assert files_of(out) == before


def test_audio_that_was_touched_is_looked_at_once_and_found_the_same(tmp_path: Path):
    utterances, out = finished(tmp_path)
    before = files_of(out)
    os.utime(utterances[1].audio, (1, 1))
    seen: list[int] = []
    assert build_example(utterances, out, tmp_path / "corpus", progress=seen.append).was_there
    assert sum(seen) == 2  # the shard of that utterance
    assert build_example(utterances, out, tmp_path / "corpus", progress=seen.append).was_there
    assert sum(seen) == 2
    assert files_of(out) == before


def test_a_set_without_notes_of_its_sources_is_believed(tmp_path: Path):
    utterances, out = finished(tmp_path)
    for content in (None, "{", "[]"):
        (out / ".sources.json").unlink(missing_ok=True)
        if content is not None:
            (out / ".sources.json").write_text(content)
        os.utime(utterances[1].audio, (1, 1))
        assert build_example(utterances, out, tmp_path / "corpus").was_there
