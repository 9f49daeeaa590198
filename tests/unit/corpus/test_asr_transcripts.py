"""The file of what was transcribed: written, torn, gone on with, refused; and filled in where a corpus has no words."""

import errno
import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist import limits
from ccts_dist.asr.transcribe import check_place, transcripts_path, wanted_utterances
from ccts_dist.corpus.asr_transcripts import AsrTranscript, TranscriptFile, apply_transcripts, read_transcripts
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.records import Rejected, Utterance
from tests.tiers import examples

DIGEST, OTHER = "1" * 64, "2" * 64


def asr_line(
    key: str, transcript: str = "what was reported", confidence: float = 0.5, **changes: object
) -> AsrTranscript:
    one = AsrTranscript(
        key=key,
        transcript=transcript,
        confidence=confidence,
        model="model",
        digest=DIGEST,
        language=None,
        duration_s=1.25,
    )
    return replace(one, **changes)


def utterance(key: str, transcript: str = "", audio: Path = Path("Audios/a.wav")) -> Utterance:
    return Utterance(key=key, audio=audio, split="Train", labels={}, scale=(1.0, 7.0), transcript=transcript)


def write(path: Path, *batches: list[AsrTranscript], digest: str = DIGEST, language: str | None = None) -> Path:
    with TranscriptFile(path, digest=digest, language=language) as file:
        for batch in batches:
            file.add(batch)
    return path


def test_what_was_written_is_read_again_by_key_and_in_order(tmp_path: Path):
    batch = [asr_line("b/ü.1", "wörds “x”\u2028y"), asr_line("a", "", 0.0, language=None, duration_s=0.0)]
    path = write(tmp_path / "asr.jsonl", batch, [asr_line("c")])
    assert list(read_transcripts(path).values()) == [*batch, asr_line("c")]
    assert list(read_transcripts(path)) == ["b/ü.1", "a", "c"]


def test_a_line_is_json_with_every_fact(tmp_path: Path):
    path = write(tmp_path / "asr.jsonl", [asr_line("a", "wörds")])
    assert json.loads(path.read_text()) == {
        "key": "a",
        "transcript": "wörds",
        "confidence": 0.5,
        "model": "model",
        "digest": DIGEST,
        "language": None,
        "duration_s": 1.25,
    }
    assert "wörds" in path.read_text()


def test_a_batch_is_on_disk_before_the_next_one(tmp_path: Path):
    with TranscriptFile(tmp_path / "asr.jsonl", digest=DIGEST, language=None) as file:
        file.add([asr_line("a")])
        assert list(read_transcripts(file.path)) == ["a"]


def test_folders_above_the_file_are_made(tmp_path: Path):
    assert list(read_transcripts(write(tmp_path / "new" / "asr.jsonl", [asr_line("a")]))) == ["a"]


