"""The spoken demo corpus: what it plans, what it writes, and what the real reader makes of it."""

import ctypes
import hashlib
import json
import math
import signal
import sys
from _ctypes import dlclose
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.corpus import (
    SpokenConfig,
    make_spoken_corpus,
    plan_spoken_corpus,
    read_spoken_corpus,
)
from ccts_dist.corpus.demo import espeak, phrases, spoken
from ccts_dist.corpus.demo.espeak import Voice, synthesise
from ccts_dist.corpus.demo.speakers import SPEAKERS
from ccts_dist.corpus.demo.spoken import MARKER, wrong_keys
from ccts_dist.corpus.transcript_corruption import similarity
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.records import SAMPLE_RATE_HZ, Utterance

TINY = SpokenConfig(num_utterances=12, wrong_transcripts=0.5, seed=3)
VOICE = Voice(name="gmw/en-US+f1", rate_wpm=200, pitch=50, pitch_range=50)


@pytest.fixture(scope="module")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spoken") / "corpus"
    make_spoken_corpus(root, TINY, progress=False, num_processes=1)
    return root


def bytes_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.integration
def test_equal_configuration_gives_equal_bytes_on_one_and_on_two_processes(tiny_root, tmp_path):
    make_spoken_corpus(tmp_path / "again", TINY, progress=False, num_processes=2)
    again = bytes_of(tmp_path / "again")
    assert len(again) == 2 * 12 + 2 + 1
    assert again == bytes_of(tiny_root)


def test_real_reader_finds_what_the_generator_meant(tiny_root):
    corpus = read_spoken_corpus(tiny_root)
    assert (corpus.name, corpus.scale) == ("spoken-demo", (1.0, 7.0))
    lines = plan_spoken_corpus(TINY)
    assert len(lines) == len(corpus.utterances) == 12
    for line, read in zip(lines, corpus.utterances, strict=True):
        assert isinstance(read, Utterance)
        assert (read.key, read.split, read.transcript) == (line.key, line.split, line.transcript)
        assert (read.speaker, read.gender) == (str(line.speaker.number), line.speaker.gender)
        assert read.num_raters == 5
        for target in corpus.targets:
            ratings = [(getattr(rating, target) - 1) / 6 for rating in line.ratings]
            assert read.labels[target] == pytest.approx(np.mean(ratings), abs=1e-12)
            assert read.label_variance[target] == pytest.approx(np.var(ratings), abs=1e-12)


def test_waves_are_mono_16_bit_at_the_loudness_that_was_meant(tiny_root):
    for line in plan_spoken_corpus(TINY):
        path = tiny_root / "Audios" / f"{line.key}.wav"
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE_HZ, 1, "PCM_16")
        assert 0.5 < info.duration < 3.5
        wave, _ = soundfile.read(path)
        assert 20 * math.log10(np.sqrt(np.mean(wave**2))) == pytest.approx(line.loudness_dbfs, abs=0.05)
        assert np.abs(wave).max() < 0.9


def test_made_corpus_is_left_alone_when_asked_for_again(tiny_root):
    wave = next((tiny_root / "Audios").iterdir())
    before = wave.stat().st_mtime_ns
    make_spoken_corpus(tiny_root, TINY, progress=False, num_processes=1)
    assert wave.stat().st_mtime_ns == before


def test_folder_with_another_configuration_is_refused_with_what_differs(tiny_root):
    other = SpokenConfig(num_utterances=13, wrong_transcripts=0.5, seed=3)
    with pytest.raises(ConfigError, match=r"holds a spoken demo corpus with another num_utterances\. Delete it"):
        make_spoken_corpus(tiny_root, other, progress=False)


