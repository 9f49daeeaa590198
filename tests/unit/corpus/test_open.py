"""Readers of the open corpora against damaged copies; tests/flow/corpus/test_corpora_to_shards.py has their layouts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.audio.convert import decode_audio, decode_segment
from ccts_dist.corpus import (
    Corpus,
    read_cmu_mosei,
    read_crema_d,
    read_emodb,
    read_esd,
    read_meld,
    read_ravdess,
    read_tess,
)
from ccts_dist.corpus.speaker_splits import split_by_speaker
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.records import Rejected, Utterance
from tests.helpers.examples import open_examples

READERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], Corpus]]] = {
    "ravdess": (open_examples.ravdess, read_ravdess),
    "crema-d": (open_examples.crema_d, read_crema_d),
    "emodb": (open_examples.emodb, read_emodb),
    "esd": (open_examples.esd, read_esd),
    "tess": (open_examples.tess, read_tess),
    "meld": (open_examples.meld, read_meld),
    "cmu-mosei": (open_examples.cmu_mosei, read_cmu_mosei),
}


def good(corpus: Corpus) -> dict[str, Utterance]:
    return {one.key: one for one in corpus.utterances if not isinstance(one, Rejected)}


def splits_of(corpus: Corpus) -> dict[str | None, str]:
    return {one.speaker: one.split for one in good(corpus).values()}


def test_speakers_of_a_group_are_dealt_out_in_the_order_of_their_names():
    men = {f"m{number}": "Male" for number in (10, 9, 1, 2, 3, 4, 5)}
    women = {"w2": "Female", "w1": "Female"}
    assert split_by_speaker(men | women) == {
        "m1": "Train",
        "m2": "Train",
        "m3": "Train",
        "m4": "Development",
        "m5": "Test",
        "m9": "Train",
        "m10": "Train",
        "w1": "Train",
        "w2": "Train",
    }
    assert split_by_speaker(women | {"m": "Male"}, 2) == {"w1": "Fold1", "w2": "Fold2", "m": "Fold1"}


@pytest.mark.parametrize("folds", [1, 0, -2, 4])
def test_folds_that_speakers_do_not_give_are_refused(folds: int):
    with pytest.raises(ConfigError, match=rf"--folds {folds}: must be from 2 to 3, the number of speakers"):
        split_by_speaker({"a": "", "b": "", "c": ""}, folds)


@pytest.mark.parametrize("kind", READERS)
def test_no_speaker_is_in_two_splits_but_for_meld(kind: str, tmp_path: Path):
    make, read = READERS[kind]
    make(tmp_path)
    pairs = {(one.speaker, one.split) for one in good(read(tmp_path)).values()}
    assert len(pairs) == len({speaker for speaker, _ in pairs}) * (3 if kind == "meld" else 1)


@pytest.mark.parametrize("kind", READERS)
def test_folder_of_something_else_is_refused_in_one_line(kind: str, tmp_path: Path):
    _, read = READERS[kind]
    (tmp_path / "holiday.jpg").touch()
    for folder, words in ((tmp_path, "looked for .* and found holiday.jpg"), (tmp_path / "gone", "no such folder")):
        with pytest.raises(CorpusError, match=words) as caught:
            read(folder)
        assert "\n" not in str(caught.value)


def test_songs_of_ravdess_are_taken_when_asked_for_and_other_names_are_listed(tmp_path: Path):
    open_examples.ravdess(tmp_path)
    speech, song = read_ravdess(tmp_path), read_ravdess(tmp_path, song=True)
    sung = "03-02-03-01-01-01-01"
    assert set(good(song)) - set(good(speech)) == {sung}
    assert [path.name for path in speech.unnamed] == ["01-01-03-01-01-01-01.wav", f"{sung}.wav", "hello.wav"]


def test_copy_of_the_whole_corpus_within_itself_is_passed_over(tmp_path: Path):
    open_examples.ravdess(tmp_path)
    once = read_ravdess(tmp_path)
    inner = tmp_path / "audio_speech_actors_01-24"
    shutil.copytree(tmp_path / "Actor_03", inner / "Actor_03")
    twice = read_ravdess(tmp_path)
    assert twice.utterances == once.utterances
    assert set(twice.unnamed) - set(once.unnamed) == set(inner.rglob("*.wav"))


def test_folds_of_actors(tmp_path: Path):
    open_examples.ravdess(tmp_path)
    folds = splits_of(read_ravdess(tmp_path, num_folds=2))
    assert folds == {f"{actor:02d}": f"Fold{1 + (actor - 1) // 2 % 2}" for actor in range(1, 11)}


def test_categories_of_crema_d_by_votes_are_the_most_frequent_and_none_at_a_tie(tmp_path: Path):
    open_examples.crema_d(tmp_path)
    voted = {key: one.category for key, one in good(read_crema_d(tmp_path, categories="voted")).items()}
    assert voted == {
        "1001_IEO_ANG_LO": None,
        "1002_IEO_HAP_XX": "happy",
        "1002_DFA_NEU_XX": None,
        "1003_ITH_SAD_X": "sad",
        "1004_TSI_DIS_HI": "disgust",
        "1004_DFA_ANG_HI": "anger",
        "1005_MTI_FEA_MD": "fear",
        "1006_WSI_ANG_XX": "anger",
    }


def test_crema_d_without_its_tables_has_acted_categories_alone(tmp_path: Path):
    open_examples.crema_d(tmp_path)
    (tmp_path / "processedResults" / "tabulatedVotes.csv").unlink()
    (tmp_path / "VideoDemographics.csv").unlink()
    corpus = read_crema_d(tmp_path)
    assert corpus.targets == ()
    one = good(corpus)["1004_TSI_DIS_HI"]
    assert (one.category, one.gender, dict(one.labels), one.num_raters) == ("disgust", None, {}, None)
    with pytest.raises(ConfigError, match=r"--categories voted: .* has no processedResults/tabulatedVotes.csv"):
        read_crema_d(tmp_path, categories="voted")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a,b"], "looked for the columns fileName, A, D, F, H, N, S and found a, b"),
        ([], "looked for the columns fileName.* and found no header"),
        ([',A,D,F,H,N,S,fileName\n"200001",1,0,0,0,0,0,x'], "no row whose first cell is that of a voice"),
        ([',A,D,F,H,N,S,fileName\n"100001",1,0,0,0,0,0'], "line 2 has 7 cells, and the header has 8"),
        ([',A,D,F,H,N,S,fileName\n"100001",1,0,0,0,0,0,"x'], "line 2: not a CSV record: a quote is not closed"),
    ],
)
def test_votes_that_are_none_are_refused_in_one_line(lines: list[str], words: str, tmp_path: Path):
    open_examples.crema_d(tmp_path)
    (tmp_path / "processedResults" / "tabulatedVotes.csv").write_text("\n".join(lines))
    with pytest.raises(CorpusError, match=words) as caught:
        read_crema_d(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_language_of_esd(tmp_path: Path):
    open_examples.esd(tmp_path)
    corpus = read_esd(tmp_path, languages=("zh",))
    assert set(splits_of(corpus)) == {"0001", "0004"}
    assert len(corpus.unnamed) == 16


def test_text_of_esd_in_no_known_encoding_is_refused(tmp_path: Path):
    open_examples.esd(tmp_path)
    (tmp_path / "Emotion Speech Dataset" / "0012" / "0012.txt").write_bytes(b"\x80\xff\xff")
    with pytest.raises(CorpusError, match=r"0012.txt: is not UTF-8, GB 18030 or UTF-16"):
        read_esd(tmp_path)


def test_meld_whose_clips_are_still_video_is_refused_with_the_command_that_extracts_audio(tmp_path: Path):
    open_examples.meld(tmp_path)
    for wave in (tmp_path / "dev_splits_complete").glob("*.wav"):
        wave.unlink()
    with pytest.raises(CorpusError, match=r"dev_splits_complete: holds video alone\. Extract .*ffmpeg -i"):
        read_meld(tmp_path)


@pytest.mark.parametrize(
    ("written", "read"),
    [(b"it\x92s", "it\N{RIGHT SINGLE QUOTATION MARK}s"), (b"caf\xe9 \x96 no", "caf\xe9 \N{EN DASH} no")],
)
def test_table_of_meld_in_windows_1252_is_read_as_what_it_is(written: bytes, read: str, tmp_path: Path):
    open_examples.meld(tmp_path)
    table = tmp_path / "dev_sent_emo.csv"
    table.write_bytes(table.read_bytes().replace("he\x92s".encode(), written))
    assert good(read_meld(tmp_path))["dev_dia0_utt0"].transcript == f"Oh my God, {read} lost it. Totally."


def test_byte_of_no_character_in_a_table_of_meld_is_rejected(tmp_path: Path):
    open_examples.meld(tmp_path)
    table = tmp_path / "dev_sent_emo.csv"
    table.write_bytes(table.read_bytes().replace("he\x92s".encode(), b"he\x81s"))
    assert next(one.reason for one in read_meld(tmp_path).utterances if isinstance(one, Rejected)).endswith(
        "Utterance is not UTF-8"
    )


def test_audio_of_meld_that_no_row_names_is_listed(tmp_path: Path):
    open_examples.meld(tmp_path)
    assert [path.name for path in read_meld(tmp_path).unnamed] == ["final_videos_testdia0_utt1.wav"]


def test_sentiment_of_mosei_is_the_raters_mean_where_the_table_has_it(tmp_path: Path):
    open_examples.cmu_mosei(tmp_path)
    table = tmp_path / "CMU_MOSEI_Labels.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header + ",sentiment", *(f"{row},-1.5" for row in rows)]))
    assert good(read_cmu_mosei(tmp_path))["257771_0"].labels == {"sentiment": 0.25}  # (-1.5 + 3) / 6


def empty_tables(root: Path) -> None:
    for table in root.glob("*.csv"):
        table.write_text(table.read_text().partition("\n")[0])


def folder_for(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("kind", "harm", "words"),
    [
        ("meld", empty_tables, "no row below the headers of the tables"),
        (
            "meld",
            lambda root: (root / "dev_splits_complete").rename(root / "other"),
            "looked for the folder dev_splits_complete with the clips and found",
        ),
        ("cmu-mosei", empty_tables, "CMU_MOSEI_Labels.csv: no row below the header"),
        (
            "cmu-mosei",
            lambda root: (root / "Raw" / "Audio").rename(root / "Sound"),
            "looked for the folder Audio/Full/WAV_16000 and found CMU_MOSEI_Labels.csv, Raw, Sound",
        ),
        (
            "cmu-mosei",
            lambda root: folder_for(root / "Raw/Transcript/Segmented/Combined/-3g5yACwYnA.txt"),
            r"-3g5yACwYnA.txt: cannot be read \(.*\)\. Mend its rights",
        ),
        (
            "esd",
            lambda root: folder_for(root / "Emotion Speech Dataset/0012/0012.txt"),
            r"0012.txt: cannot be read \(.*\)\. Mend its rights",
        ),
    ],
)
def test_release_that_lacks_a_part_is_refused_in_one_line(
    kind: str, harm: Callable[[Path], object], words: str, tmp_path: Path
):
    make, read = READERS[kind]
    make(tmp_path)
    harm(tmp_path)
    with pytest.raises(CorpusError, match=words) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "table", "row", "key", "reason"),
    [
        (
            "meld",
            "test_sent_emo.csv",
            '9,Wh\x01at?,Ross,anger,negative,7,0,8,21,"0","1"',
            "test_dia7_utt0",
            "Utterance holds a control character",
        ),
        ("cmu-mosei", "CMU_MOSEI_Labels.csv", "0,257771,0,0,0.05,0,0,0,1,0", "257771_0", "duplicate of 257771_0"),
        ("cmu-mosei", "CMU_MOSEI_Labels.csv", "0,a\x01b,0,0,0.05,0,0,0,1,0", r"a\x01b_0", "file holds a control"),
        (
            "crema-d",
            "processedResults/tabulatedVotes.csv",
            '"100099",1.5,0,0,0,0,0,"1006_IEO_ANG_XX",9,1,"A",50.5',
            "1006_IEO_ANG_XX",
            "count 1.5 is no whole number",
        ),
    ],
)
def test_row_with_a_fault_is_rejected_in_words(kind: str, table: str, row: str, key: str, reason: str, tmp_path: Path):
    make, read = READERS[kind]
    make(tmp_path)
    if kind == "crema-d":
        open_examples.record(tmp_path / "AudioWAV" / f"{key}.wav", 1)
    with open(tmp_path / table, "a") as file:
        file.write(f"\n{row}\n")
    rejected = [one.reason for one in read(tmp_path).utterances if isinstance(one, Rejected) and one.key == key]
    assert len(rejected) == 1
    assert reason in rejected[0]


def test_transcripts_of_mosei_may_be_absent_and_lines_without_an_interval_are_passed_over(tmp_path: Path):
    open_examples.cmu_mosei(tmp_path)
    text = tmp_path / "Raw" / "Transcript" / "Segmented" / "Combined" / "-3g5yACwYnA.txt"
    text.write_text("-3g5yACwYnA___9___soon___later___No interval.\n" + text.read_text())
    assert good(read_cmu_mosei(tmp_path))["-3g5yACwYnA_0"].transcript == "And so, that's it 0___"
    (tmp_path / "Raw" / "Transcript").rename(tmp_path / "other")
    assert good(read_cmu_mosei(tmp_path))["-3g5yACwYnA_0"].transcript == ""


def test_categories_of_crema_d_are_of_two_kinds(tmp_path: Path):
    open_examples.crema_d(tmp_path)
    with pytest.raises(ConfigError, match="categories 'heard': must be one of acted, voted"):
        read_crema_d(tmp_path, categories="heard")


@pytest.mark.parametrize("kind", ["crema-d", "esd"])
def test_audio_of_another_name_is_listed(kind: str, tmp_path: Path):
    make, read = READERS[kind]
    make(tmp_path)
    open_examples.record(tmp_path / ("AudioWAV" if kind == "crema-d" else "Emotion Speech Dataset") / "hello.wav", 1)
    assert [path.name for path in read(tmp_path).unnamed] == ["hello.wav"]


def test_speaker_of_esd_without_a_text_file_has_no_transcripts(tmp_path: Path):
    open_examples.esd(tmp_path)
    (tmp_path / "Emotion Speech Dataset" / "0012" / "0012.txt").unlink()
    transcripts = {key[:4]: one.transcript for key, one in good(read_esd(tmp_path)).items() if key.endswith("_000001")}
    assert (transcripts["0012"], transcripts["0013"]) == ("", "The nine the eggs, I keep.")


@pytest.mark.parametrize("rate", [16_000, 8_000])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_part_of_a_file_is_that_part_of_its_samples(rate: int, suffix: str, tmp_path: Path):
    path, cut = tmp_path / f"whole{suffix}", tmp_path / "cut.wav"
    noise = np.random.default_rng(0).integers(-3000, 3000, 4 * rate, dtype=np.int16)
    soundfile.write(path, noise, rate)
    soundfile.write(cut, noise[rate // 2 : 5 * rate // 4], rate)
    part, alone = decode_segment(path, (0.5, 1.25), max_duration_s=1.0), decode_audio(cut, max_duration_s=1.0)
    assert not isinstance(part, str)
    assert not isinstance(alone, str)
    np.testing.assert_array_equal(part.pcm16, alone.pcm16)
    assert (len(part.pcm16), part.resampled) == (12_000, rate != 16_000)


def test_part_may_end_a_little_after_its_file_and_not_far_after_it(tmp_path: Path):
    path = tmp_path / "one.wav"
    soundfile.write(path, np.ones(16_000, dtype=np.int16), 16_000)
    part = decode_segment(path, (0.75, 1.4), max_duration_s=1.0)
    assert not isinstance(part, str)
    assert len(part.pcm16) == 4_000
    assert (
        decode_segment(path, (0.75, 1.6), max_duration_s=1.0)
        == "lasts from 0.75 to 1.60 s, and its file ends at 1.00 s"
    )
    assert decode_segment(path, (0.0, 1.25), max_duration_s=1.0) == "lasts 1.2 s, more than 1 s"
    assert (
        decode_segment(path, (1.2, 1.4), max_duration_s=1.0) == "lasts from 1.20 to 1.40 s, and its file ends at 1.00 s"
    )
    assert decode_segment(tmp_path / "gone.wav", (0.0, 1.0), max_duration_s=1.0) == "the audio file is missing"