@examples(60)
@given(st.data())
def test_a_file_cut_anywhere_goes_on_with_its_whole_lines(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "asr.jsonl"
    lines = [asr_line(f"key {number}", "ü" * number) for number in range(4)]
    whole = write(path, lines).read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    zeros = data.draw(st.integers(0, 3)) if whole[:cut].endswith(b"\n") else 0
    path.write_bytes(whole[:cut] + b"\0" * zeros)
    kept = whole[:cut].count(b"\n")
    assert list(read_transcripts(path).values()) == lines[:kept]
    with TranscriptFile(path, digest=DIGEST, language=None) as file:
        assert list(file.transcripts.values()) == lines[:kept]
        file.add(lines[kept:])
    assert path.read_bytes() == whole


def test_a_file_of_another_model_is_refused_with_both_digests(tmp_path: Path):
    path = write(tmp_path / "asr.jsonl", [asr_line("a")])
    with pytest.raises(ConfigError, match=f"weights {DIGEST[:12]}, this one has {OTHER[:12]}.*--out"):
        TranscriptFile(path, digest=OTHER, language=None)
    assert list(read_transcripts(path)) == ["a"]


def test_a_file_of_another_language_is_refused(tmp_path: Path):
    path = write(tmp_path / "asr.jsonl", [asr_line("a", language="de")], language="de")
    with pytest.raises(ConfigError, match=r"with language 'de', now it is None.*--language"):
        TranscriptFile(path, digest=DIGEST, language=None)


def test_a_second_process_is_kept_out(tmp_path: Path):
    path = write(tmp_path / "asr.jsonl", [asr_line("a")])
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is adding to it"):
            TranscriptFile(path, digest=DIGEST, language=None)


@pytest.mark.parametrize("text", ["a diary\n", "a diary", '{"key": "a"}\n', "[1]\n", "key,transcript\na,b\n"])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, text: str):
    path = tmp_path / "diary.txt"
    path.write_text(text)
    with pytest.raises(CorpusError, match=r"diary.txt: line 1 is not one that shards/transcribe.py wrote"):
        TranscriptFile(path, digest=DIGEST, language=None)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"confidence": 1.5}, "confidence 1.5 or duration 1.25 is off its range"),
        ({"confidence": True}, "a number is something else"),
        ({"duration_s": -1}, "off its range"),
        ({"transcript": None}, "a text is something else"),
        ({"language": 3}, "a text is something else"),
        ({"more": 1}, "its keys must be confidence, digest"),
    ],
)
def test_a_line_with_a_wrong_value_is_refused_by_number(tmp_path: Path, changes: dict[str, object], what: str):
    path = write(tmp_path / "asr.jsonl", [asr_line("a"), asr_line("b")])
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{json.dumps(json.loads(second) | changes)}\n")
    with pytest.raises(CorpusError, match=f"line 2 is not one .*{what}"):
        read_transcripts(path)


def test_lines_and_files_beyond_their_limits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    line = len(write(tmp_path / "one.jsonl", [asr_line("a")]).read_bytes())
    monkeypatch.setitem(limits.LIMITS, "line of a label table", line)
    monkeypatch.setitem(limits.LIMITS, "file of transcripts", 3 * line)
    path = write(tmp_path / "asr.jsonl", [asr_line(key) for key in "abc"])
    assert list(read_transcripts(path)) == ["a", "b", "c"]
    path.write_bytes(path.read_bytes() + path.read_bytes()[:line].replace(b'"a"', b'"d"'))
    with pytest.raises(CorpusError, match=rf"it takes more than {3 * line} bytes"):
        read_transcripts(path)
    path.write_bytes(path.read_bytes()[:line].replace(b'"a"', b'"aa"'))
    with pytest.raises(CorpusError, match=rf"line 1 is not one .*: it takes more than {line} bytes"):
        read_transcripts(path)
    with pytest.raises(CorpusError, match="it takes more than"):
        TranscriptFile(path, digest=DIGEST, language=None)


def test_a_pipe_in_the_place_of_the_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "asr.jsonl")
    with pytest.raises(CorpusError, match="no regular file"):
        read_transcripts(tmp_path / "asr.jsonl")


def test_model_and_digest_are_held_once(tmp_path: Path):
    one, other = read_transcripts(write(tmp_path / "asr.jsonl", [asr_line("a"), asr_line("b")])).values()
    assert one.digest is other.digest
    assert one.model is other.model


def test_a_key_that_comes_twice_is_refused(tmp_path: Path):
    path = write(tmp_path / "asr.jsonl", [asr_line("a")])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(CorpusError, match="line 2: key 'a' comes twice"):
        read_transcripts(path)


def test_a_file_that_is_not_there_cannot_be_read(tmp_path: Path):
    with pytest.raises(CorpusError, match=r"cannot be read .*Name a file that shards/transcribe.py wrote"):
        read_transcripts(tmp_path / "none.jsonl")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cannot be written .*--out"):
        TranscriptFile(tmp_path, digest=DIGEST, language=None)