def test_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is there already and is no spoken demo corpus"):
        make_spoken_corpus(tmp_path, TINY, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_rest_of_a_killed_maker_is_made_anew(tmp_path):
    unfinished = tmp_path / ".c.unfinished-spoken-corpus" / "Audios"
    unfinished.mkdir(parents=True)
    (unfinished / "half.wav").touch()
    root = tmp_path / "c"
    root.mkdir()  # an empty folder is taken
    make_spoken_corpus(root, TINY, progress=False, num_processes=1)
    assert not unfinished.exists()
    assert not (root / "Audios" / "half.wav").exists()


def test_folder_without_a_marker_is_no_spoken_corpus(tmp_path):
    with pytest.raises(CorpusError, match=r"looked for spoken.json, which closes a complete spoken demo corpus"):
        read_spoken_corpus(tmp_path)


def test_speakers_differ_between_splits_and_each_split_has_both_genders():
    splits = {split: {s.voice for s in SPEAKERS if s.split == split} for split in ("Train", "Development", "Test1")}
    assert [len(voices) for voices in splits.values()] == [20, 5, 5]
    assert len(set().union(*splits.values())) == 30
    assert all({s.gender for s in SPEAKERS if s.split == split} == {"Female", "Male"} for split in splits)
    spoken = {(line.split, line.speaker.split) for line in plan_spoken_corpus(SpokenConfig(num_utterances=100))}
    assert spoken == {(split, split) for split in splits}


def test_same_share_of_transcripts_is_wrong_in_every_split():
    lines = plan_spoken_corpus(SpokenConfig(num_utterances=1000, wrong_transcripts=0.1))
    assert Counter(line.split for line in lines) == {"Train": 760, "Development": 120, "Test1": 120}
    wrong = Counter(line.split for line in lines if line.transcript != line.text)
    assert wrong == {"Train": 76, "Development": 12, "Test1": 12}
    texts = {line.text for line in lines}
    assert all(line.transcript in texts for line in lines)


@pytest.mark.parametrize(("fewer", "more"), [(0.0, 0.1), (0.05, 0.1), (0.1, 0.3), (0.3, 0.8)])
def test_greater_share_of_wrong_transcripts_changes_nothing_else_and_keeps_those_that_were_wrong(fewer, more):
    two = [plan_spoken_corpus(SpokenConfig(num_utterances=400, wrong_transcripts=share)) for share in (fewer, more)]
    for line, other in zip(*two, strict=True):
        assert replace(line, transcript="") == replace(other, transcript="")
        if line.transcript != line.text:
            assert other.transcript == line.transcript
    wrong = Counter(line.split for line in two[1] if line.transcript != line.text)
    assert wrong == {split: round(more * num) for split, num in (("Train", 304), ("Development", 48), ("Test1", 48))}


def misheard(**changes) -> SpokenConfig:
    return SpokenConfig(num_utterances=400, wrong_transcripts=0.3, transcript_errors="misheard", **changes)


def test_misheard_words_sound_like_those_that_were_said():
    lines = plan_spoken_corpus(misheard())
    sounds = espeak.phonemes_of(phrases.all_words())
    assert sounds["sad"] == "sæd"
    pairs = [
        (said, read)
        for line in lines
        for said, read in zip(line.text.split(), line.transcript.split(), strict=True)
        if said != read
    ]
    alike = np.mean([similarity(sounds[said], sounds[read]) for said, read in pairs])
    chance = np.mean([similarity(one, other) for one in sounds.values() for other in sounds.values() if one != other])
    assert alike > 2 * chance
    assert len({read for _, read in pairs}) > 40, "more than a few words take their place"


def test_the_same_transcripts_are_misheard_that_would_be_shuffled_and_nothing_else_changes():
    shuffled = plan_spoken_corpus(replace(misheard(), transcript_errors="shuffled"))
    fewer = plan_spoken_corpus(replace(misheard(), wrong_transcripts=0.1))
    lines = plan_spoken_corpus(misheard())
    for line, other, less in zip(lines, shuffled, fewer, strict=True):
        assert replace(line, transcript="") == replace(other, transcript="")
        assert (line.transcript != line.text) == (other.transcript != other.text)
        assert less.transcript in (line.text, line.transcript)
    wrong = Counter(line.split for line in lines if line.transcript != line.text)
    assert wrong == {"Train": 91, "Development": 14, "Test1": 14}


def test_similarity_by_hand():
    # Two of three sounds in common, counted twice, over all six.
    assert similarity("sæd", "bæd") == pytest.approx(4 / 6)
    assert similarity("sæd", "") == 0


def test_kind_of_errors_is_part_of_a_corpus(tmp_path):
    root = tmp_path / "misheard"
    made = make_spoken_corpus(root, replace(TINY, transcript_errors="misheard"), progress=False, num_processes=1)
    assert len(wrong_keys(root)) == 5
    assert {one.key for one in made.utterances} == {line.key for line in plan_spoken_corpus(TINY)}
    with pytest.raises(ConfigError, match="holds a spoken demo corpus with another transcript_errors"):
        make_spoken_corpus(root, TINY, progress=False)


@pytest.mark.integration
def test_usual_corpus_is_the_one_whose_results_are_published():
    """It may change, but not by accident: then the figures of launch/runs/demo/README.md are of another corpus."""
    planned = repr(plan_spoken_corpus(SpokenConfig(num_utterances=4000))).encode()
    assert hashlib.sha256(planned).hexdigest().startswith("2103ca52dbcc1b1e")


def test_keys_with_wrong_transcripts_are_known_from_the_folder(tiny_root):
    lines = plan_spoken_corpus(TINY)
    assert wrong_keys(tiny_root) == {line.key for line in lines if line.transcript != line.text}
    assert len(wrong_keys(tiny_root)) == 5  # half of 9, and of 1 and 2


def test_audio_and_labels_are_the_same_bytes_at_every_share_of_wrong_transcripts(tiny_root, tmp_path):
    make_spoken_corpus(tmp_path / "right", replace(TINY, wrong_transcripts=0.0), progress=False, num_processes=1)
    right, half = bytes_of(tmp_path / "right"), bytes_of(tiny_root)
    differing = {name for name in right.keys() | half.keys() if right.get(name) != half.get(name)}
    assert differing == {MARKER, *(f"Transcripts/{key}.txt" for key in wrong_keys(tiny_root))}


def test_corpus_of_another_share_made_by_an_earlier_generator_is_refused(tmp_path):
    root = tmp_path / "old"
    root.mkdir()
    (root / MARKER).write_text(json.dumps({"generator": 1, **asdict(TINY)}))
    with pytest.raises(ConfigError, match="holds a spoken demo corpus with another generator"):
        make_spoken_corpus(root, TINY, progress=False)


def test_ratings_follow_words_for_valence_and_voice_for_activation_and_dominance():
    lines = plan_spoken_corpus(SpokenConfig(num_utterances=2000))
    lexicon = phrases.read_lexicon()
    rated = {t: [np.mean([getattr(r, t) for r in line.ratings]) for line in lines] for t in ("valence", "activation")}
    rated["dominance"] = [np.mean([rating.dominance for rating in line.ratings]) for line in lines]
    meant = {
        "words": [np.mean([lexicon[word] for word in line.text.split() if word in lexicon]) for line in lines],
        "pitch range": [line.voice.pitch_range for line in lines],
        "loudness": [line.loudness_dbfs for line in lines],
    }
    correlation = {(m, r): abs(np.corrcoef(meant[m], rated[r])[0, 1]) for m in meant for r in rated}
    carried = {("words", "valence"), ("pitch range", "activation"), ("loudness", "dominance")}
    assert min(correlation[pair] for pair in carried) > 0.9
    assert max(correlation[pair] for pair in correlation.keys() - carried) < 0.08


def test_carrier_words_have_no_valence():
    lexicon = phrases.read_lexicon()
    templates = " ".join((*phrases.ONE_WORD, *phrases.TWO_WORDS, *phrases.NOUNS, *phrases.TIMES))
    carriers = [word for word in templates.split() if not word.startswith("{")]
    assert carriers
    assert [word for word in carriers if word in lexicon] == []


@given(half=st.integers(1, 64))
def test_chosen_words_are_half_positive_and_half_negative(half):
    words = phrases.choose_words(2 * half, phrases.read_lexicon())
    assert len(words) == 2 * half
    assert sum(valence > 0 for valence in words.values()) == sum(valence < 0 for valence in words.values()) == half


@pytest.mark.parametrize("num_words", [0, 1, 25, 130])
def test_number_of_words_off_its_range_is_refused(num_words):
    with pytest.raises(ConfigError, match=rf"num_words={num_words}: must be an even number from 2 to 128"):
        plan_spoken_corpus(SpokenConfig(num_words=num_words))


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"num_utterances": 11}, "num_utterances=11 must be at least 12"),
        ({"wrong_transcripts": 1.5}, "wrong_transcripts=1.5 must be between 0 and 1"),
        ({"two_words": -0.1}, "two_words=-0.1 must be between 0 and 1"),
        ({"rate_wpm": 500}, "rate_wpm=500 must be between 120 and 300"),
        ({"num_raters": 0}, "num_raters=0 must be between 1 and 40"),
        ({"rater_noise": math.nan}, "rater_noise=nan must be at least 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
    ],
)
def test_setting_off_its_range_is_refused(setting, rule):
    with pytest.raises(ConfigError, match=rule):
        SpokenConfig(**setting)


