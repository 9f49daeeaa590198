"""The IEMOCAP reader against written folders; the whole layout is in tests/flow/corpus/test_corpora_to_shards.py."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ccts_dist.corpus import Corpus, read_iemocap
from ccts_dist.errors import CorpusError
from ccts_dist.records import DIMENSIONS, Rejected, Utterance

KEY = "Ses03F_script01_2_M012"
HEADER = f"[6.2901 - 8.2357]\t{KEY}\tfru\t[2.0000, 3.0000, 4.5000]"
Make = Callable[..., Corpus]


@pytest.fixture
def session_of(tmp_path: Path) -> Make:
    """Writes one session with one wave file (never opened) and these lines of evaluation, and reads it."""

    def make(*lines: str | bytes, printed: bytes = b"") -> Corpus:
        session, dialog = tmp_path / "Session3", KEY.rpartition("_")[0]
        for folder in ("dialog/EmoEvaluation", "dialog/transcriptions", f"sentences/wav/{dialog}"):
            (session / folder).mkdir(parents=True, exist_ok=True)
        (session / "sentences" / "wav" / dialog / f"{KEY}.wav").touch()
        data = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
        (session / "dialog" / "EmoEvaluation" / f"{dialog}.txt").write_bytes(data)
        (session / "dialog" / "transcriptions" / f"{dialog}.txt").write_bytes(printed)
        return read_iemocap(tmp_path, release="full")

    return make


def first(corpus: Corpus) -> Utterance:
    utterance = corpus.utterances[0]
    assert isinstance(utterance, Utterance), utterance
    return utterance


def test_mean_ratings_are_read_in_the_order_valence_activation_dominance(session_of: Make):
    corpus = session_of(HEADER)
    assert first(corpus).labels == {"valence": 0.25, "activation": 0.5, "dominance": 0.875}
    assert (corpus.name, corpus.release, corpus.scale, corpus.targets) == ("iemocap", "full", (1.0, 5.0), DIMENSIONS)


def test_speaker_is_the_session_and_the_letter_of_the_last_field(session_of: Make):
    utterance = first(session_of(HEADER))
    assert (utterance.speaker, utterance.gender) == ("Ses03M", "Male")
    assert (utterance.key, utterance.split, utterance.category) == (KEY, "Session3", "fru")


def test_raters_are_the_evaluators_and_not_the_actors_themselves(session_of: Make):
    lines = [
        "C-E1:\tAnger;\t()",
        "A-E1:\tval 2; act 3; dom  5;\t()",
        "A-E3:\tval 2; act  5; dom ;",
        "A-M1:\tval 5; act 1; dom  1;\t()",
    ]
    utterance = first(session_of(HEADER, *lines))
    assert utterance.num_raters == 2
    # activation 3 and 5 on 1..5: labels 0.5 and 1, variance 1/16; dominance was rated once
    assert utterance.label_variance == {"valence": 0.0, "activation": 0.0625, "dominance": 0.0}


def test_without_rater_lines_their_number_is_unknown(session_of: Make):
    assert first(session_of(HEADER)).num_raters is None


def test_empty_mean_leaves_that_target_out(session_of: Make):
    assert first(session_of(HEADER.replace("3.0000", ""))).labels == {"valence": 0.25, "dominance": 0.875}


@pytest.mark.parametrize("printed", [b"caf\xc3\xa9 \xe2\x80\x99s", b"caf\xe9 \x92s"])
def test_transcripts_are_utf8_or_windows_text(session_of: Make, printed: bytes):
    corpus = session_of(HEADER, printed=b"\xef\xbb\xbf" + KEY.encode() + b" [006.2901-008.2357]: " + printed + b"\r\n")
    assert first(corpus).transcript == "caf\xe9 \N{RIGHT SINGLE QUOTATION MARK}s"


def test_bytes_that_are_neither_are_read_as_latin_1(session_of: Make):
    assert first(session_of(HEADER, printed=KEY.encode() + b" [0-1]: a\x81b\xe9")).transcript == "a\x81b\xe9"


def test_of_two_transcripts_the_first_is_taken(session_of: Make):
    printed = f"{KEY} [0-1]: one\n{KEY} [0-1]: two\nno turn at all\n"
    assert first(session_of(HEADER, printed=printed.encode())).transcript == "one"


def test_without_transcripts_they_are_empty(session_of: Make, tmp_path: Path):
    session_of(HEADER)
    shutil.rmtree(tmp_path / "Session3" / "dialog" / "transcriptions")
    assert first(read_iemocap(tmp_path)).transcript == ""


def test_sessions_come_in_the_order_of_their_numbers(session_of: Make, tmp_path: Path):
    session_of(HEADER)
    shutil.copytree(tmp_path / "Session3", tmp_path / "Session10")
    first_one, second = read_iemocap(tmp_path).utterances
    assert isinstance(first_one, Utterance)
    assert isinstance(second, Rejected)
    assert second.source == "Session10/dialog/EmoEvaluation/Ses03F_script01_2.txt"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (HEADER.replace("2.0000", "0.9"), "line 1: valence 0.9 is off the scale 1..5"),
        (HEADER.replace("2.0000", "NaN"), "line 1: valence is NaN"),
        (HEADER.replace("2.0000", "x"), "line 1: valence 'x' is not a number"),
        (HEADER.replace("2.0000, ", ""), "line 1: [3.0000, 4.5000] is not three ratings"),
        (HEADER.replace("2.0000, 3.0000, 4.5000", ",,"), "line 1: no label: the ratings are empty"),
        (HEADER + "\nA-E1: val 6; act 1; dom 1;", "line 2: an evaluator's val 6 is off the scale 1..5"),
        (HEADER + "\nA-E1: val high; act 1; dom 1;", "line 2: an evaluator's val 'high' is not a number"),
        (
            HEADER.replace("\tfru\t[", "\t["),
            "line 1: neither an utterance nor a rating: " + repr(HEADER.replace("\tfru\t[", "\t[")),
        ),
    ],
)
def test_bad_line_rejects_its_utterance(session_of: Make, line: str, reason: str):
    source = "Session3/dialog/EmoEvaluation/Ses03F_script01_2.txt"
    (rejected,) = session_of(line).utterances
    assert rejected == Rejected(key=KEY, reason=reason.replace("\\t", "\\\\t"), source=source)


def test_line_without_a_turn_is_rejected_and_the_raters_below_it_count_for_nobody(session_of: Make):
    good, bad = session_of(HEADER, "[1.0 - 2.0 broken", "A-E1: val 1; act 1; dom 1;").utterances
    assert isinstance(good, Utterance)
    assert good.num_raters is None
    assert (type(bad), bad.key) == (Rejected, "Ses03F_script01_2.txt line 2")


def test_utterance_that_comes_twice_is_rejected_the_second_time(session_of: Make):
    kept, double = session_of(HEADER, "", HEADER.replace("fru", "ang")).utterances
    assert isinstance(kept, Utterance)
    assert isinstance(double, Rejected)
    source = "Session3/dialog/EmoEvaluation/Ses03F_script01_2.txt"
    assert double.reason == f"line 3: duplicate of {source} line 1, which comes first"


def test_missing_audio_is_reported_with_where_it_was_looked_for(session_of: Make):
    _, rejected = session_of(HEADER, HEADER.replace("M012", "F001")).utterances
    audio = "Session3/sentences/wav/Ses03F_script01_2/Ses03F_script01_2_F001.wav"
    assert rejected == Rejected(key="Ses03F_script01_2_F001", reason="missing audio", source=audio)


def test_audio_that_no_evaluation_names_is_rejected(session_of: Make):
    (rejected,) = session_of("% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]").utterances
    assert isinstance(rejected, Rejected)
    assert (rejected.key, rejected.reason) == (KEY, "no label: no evaluation file names it")


def test_key_that_is_no_turn_is_rejected(session_of: Make):
    rejected = session_of(HEADER.replace("M012", "../x")).utterances[0]
    assert isinstance(rejected, Rejected)
    assert "is not a turn's name, such as Ses01F_impro01_F000" in rejected.reason


def test_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(CorpusError, match=r"gone: no such folder\. Give the folder that holds IEMOCAP's Session1"):
        read_iemocap(tmp_path / "gone")


def test_folder_without_sessions_is_refused_with_what_is_there(tmp_path: Path):
    (tmp_path / "IEMOCAP_full_release").mkdir()
    with pytest.raises(
        CorpusError, match=r"looked for the folders Session1 to Session5 and found IEMOCAP_full_release\."
    ):
        read_iemocap(tmp_path)


@pytest.mark.parametrize("folder", ["dialog/EmoEvaluation", "sentences/wav"])
def test_session_without_a_folder_is_refused(session_of: Make, tmp_path: Path, folder: str):
    session_of(HEADER)
    shutil.rmtree(tmp_path / "Session3" / folder)
    with pytest.raises(
        CorpusError, match=rf"Session3: looked for {folder} and found (nothing|transcriptions) next to it"
    ):
        read_iemocap(tmp_path)


def test_release_without_an_utterance_is_refused(tmp_path: Path):
    (tmp_path / "Session1" / "dialog" / "EmoEvaluation").mkdir(parents=True)
    (tmp_path / "Session1" / "sentences" / "wav").mkdir(parents=True)
    with pytest.raises(CorpusError, match=r"no utterance in Session\*/dialog/EmoEvaluation/\*\.txt"):
        read_iemocap(tmp_path)


def test_evaluation_that_cannot_be_read_is_refused(session_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    session_of(HEADER)

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ccts_dist.corpus.iemocap.read_limited", refuse)
    with pytest.raises(CorpusError, match=r"cannot be read \(Permission denied\)"):
        read_iemocap(tmp_path)