def test_a_full_disk_ends_in_one_line(tmp_path: Path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with TranscriptFile(tmp_path / "asr.jsonl", digest=DIGEST, language=None) as file:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
            file.add([asr_line("a")])


def test_words_are_filled_in_only_where_the_corpus_has_none():
    rejected = Rejected(key="d", reason="off the scale", source="labels.csv")
    given = [utterance("a"), utterance("b", "people wrote this"), utterance("c", " \n"), rejected, utterance("e")]
    filled = apply_transcripts(given, {key: asr_line(key, f"transcribed {key}") for key in "abcd"}, min_confidence=0.0)
    assert filled == (
        replace(given[0], transcript="transcribed a", transcript_confidence=0.5),
        given[1],
        replace(given[2], transcript="transcribed c", transcript_confidence=0.5),
        rejected,
        given[4],
    )


def test_words_below_the_confidence_are_not_used():
    words = {"a": asr_line("a", "low", 0.49), "b": asr_line("b", "high", 0.5)}
    filled = apply_transcripts([utterance("a"), utterance("b")], words, min_confidence=0.5)
    assert [one.transcript for one in filled if isinstance(one, Utterance)] == ["", "high"]


@pytest.mark.parametrize("limit", [-0.1, 1.1, float("nan")])
def test_a_confidence_off_its_range_is_refused(limit: float):
    with pytest.raises(ConfigError, match=r"min_confidence=.*between 0 and 1.*--min-confidence"):
        apply_transcripts([], {}, min_confidence=limit)


def test_words_of_another_corpus_are_refused():
    with pytest.raises(CorpusError, match=r"None of the 1 keys .*transcribed: 'x', the corpus's: 'a'"):
        apply_transcripts([utterance("a")], {"x": asr_line("x")}, min_confidence=0.0)


def test_an_empty_file_of_words_changes_nothing():
    assert apply_transcripts([utterance("a")], {}, min_confidence=0.0) == (utterance("a"),)


def test_only_what_has_no_transcript_is_wanted_and_each_key_once():
    first, second = utterance("a"), replace(utterance("a"), split="Test1")
    given = [first, utterance("b", "words"), Rejected(key="c", reason="r", source="s"), second, utterance("d", " ")]
    assert wanted_utterances(given) == [first, given[4]]
    assert wanted_utterances(given, everything=True) == [first, given[1], given[4]]


def test_words_go_beside_the_folder_or_the_manifest(tmp_path: Path, monkeypatch):
    (tmp_path / "corpus.1").mkdir()
    (tmp_path / "list.csv").touch()
    assert transcripts_path(tmp_path / "corpus.1") == tmp_path / "corpus.1-asr.jsonl"
    assert transcripts_path(tmp_path / "list.csv") == tmp_path / "list-asr.jsonl"
    monkeypatch.chdir(tmp_path / "corpus.1")
    assert transcripts_path(Path(".")) == tmp_path / "corpus.1-asr.jsonl"


def test_nothing_lies_beside_the_root_of_all():
    with pytest.raises(ConfigError, match=r"has no place next to it.*--out"):
        transcripts_path(Path("/"))


def test_a_place_inside_the_corpus_is_refused_by_any_road(tmp_path: Path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "road").symlink_to(tmp_path / "corpus")
    for out in ("corpus/asr.jsonl", "road/Labels/asr.jsonl", "corpus/../corpus/asr.jsonl"):
        with pytest.raises(ConfigError, match=r"lies inside the corpus .* next to it with --out"):
            check_place(tmp_path / out, tmp_path / "corpus", [])
    check_place(tmp_path / "asr.jsonl", tmp_path / "corpus", [])


def test_the_manifest_itself_is_no_place(tmp_path: Path):
    (tmp_path / "list.jsonl").touch()
    with pytest.raises(ConfigError, match=r"is the corpus .*never written to"):
        check_place(tmp_path / "list.jsonl", tmp_path / "list.jsonl", [])


def test_an_audio_file_is_no_place_even_while_it_is_missing(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"is the audio of utterance 'a'.*--out"):
        check_place(tmp_path / "a.wav", tmp_path / "list.csv", [utterance("a", audio=tmp_path / "a.wav")])