def test_sentence_sounds_the_same_whatever_was_reported_before():
    first, rate_hz = synthesise("the train was awful today", VOICE)
    synthesise("so great and weird at noon", Voice(name="gmw/en+m3", rate_wpm=300, pitch=90, pitch_range=5))
    again, _ = synthesise("the train was awful today", VOICE)
    assert rate_hz == 22050
    assert np.array_equal(first, again)


def test_faster_rate_makes_a_shorter_wave():
    slow, _ = synthesise("the train was awful today", VOICE)
    fast, _ = synthesise("the train was awful today", Voice(name=VOICE.name, rate_wpm=300, pitch=50, pitch_range=50))
    assert len(fast) < 0.8 * len(slow)


def test_unknown_voice_is_refused():
    with pytest.raises(CorpusError, match="eSpeak NG has no voice gmw/nobody"):
        synthesise("hello", Voice(name="gmw/nobody", rate_wpm=200, pitch=50, pitch_range=50))


def test_text_without_sound_is_refused():
    with pytest.raises(CorpusError, match="eSpeak NG gave no sound for ''"):
        synthesise("", VOICE)


def test_library_that_something_else_holds_is_refused():
    held = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        with pytest.raises(CorpusError, match="is in use elsewhere in this process and would keep its state"):
            synthesise("hello", VOICE)
    finally:
        dlclose(held._handle)
    synthesise("hello", VOICE)  # the refused call has left no handle of its own open


