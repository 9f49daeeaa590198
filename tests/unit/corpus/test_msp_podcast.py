"""The MSP-Podcast reader against folders written by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ccts_dist.corpus import Corpus, read_msp_podcast
from ccts_dist.errors import CorpusError
from ccts_dist.records import DIMENSIONS, Rejected, Utterance

HEADER = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
GOOD = "a.wav,H,4.0,5.5,1.0,127,Female,Train"


@pytest.fixture
def corpus_of(tmp_path: Path) -> Callable[..., Corpus]:
    """Writes a corpus with these label rows and a wave file (never opened) per row, and reads it."""

    def make(*rows: str | bytes, detailed: str | None = None, consensus: str = "labels_consensus.csv") -> Corpus:
        for folder in ("Audios", "Transcripts", "Labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("a.wav", "b.wav"):
            (tmp_path / "Audios" / name).touch()
        lines = [row.encode() if isinstance(row, str) else row for row in (HEADER, *rows)]
        (tmp_path / "Labels" / consensus).write_bytes(b"\n".join(lines) + b"\n")
        if detailed is not None:
            (tmp_path / "Labels" / "labels_detailed.csv").write_text(detailed)
        return read_msp_podcast(tmp_path)

    return make


def only_utterance(corpus: Corpus) -> Utterance:
    (utterance,) = corpus.utterances
    assert isinstance(utterance, Utterance), utterance
    return utterance


def only_rejected(corpus: Corpus) -> Rejected:
    (rejected,) = corpus.utterances
    assert isinstance(rejected, Rejected), rejected
    return rejected


def test_ratings_of_one_to_seven_become_labels_of_zero_to_one(corpus_of, tmp_path):
    utterance = only_utterance(corpus_of(GOOD))
    assert utterance.labels == {"activation": 0.5, "valence": 0.75, "dominance": 0.0}
    assert utterance.scale == (1.0, 7.0)
    assert (utterance.key, utterance.audio) == ("a", tmp_path / "Audios" / "a.wav")
    assert (utterance.split, utterance.speaker, utterance.gender, utterance.category) == ("Train", "127", "Female", "H")


def test_corpus_states_its_name_scale_and_targets(corpus_of, tmp_path):
    corpus_of(GOOD)
    corpus = read_msp_podcast(tmp_path, release="1.12")
    assert (corpus.name, corpus.release, corpus.scale, corpus.targets) == (
        "msp-podcast",
        "1.12",
        (1.0, 7.0),
        DIMENSIONS,
    )


def test_label_variance_is_the_population_variance_of_ratings_on_zero_to_one(corpus_of):
    detailed = (
        "FileName,EmoDetail\n"
        'a.wav,"WORKER1; Neutral; Neutral,Other; A:1; V:4; D:3;"\n'
        'a.wav,"WORKER2; Happy; Happy; A:4.000000; V:4; D:;"\n'
        'a.wav,"WORKER3; Happy; A:7; V:4; D:NaN;"\n'
    )
    utterance = only_utterance(corpus_of(GOOD, detailed=detailed))
    # activation 0, 1/2, 1: mean 1/2, variance (1/4 + 0 + 1/4) / 3 = 1/6; dominance was rated once
    assert utterance.label_variance == pytest.approx({"activation": 1 / 6, "valence": 0.0, "dominance": 0.0})
    assert utterance.num_raters == 3


@pytest.mark.parametrize(
    "row",
    [
        "a.wav,WORKER1; Neutral; Neutral,Other; A:7; V:4; D:3;",  # commas unquoted
        "a.wav; WORKER1; Neutral; Neutral,Other; A:7; V:4; D:3;",  # semicolons throughout
        'a.wav,"WORKER1; Other, and more; A:7; V:4; D:3;"',
    ],
)
def test_detailed_file_is_read_however_its_row_is_separated(corpus_of, row):
    utterance = only_utterance(corpus_of(GOOD, detailed=f"{row}\na.wav,WORKER2; Sad; Sad; A:1; V:4; D:3;\n"))
    assert utterance.num_raters == 2
    assert utterance.label_variance["activation"] == 0.25


@pytest.mark.parametrize(
    "detailed",
    [
        'FileName,EmoDetail\na.wav,"W1; Happy; Happy,Sad; A:1; V:4; D:3;"\na.wav,"W2; Other-joy, mostly; A:7; V:4;"\n'
        'a.wav,"W3; Happy; Happy; A:7; V:5; D:3;"\na.wav,"W4; Bored; A:2; V:4; D:3;"\n',
        "FileName,Workers,EmoClass_Major,EmoClass_Second,EmoAct,EmoVal,EmoDom\na.wav,W1,Happy,Sad,1,4,3\n"
        'a.wav,W2,"Other-joy, mostly",,7,4,\na.wav,W3,Happy,,7,5,3\na.wav,W4,Bored,,2,4,3\n',
    ],
    ids=["in one cell", "in columns"],
)
def test_shares_of_categories_and_grades_are_those_of_the_raters(corpus_of, tmp_path, detailed):
    corpus_of(GOOD, detailed=detailed)
    corpus = read_msp_podcast(tmp_path, shares=True)
    assert len(corpus.targets) == 3 + 9 + 3 * 7
    utterance = only_utterance(corpus)
    assert set(utterance.labels) == set(corpus.targets)
    given = {name: share for name, share in utterance.labels.items() if name.endswith(".share") and share}
    # Nobody's category is "Bored": of three votes two are H and one is O.
    assert given == pytest.approx(
        {"H.share": 2 / 3, "O.share": 1 / 3, "activation.1.share": 1 / 4, "activation.2.share": 1 / 4,
         "activation.7.share": 1 / 2, "valence.4.share": 3 / 4, "valence.5.share": 1 / 4, "dominance.3.share": 1.0}
    )  # fmt: skip
    assert only_utterance(corpus_of(GOOD, detailed=detailed)).labels.keys() == {*DIMENSIONS}


def test_shares_without_single_ratings_are_refused(corpus_of, tmp_path):
    corpus_of(GOOD)
    with pytest.raises(CorpusError, match=r"--shares needs single ratings, and there are none in labels_detailed\.csv"):
        read_msp_podcast(tmp_path, shares=True)


def test_without_a_detailed_file_variance_and_number_of_raters_are_unknown(corpus_of):
    utterance = only_utterance(corpus_of(GOOD))
    assert utterance.label_variance == {}
    assert utterance.num_raters is None


def test_byte_order_mark_and_windows_line_ends_change_nothing(corpus_of, tmp_path):
    expected = corpus_of(GOOD)
    (tmp_path / "Labels" / "labels_consensus.csv").write_bytes(f"\ufeff{HEADER}\r\n{GOOD}\r\n".encode())
    assert read_msp_podcast(tmp_path) == expected


def test_older_spelling_of_the_label_file_is_found(corpus_of):
    assert only_utterance(corpus_of(GOOD, consensus="labels_concensus.csv")).key == "a"


def test_transcript_comes_on_one_line_and_is_empty_without_a_file(corpus_of, tmp_path):
    corpus_of(GOOD)
    (tmp_path / "Transcripts" / "a.txt").write_bytes("\ufeffso  schön\r\nit was\n".encode())
    assert only_utterance(read_msp_podcast(tmp_path)).transcript == "so schön it was"
    (tmp_path / "Transcripts" / "a.txt").unlink()
    assert only_utterance(read_msp_podcast(tmp_path)).transcript == ""
    (tmp_path / "Transcripts").rmdir()
    assert only_utterance(read_msp_podcast(tmp_path)).transcript == ""


def test_unknown_speaker_and_gender_are_none(corpus_of):
    utterance = only_utterance(corpus_of("a.wav,,4,4,4,Unknown,Unknown,Test1"))
    assert (utterance.speaker, utterance.gender, utterance.category) == (None, None, None)


def test_empty_rating_leaves_that_target_out(corpus_of):
    utterance = only_utterance(corpus_of("a.wav,H,4,,4,1,Male,Test2", detailed="a.wav,W; A:4; V:4; D:4;\n"))
    assert utterance.labels == {"activation": 0.5, "dominance": 0.5}
    assert utterance.label_variance.keys() == {"activation", "dominance"}


def test_withheld_split_is_read_without_labels(corpus_of):
    utterance = only_utterance(corpus_of("a.wav,,,,,Unknown,Unknown,Test3"))
    assert (utterance.split, utterance.labels) == ("Test3", {})


LABELS = "Labels/labels_consensus.csv"


@pytest.mark.parametrize(
    ("row", "key", "reason", "source"),
    [
        ("z.wav,H,4,4,4,1,Male,Train", "z", "missing audio", "Audios/z.wav"),
        ("a.wav,H,,,,1,Male,Train", "a", "line 2: no label: EmoAct, EmoVal, EmoDom are empty", LABELS),
        ("a.wav,H,high,4,4,1,Male,Train", "a", "line 2: EmoAct 'high' is not a number", LABELS),
        ("a.wav,H,4,NaN,4,1,Male,Train", "a", "line 2: EmoVal is NaN", LABELS),
        ("a.wav,H,4,4,7.01,1,Male,Train", "a", "line 2: EmoDom 7.01 is off the scale 1..7", LABELS),
        ("a.wav,H,0.99,4,4,1,Male,Train", "a", "line 2: EmoAct 0.99 is off the scale 1..7", LABELS),
        ("a.wav,H,inf,4,4,1,Male,Train", "a", "line 2: EmoAct inf is off the scale 1..7", LABELS),
        ("a.wav,H,4,4,4,1,Male,", "a", "line 2: Split_Set '' is not a split's name", LABELS),
        ("a.wav,H,4,4,4,1,Male,../Train", "a", "line 2: Split_Set '../Train' is not a split's name", LABELS),
        ("a.wav,H,4,4", "a", "line 2: 4 cells, and the header has 8", LABELS),
        ("a.wav,H,4,4,4,1,Male,Train,un,quoted", "a", "line 2: 10 cells, and the header has 8", LABELS),
        (",H,4,4,4,1,Male,Train", "line 2", "line 2: FileName is empty", LABELS),
        (
            "../a.wav,H,4,4,4,1,Male,Train",
            "../a",
            "line 2: FileName '../a.wav' is no plain file name; Audios has no sub-folders",
            LABELS,
        ),
        ("a\x07.wav,H,4,4,4,1,Male,Train", "a\\x07", "line 2: FileName holds a control character", LABELS),
        (b"a\xff.wav,H,4,4,4,1,Male,Train", "a\\udcff", "line 2: FileName is not UTF-8", LABELS),
        (b"a.wav,H,4,4,4,\xe9,Male,Train", "a", "line 2: SpkrID is not UTF-8", LABELS),
    ],
)
def test_bad_row_is_rejected_with_its_reason(corpus_of, row, key, reason, source):
    assert only_rejected(corpus_of(row)) == Rejected(key=key, reason=reason, source=source)


def test_second_row_of_one_key_is_rejected_and_the_first_is_kept(corpus_of):
    first, second = corpus_of(GOOD, "a.wav,S,1,1,1,2,Male,Test1").utterances
    assert isinstance(first, Utterance)
    assert first.split == "Train"
    assert second == Rejected(key="a", reason="line 3: duplicate of line 2, which comes first", source=LABELS)


def test_transcript_that_is_not_utf8_rejects_its_utterance(corpus_of, tmp_path):
    corpus_of(GOOD)
    (tmp_path / "Transcripts" / "a.txt").write_bytes(b"caf\xe9")
    rejected = only_rejected(read_msp_podcast(tmp_path))
    assert rejected == Rejected(key="a", reason="transcript is not UTF-8 (byte 3)", source="Transcripts/a.txt")


def test_transcript_in_utf_16_without_a_byte_order_mark_rejects_its_utterance(corpus_of, tmp_path):
    corpus_of(GOOD)
    (tmp_path / "Transcripts" / "a.txt").write_bytes("so it is".encode("utf-16-le"))
    rejected = only_rejected(read_msp_podcast(tmp_path))
    assert rejected == Rejected(key="a", reason="transcript holds NUL, as UTF-16 does", source="Transcripts/a.txt")


def test_single_rating_off_the_scale_rejects_its_utterance(corpus_of):
    rejected = only_rejected(corpus_of(GOOD, detailed="FileName,EmoDetail\na.wav,W1; Sad; A:8; V:4; D:4;\n"))
    assert rejected.reason == "line 2: A: 8 is off the scale 1..7"
    assert rejected.source == "Labels/labels_detailed.csv"


def test_good_rows_around_a_bad_one_are_kept_in_order(corpus_of):
    rows = corpus_of(
        "b.wav,H,4,4,4,1,Male,Train", "a.wav,H,9,4,4,1,Male,Train", "a.wav,H,4,4,4,1,Male,Train"
    ).utterances
    assert [(type(row), row.key) for row in rows] == [(Utterance, "b"), (Rejected, "a"), (Rejected, "a")]


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"nowhere: no such folder. Give the folder that holds MSP-Podcast's Audios"):
        read_msp_podcast(tmp_path / "nowhere")


def test_folder_without_audios_is_refused_with_what_is_there(tmp_path):
    (tmp_path / "wav").mkdir()
    with pytest.raises(CorpusError, match=r"looked for the folder Audios with the wave files and found wav\."):
        read_msp_podcast(tmp_path)


def test_folder_without_a_label_file_is_refused_with_both_spellings(tmp_path):
    (tmp_path / "Audios").mkdir()
    names = "Labels/labels_consensus.csv or Labels/labels_concensus.csv or Labels/labels.txt"
    expected = f"looked for {names} and found nothing in Labels"
    with pytest.raises(CorpusError, match=expected):
        read_msp_podcast(tmp_path)


def test_label_file_without_its_columns_is_refused_with_those_it_has(corpus_of, tmp_path):
    corpus_of(GOOD)
    (tmp_path / "Labels" / "labels_consensus.csv").write_text("FileName,EmoAct,EmoVal,Split\na.wav,4,4,Train\n")
    with pytest.raises(
        CorpusError, match=r"looked for the columns EmoDom, Split_Set and found FileName, EmoAct, EmoVal"
    ):
        read_msp_podcast(tmp_path)


def test_empty_label_file_is_refused(corpus_of, tmp_path):
    corpus_of(GOOD)
    (tmp_path / "Labels" / "labels_consensus.csv").write_text("")
    with pytest.raises(CorpusError, match="found an empty file"):
        read_msp_podcast(tmp_path)


def test_label_file_without_rows_is_refused(corpus_of):
    with pytest.raises(CorpusError, match="no row below the header"):
        corpus_of()


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('a.wav,"H,4,4,4,1,Male,Train', "a quote is not closed"),
        ('"a.wav,H,4,4,4,1,Male,Train', "a quote is not closed"),
        ('a.wav,H,4,4,4,1",Male,Train', "a quote is not closed"),
        ('"a" .wav,H,4,4,4,1,Male,Train', "',' expected after '\"'"),
        ("a" * 200_000, "field larger than field limit (131072)"),
    ],
)
def test_row_that_is_no_csv_is_rejected_and_those_below_it_are_read(corpus_of, row, fault):
    first, second, third = corpus_of(row, GOOD, "b.wav,H,4,4,4,1,Male,Train").utterances
    assert first == Rejected(key="line 2", reason=f"line 2: not a CSV record: {fault}", source=LABELS)
    assert (type(second), second.key) == (Utterance, "a")
    assert (type(third), third.key) == (Utterance, "b")


def test_two_stray_quotes_swallow_nothing_between_them(corpus_of):
    rows = corpus_of('"b.wav,H,4,4,4,1,Male,Train', GOOD, 'c.wav,H,4,4,4,1,Male,Train"').utterances
    assert [(type(row), row.key) for row in rows] == [(Rejected, "line 2"), (Utterance, "a"), (Rejected, "line 4")]


def test_quoted_cells_are_read_without_their_quotes(corpus_of):
    assert only_utterance(corpus_of('"a.wav","H, loud","4","4","4","1","Male","Train"')).category == "H, loud"


@pytest.mark.parametrize(
    "row",
    [
        'a.wav,"W1; Sad; Sad; A:7; V:4; D:4;',
        '"a.wav,W1; Sad; Sad; A:7; V:4; D:4;',
        'a".wav,W1; Sad; Sad; A:7; V:4; D:4;',
    ],
)
def test_ratings_that_are_no_csv_reject_their_utterance_alone(corpus_of, row):
    detailed = f"FileName,EmoDetail\n{row}\nb.wav,W1; Sad; Sad; A:1; V:4; D:4;\nb.wav,W2; Sad; Sad; A:7; V:4; D:4;\n"
    first, second = corpus_of(GOOD, "b.wav,H,4,4,4,1,Male,Train", detailed=detailed).utterances
    reason = "line 2: not a CSV record: a quote is not closed"
    assert first == Rejected(key="a", reason=reason, source="Labels/labels_detailed.csv")
    assert isinstance(second, Utterance)
    assert (second.num_raters, second.label_variance["activation"]) == (2, 0.25)


def test_header_that_is_no_csv_is_refused(corpus_of, tmp_path):
    corpus_of(GOOD)
    (tmp_path / "Labels" / "labels_consensus.csv").write_text(f'"{HEADER}\n{GOOD}\n')
    with pytest.raises(CorpusError, match=r"labels_consensus.csv: line 1: not a CSV record: a quote is not closed"):
        read_msp_podcast(tmp_path)
