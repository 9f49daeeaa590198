"""What differs between releases of MSP-Podcast; look-alikes are in tests/flow/corpus/test_corpora_to_shards.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ccts_dist.corpus import Corpus, read_msp_podcast
from ccts_dist.corpus.msp_podcast.labels import is_withheld
from ccts_dist.errors import CorpusError
from ccts_dist.records import Rejected, Utterance

HEADER = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
Make = Callable[..., Corpus]


@pytest.fixture
def corpus_of(tmp_path: Path) -> Make:
    """Writes label files, by name and text, beside the audio files named (never opened), and reads the corpus."""

    def make(files: dict[str, str], audio: tuple[str, ...] = ("Audios/a.wav", "Audios/b.wav")) -> Corpus:
        for name in audio:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return read_msp_podcast(tmp_path)

    return make


def kept(corpus: Corpus) -> dict[str, Utterance]:
    return {row.key: row for row in corpus.utterances if isinstance(row, Utterance)}


def reasons(corpus: Corpus) -> dict[str, str]:
    return {row.key: row.reason for row in corpus.utterances if isinstance(row, Rejected)}


def test_columns_may_stand_in_any_order_and_be_spelt_in_small_letters(corpus_of: Make):
    text = "split_set,filename,Extra,emodom,EMOVAL,emoact\nDev set,a.wav,?,1,4,7\n"
    utterance = kept(corpus_of({"Labels/labels_consensus.csv": text}))["a"]
    assert utterance.labels == {"activation": 1.0, "valence": 0.5, "dominance": 0.0}
    assert (utterance.split, utterance.speaker, utterance.gender, utterance.category) == ("Dev set", None, None, None)


def test_split_and_speaker_that_the_csv_lacks_come_from_the_text_files(corpus_of: Make):
    corpus = corpus_of(
        {
            "Labels/labels_consensus.csv": "FileName,EmoAct,EmoVal,EmoDom\na.wav,4,4,4\nb.wav,4,4,4\n",
            "Labels/partitions.txt": "Test1; a.wav\n",
            "Speaker_ids.txt": "Speaker_3; Male\na.wav; 3\n",
        }
    )
    utterance = kept(corpus)["a"]
    assert (utterance.split, utterance.speaker, utterance.gender) == ("Test1", "3", "Male")
    assert reasons(corpus) == {"b": "line 3: no split: Labels/partitions.txt does not name it"}


def test_split_of_the_csv_stands_above_that_of_the_text_files(corpus_of: Make):
    files = {
        "Labels/labels_consensus.csv": f"{HEADER}\na.wav,N,4,4,4,1,Male,Train\n",
        "Partitions.txt": "Test1; a.wav\n",
    }
    assert kept(corpus_of(files))["a"].split == "Train"


def test_utterances_without_a_row_are_read_from_the_partitions_if_their_labels_are_withheld(corpus_of: Make):
    files = {
        "Labels/labels_consensus.csv": f"{HEADER}\na.wav,N,4,4,4,1,Male,Train\n",
        "Partitions.txt": "Test3; b.wav\nTest3; gone.wav\nTrain; c.wav\n",
    }
    corpus = corpus_of(files)
    assert (kept(corpus)["b"].split, kept(corpus)["b"].labels) == ("Test3", {})
    assert reasons(corpus) == {"gone": "missing audio"}


@pytest.mark.parametrize("cells", [",,", "Unknown,n/a,-", "nan,nan,nan", "0,0,0"])
@pytest.mark.parametrize("split", ["Test3", "test3", "Test 3", "Test_3"])
def test_whatever_stands_for_withheld_labels_is_no_label(corpus_of: Make, cells: str, split: str):
    corpus = corpus_of({"Labels/labels_consensus.csv": f"{HEADER}\na.wav,,{cells},Unknown,Unknown,{split}\n"})
    assert kept(corpus)["a"].labels == {}


def test_test2_is_not_withheld():
    assert not is_withheld("Test2")


def test_single_ratings_in_columns_are_read_by_their_names(corpus_of: Make):
    detailed = 'FileName,WorkerID,EmoDom,EmoAct,EmoVal\na.WAV,W1,1,"2",7\na.wav,W2,1,4,\nb.wav,W1,nan,4,4\n'
    rows = "a.wav,N,4,4,4,1,Male,Train\nb.wav,N,4,4,4,1,Male,Train\n"
    corpus = corpus_of({"Labels/labels_consensus.csv": f"{HEADER}\n{rows}", "Labels/labels_detailed.csv": detailed})
    utterance = kept(corpus)["a"]
    assert utterance.num_raters == 2
    # activation 2 and 4 on 1..7: labels 1/6 and 1/2, variance 1/36
    assert utterance.label_variance == pytest.approx({"activation": 1 / 36, "valence": 0.0, "dominance": 0.0})
    assert set(kept(corpus)["b"].label_variance) == {"activation", "valence"}


def test_a_cut_row_of_single_ratings_rejects_its_utterance(corpus_of: Make):
    detailed = "FileName,WorkerID,EmoClass,EmoAct,EmoVal,EmoDom\na.wav,W1,Sad,4,4,4\na.wav,W2,Sad\nb.wav,W1,Sad,4,4,4\n"
    rows = "a.wav,N,4,4,4,1,Male,Train\nb.wav,N,4,4,4,1,Male,Train\n"
    corpus = corpus_of({"Labels/labels_consensus.csv": f"{HEADER}\n{rows}", "Labels/labels_detailed.csv": detailed})
    assert reasons(corpus) == {"a": "line 3: 3 cells, and the header has 6"}
    assert kept(corpus)["b"].num_raters == 1


@pytest.mark.parametrize(
    "detailed",
    [
        "FileName,WorkerID,EmoAct,EmoVal,EmoDom\na.wav,W1,4,4,\na.wav,W2,,nan,\nb.wav,W1,,,\n",
        "a.wav,W1; Sad; Sad; A:4; V:4; D:;\na.wav,W2; Sad\nb.wav,W1; Sad; A:; V:; D:NaN;\n",
    ],
)
def test_only_who_gave_a_rating_is_a_rater(corpus_of: Make, detailed: str):
    rows = "a.wav,N,4,4,4,1,Male,Train\nb.wav,N,4,4,4,1,Male,Train\n"
    corpus = corpus_of({"Labels/labels_consensus.csv": f"{HEADER}\n{rows}", "Labels/labels_detailed.csv": detailed})
    assert {key: one.num_raters for key, one in kept(corpus).items()} == {"a": 1, "b": None}


def test_single_ratings_are_read_from_the_text_form(corpus_of: Make):
    detailed = (
        "a.wav; N; A:4; V:4; D:4;\nWORKER1; Sad; Sad; A:1; V:4; D:4;\nannotator 2; Sad; Sad,Other; A:7; V:4; D:4;\n"
    )
    files = {"Labels/labels_consensus.csv": f"{HEADER}\na.wav,N,4,4,4,1,Male,Train\n", "labels_detailed.txt": detailed}
    assert kept(corpus_of(files))["a"].label_variance["activation"] == 0.25


def test_ratings_below_a_line_of_no_file_count_for_nobody(corpus_of: Make):
    detailed = "a.wav; N; A:4; V:4; D:4;\nW1; Sad; Sad; A:4; V:4; D:4;\n???\nW2; Sad; Sad; A:1; V:4; D:4;\n"
    files = {"Labels/labels_consensus.csv": f"{HEADER}\na.wav,N,4,4,4,1,Male,Train\n", "labels_detailed.txt": detailed}
    assert kept(corpus_of(files))["a"].num_raters == 1


def test_label_line_of_a_name_with_a_semicolon_is_rejected_and_no_raters_line(corpus_of: Make):
    labels = "a.wav; N; A:4; V:4; D:4;\nx; y.wav; N; A:2; V:3; D:4;\n"
    corpus = corpus_of({"labels.txt": labels, "Partitions.txt": "Train; a.wav\nTrain; x; y.wav\n"})
    assert list(reasons(corpus).values()) == ["line 2: no label line: 'x; y.wav; N; A:2; V:3; D:4;'"]


def test_text_form_without_speakers_has_none(corpus_of: Make):
    corpus = corpus_of({"labels.txt": "a.wav; N; A:4; V:4; D:4;\n", "Partitions.txt": "a.wav; Train\n"})
    utterance = kept(corpus)["a"]
    assert (utterance.speaker, utterance.gender, utterance.category, utterance.split) == (None, None, "N", "Train")
    assert (utterance.num_raters, utterance.label_variance) == (None, {})


def test_text_form_reads_what_is_withheld(corpus_of: Make):
    corpus = corpus_of({"labels.txt": "a.wav; N; A:4; V:4; D:4;\n", "Partitions.txt": "Train; a.wav\nTest3; b.wav\n"})
    assert kept(corpus)["b"].labels == {}


def test_text_form_without_partitions_is_refused(corpus_of: Make):
    with pytest.raises(CorpusError, match=r"looked for Partitions.txt beside labels.txt and found labels.txt"):
        corpus_of({"Labels/labels.txt": "a.wav; N; A:4; V:4; D:4;\n"})


def test_partitions_that_repeat_themselves_do_no_harm(corpus_of: Make):
    corpus = corpus_of({"labels.txt": "a.wav; N; A:4; V:4; D:4;\n", "Partitions.txt": "Train; a.wav\nTrain; a.wav\n"})
    assert kept(corpus)["a"].split == "Train"


@pytest.mark.parametrize("folder", ["Audios", "Audio", "audios"])
@pytest.mark.parametrize("name", ["a.wav", "a.WAV", "a.flac"])
def test_audio_is_found_however_folder_and_ending_are_spelt(corpus_of: Make, tmp_path: Path, folder: str, name: str):
    files = {"labels_consensus.csv": f"{HEADER}\na.wav,N,4,4,4,1,Male,Train\n"}
    assert kept(corpus_of(files, (f"{folder}/{name}",)))["a"].audio == tmp_path / folder / name


def test_csv_stands_above_the_text_form(corpus_of: Make):
    files = {
        "Labels/labels.txt": "b.wav; N; A:4; V:4; D:4;\n",
        "labels_concensus.csv": f"{HEADER}\na.wav,N,4,4,4,1,M,Train\n",
    }
    assert set(kept(corpus_of(files))) == {"a"}


def test_transcript_that_cannot_be_read_rejects_its_utterance(corpus_of: Make, tmp_path: Path):
    (tmp_path / "Transcripts" / "a.txt").mkdir(parents=True)
    corpus = corpus_of({"Labels/labels_consensus.csv": f"{HEADER}\na.wav,N,4,4,4,1,Male,Train\n"})
    assert reasons(corpus) == {"a": "transcript cannot be read (Is a directory)"}


def test_label_file_that_cannot_be_read_is_refused(corpus_of: Make, tmp_path: Path):
    (tmp_path / "Labels" / "labels_consensus.csv").mkdir(parents=True)
    with pytest.raises(CorpusError, match=r"labels_consensus.csv: cannot be read \(Is a directory\)"):
        corpus_of({})


def test_a_file_in_place_of_the_audio_folder_is_refused(tmp_path: Path):
    (tmp_path / "Audios").touch()
    with pytest.raises(CorpusError, match=r"looked for the folder Audios with the wave files and found Audios"):
        read_msp_podcast(tmp_path)