@pytest.mark.parametrize(
    ("package", "use"),
    [("espeakng_loader", lambda: synthesise("hello", VOICE)), ("vaderSentiment.vaderSentiment", phrases.read_lexicon)],
)
def test_missing_package_names_the_extra_that_brings_it(monkeypatch, package, use):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'ccts-dist\[demo\]'"):
        use()


def test_parameter_that_espeak_does_not_know_is_refused(monkeypatch):
    monkeypatch.setattr(espeak, "_RATE", 99)
    with pytest.raises(CorpusError, match="eSpeak NG refuses 200 for its parameter 99"):
        synthesise("hello", VOICE)


def test_sentence_that_espeak_cannot_speak_is_refused():
    with pytest.raises(CorpusError, match=r"eSpeak NG cannot speak 'hello' in voice gmw/en-US\+f1"):
        espeak._speak(_Mute(None), "hello", VOICE)


class _Mute(ctypes.CDLL):
    """A library that takes every setting and fails to speak; the real one does so only when it runs out of memory."""

    def __getattr__(self, name: str):  # pyright: ignore[reportIncompatibleMethodOverride]
        return lambda *_: -1 if name == "espeak_Synth" else 0


def test_espeak_without_its_data_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(CorpusError, match=r"eSpeak NG does not start with its data in .*: reinstall it"):
        synthesise("hello", VOICE)


def test_death_of_a_speaking_process_is_reported():
    with pytest.raises(CorpusError, match="a process of the speech synthesis died"), spoken._mapper(2) as each:
        list(each(signal.raise_signal, [signal.SIGKILL, signal.SIGKILL]))
