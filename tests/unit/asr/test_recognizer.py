"""Real small models of every family: words, confidence, windows, and the same answer in any batch."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ccts_dist.asr.models import ctc_symbols, written_tokens
from ccts_dist.asr.recognizer import Recognizer, Words, cut_windows, load_recognizer
from ccts_dist.errors import ConfigError
from tests.helpers.models.small_recognizers import SYMBOLS, chirps, save_ctc, save_moonshine, save_whisper

MODELS: dict[str, Callable[[Path], Path]] = {
    "wav2vec2, layer norm": save_ctc,
    "wav2vec2, group norm": lambda folder: save_ctc(folder, norm="group"),
    "wav2vec2 with adapter": lambda folder: save_ctc(folder, add_adapter=True, output_hidden_size=16),
    "hubert, layer norm": lambda folder: save_ctc(folder, kind="hubert"),
    "hubert, group norm": lambda folder: save_ctc(folder, kind="hubert", norm="group"),
    "hubert, batch norm": lambda folder: save_ctc(folder, kind="hubert", conv_pos_batch_norm=True),
    "wavlm": lambda folder: save_ctc(folder, kind="wavlm"),
    "unispeech": lambda folder: save_ctc(folder, kind="unispeech"),
    "unispeech-sat": lambda folder: save_ctc(folder, kind="unispeech-sat"),
    "data2vec-audio": lambda folder: save_ctc(folder, kind="data2vec-audio"),
    "wav2vec2-conformer": lambda folder: save_ctc(folder, kind="wav2vec2-conformer"),
    "whisper": save_whisper,
    "whisper, English only": lambda folder: save_whisper(folder, many_languages=False),
    "moonshine": save_moonshine,
}
LENGTHS = (4_000, 8_000, 12_345, 16_000, 16_000, 30_000, 70_000)


def load(folder: Path, **choices) -> Recognizer:
    return load_recognizer(str(folder), **({"device": "cpu"} | choices))


def words(transcripts: Words | str) -> Words:
    assert isinstance(transcripts, Words)
    return transcripts


@pytest.mark.integration
@pytest.mark.parametrize("kind", MODELS)
def test_an_utterance_is_read_the_same_alone_and_in_any_batch(kind: str, tmp_path: Path):
    recognizer = load(MODELS[kind](tmp_path / "model"), batch_seconds=20)
    waves = [chirps(length, seed=length) for length in LENGTHS]
    alone = [words(recognizer.transcribe([wave])[0]) for wave in waves]
    together = [words(one) for one in recognizer.transcribe(waves)]
    backwards = [words(one) for one in recognizer.transcribe(waves[::-1])][::-1]
    assert len({one.transcript for one in alone}) > 4
    for other in (together, backwards):
        assert [one.transcript for one in other] == [one.transcript for one in alone]
        np.testing.assert_allclose(
            [one.confidence for one in other], [one.confidence for one in alone], rtol=0, atol=1e-5
        )


def test_a_model_read_twice_is_the_same_model(tmp_path: Path):
    folder = save_ctc(tmp_path / "model")
    assert load(folder).digest == load(folder).digest
    assert load(folder).name == "model"


def test_other_weights_are_another_model(tmp_path: Path):
    first, second = (load(save_ctc(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert first.digest != second.digest


def test_the_old_spelling_of_weight_norm_gives_the_same_model(tmp_path: Path):
    folder = save_ctc(tmp_path / "model")
    digest = load(folder).digest
    weights = load_file(folder / "model.safetensors")
    old = {name.replace("parametrizations.weight.original0", "weight_g"): tensor for name, tensor in weights.items()}
    old = {name.replace("parametrizations.weight.original1", "weight_v"): tensor for name, tensor in old.items()}
    assert old.keys() != weights.keys()
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder).digest == digest


def test_ctc_confidence_is_the_mean_probability_of_the_frames_that_are_not_blank():
    # Blank 0. Most probable per frame: 1 (0.6), 1 (0.8), blank (0.9), 1 (0.5), 2 (0.7).
    probabilities = [[0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.9, 0.05, 0.05], [0.3, 0.5, 0.2], [0.2, 0.1, 0.7]]
    symbols, total, count = ctc_symbols(torch.tensor(probabilities).log() + 3.0, 0)
    assert symbols == [1, 1, 2]
    assert total == pytest.approx(0.6 + 0.8 + 0.5 + 0.7)
    assert count == 4


def test_ctc_of_blanks_alone_reads_nothing():
    assert ctc_symbols(torch.tensor([[5.0, 0.0], [5.0, 0.0]]), 0) == ([], 0.0, 0)


def test_written_confidence_counts_the_end_and_nothing_after_it():
    # Token 3 ends the text. Probabilities of what was written: 0.5, 0.25, 0.8; then filling.
    probabilities = [[0.5, 0.2, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25], [0.1, 0.05, 0.05, 0.8], [0.97, 0.01, 0.01, 0.01]]
    tokens, total, count = written_tokens(torch.tensor(probabilities).log(), torch.tensor([0, 1, 3, 3]), frozenset({3}))
    assert tokens == [0, 1]
    assert total == pytest.approx(math.log(0.5 * 0.25 * 0.8))
    assert count == 3


def test_a_text_without_end_counts_all_it_has():
    tokens, total, count = written_tokens(torch.zeros(2, 4), torch.tensor([1, 2]), frozenset({3}))
    assert (tokens, count) == ([1, 2], 2)
    assert total == pytest.approx(2 * math.log(0.25))


def test_what_may_not_be_written_takes_no_share_of_the_probability():
    _, total, _ = written_tokens(torch.tensor([[0.0, 0.0, -math.inf, 0.0]]), torch.tensor([0]), frozenset({3}))
    assert total == pytest.approx(math.log(1 / 3))


def test_ctc_keeps_double_letters_that_a_blank_parts(tmp_path: Path, monkeypatch):
    recognizer = load(save_ctc(tmp_path / "model"))
    printed = [SYMBOLS.index(one) for one in ("h", "h", "e", "l", "<pad>", "l", "o", "|", "|", "<unk>", "s")]
    asr_model = recognizer._asr_model
    logits = torch.nn.functional.one_hot(torch.tensor(printed), len(SYMBOLS)).float() * 100
    monkeypatch.setattr(asr_model, "pieces", lambda waves: [asr_model._piece(logits) for _ in waves])
    transcripts = words(recognizer.transcribe([chirps(4_000, seed=0)])[0])
    assert transcripts.transcript == "hello s"
    assert transcripts.confidence == pytest.approx(1.0)


@pytest.mark.parametrize("save", [save_ctc, save_whisper])
def test_confidence_of_a_long_recording_is_that_of_its_windows_together(save: Callable[[Path], Path], tmp_path: Path):
    recognizer = load(save(tmp_path / "model"))
    asr_model = recognizer._asr_model
    asr_model.window_samples = 32_000
    wave = chirps(100_000, seed=3)
    with torch.inference_mode():
        pieces = [piece for window in cut_windows(wave, 32_000) for piece in asr_model.pieces([window])]
    assert len(pieces) == 4
    total, count = sum(piece.total for piece in pieces), sum(piece.count for piece in pieces)
    transcripts = words(recognizer.transcribe([wave])[0])
    mean = total / count
    assert transcripts.confidence == pytest.approx(math.exp(mean) if save is save_whisper else mean, abs=1e-5)
    if save is save_ctc:
        assert transcripts.transcript.split() == " ".join(piece.transcript for piece in pieces).split()


def test_whisper_reads_its_own_window_at_once(tmp_path: Path):
    assert load(save_whisper(tmp_path / "model"))._asr_model.window_samples == 2 * 16_000


def test_control_characters_do_not_come_through(tmp_path: Path):
    recognizer = load(save_whisper(tmp_path / "model"))
    printed = [words(one).transcript for one in recognizer.transcribe([chirps(9_000, seed=seed) for seed in range(20)])]
    assert any(printed)
    assert not any(ord(one) < 32 or 127 <= ord(one) < 160 for text in printed for one in text)


def test_whisper_without_a_limit_of_its_own_writes_more_than_twenty_tokens(tmp_path: Path):
    recognizer = load(save_whisper(tmp_path / "model", max_length=None))
    counts = [recognizer._asr_model.pieces([chirps(16_000, seed=seed)])[0].count for seed in range(10)]
    assert max(counts) > 20


def test_the_language_that_is_asked_for_is_read(tmp_path: Path):
    folder = save_whisper(tmp_path / "model")
    waves = [chirps(16_000, seed=seed) for seed in range(8)]
    by_code, by_name, german = (load(folder, language=one).transcribe(waves) for one in ("en", "English", "de"))
    assert by_code == by_name
    assert by_code != german


def test_a_wave_shorter_than_a_frame_is_named_and_the_others_are_read(tmp_path: Path):
    recognizer = load(save_ctc(tmp_path / "model"))  # kernels 40 and 20, strides 20 and 16: 40 + 19 * 20 samples
    transcripts = recognizer.transcribe([chirps(419, seed=0), chirps(4_000, seed=1)])
    assert transcripts[0] == "lasts 419 samples at 16000 Hz, fewer than the recognizer's first frame (420)"
    assert words(transcripts[1]) == words(recognizer.transcribe([chirps(4_000, seed=1)])[0])


def test_silence_is_read_as_something(tmp_path: Path):
    transcripts = words(load(save_ctc(tmp_path / "model")).transcribe([np.zeros(8_000, np.float32)])[0])
    assert 0 <= transcripts.confidence <= 1


def test_a_wave_is_cut_in_the_middle_of_its_pause():
    wave = np.ones(48_000, np.float32)
    wave[20_000:24_000] = 0  # longer than the 3,200 samples that are looked at; the earliest such place is taken
    first, second = cut_windows(wave, 32_000)
    assert len(first) == 20_000 + 1_600
    assert len(second) == 48_000 - 21_600


@given(st.integers(1, 5_000), st.integers(100, 700), st.integers(0, 3))
def test_windows_are_the_wave_and_neither_too_long_nor_too_short(num_samples: int, most: int, seed: int):
    wave = np.random.default_rng(seed).normal(size=num_samples).astype(np.float32)
    windows = cut_windows(wave, most)
    assert np.array_equal(np.concatenate(windows), wave)
    assert all(len(window) <= most for window in windows)
    assert len(windows) == 1 or all(len(window) >= 0.3 * most for window in windows)


@given(st.lists(st.integers(420, 4_000), max_size=30), st.booleans())
def test_passes_hold_every_window_once_within_the_limit(lengths: list[int], pads: bool):
    recognizer = Recognizer(_Deaf(pads), name="", digest="", language=None, batch_seconds=0.5)
    batches = list(recognizer._batches(lengths))
    assert sorted(at for taken in batches for at in taken) == list(range(len(lengths)))
    for taken in batches:
        assert len(taken) == 1 or len(taken) * max(lengths[at] for at in taken) <= 8_000
        assert pads or len({lengths[at] for at in taken}) == 1


class _Deaf:
    """Takes waves, transcribes nothing."""

    window_samples, min_samples = 4_000, 1

    def __init__(self, pads: bool) -> None:
        self.pads = pads

    def pieces(self, waves):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def confidence(self, total: float, count: int) -> float:
        return 1.0


def test_a_batch_that_does_not_fit_states_which_option_to_lower():
    recognizer = Recognizer(_Deaf(True), name="", digest="", language=None, batch_seconds=9)
    with pytest.raises(ConfigError, match=r"2 windows of up to 0.2 s do not fit .*batch_seconds=9.*--batch-seconds"):
        recognizer.transcribe([chirps(3_200, seed=0)] * 2)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_batch_of_no_seconds_is_refused(seconds: float):
    with pytest.raises(ConfigError, match=r"batch_seconds=.*above 0"):
        load_recognizer("anywhere", batch_seconds=seconds)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused(device: str):
    with pytest.raises(ConfigError, match=rf"device '{device}' cannot be used .*--device"):
        load_recognizer("anywhere", device=device)


def test_damaged_weights_are_found_by_what_they_state(tmp_path: Path):
    folder = save_ctc(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.bias"][1] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="gives numbers that are not finite"):
        load(folder).transcribe([chirps(4_000, seed=0)])


def test_an_encoder_that_never_learnt_to_recognise_is_refused(tmp_path: Path):
    folder = save_ctc(tmp_path / "model")
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "head" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"no weights for lm_head.bias and 1 more.*not trained to recognise"):
        load(folder)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_for_another_sample_rate_is_refused(tmp_path: Path):
    folder = save_ctc(tmp_path / "model")
    edit(folder / "preprocessor_config.json", sampling_rate=8_000)
    with pytest.raises(ConfigError, match="transcribes audio of 8000 Hz: must be 16000"):
        load(folder)


def test_a_model_of_another_kind_is_refused(tmp_path: Path):
    folder = save_ctc(tmp_path / "model")
    edit(folder / "config.json", model_type="bert")
    with pytest.raises(ConfigError, match=r"is of type 'bert': must be one of data2vec-audio, hubert"):
        load(folder)


@pytest.mark.parametrize("lost", ["config.json", "preprocessor_config.json", "model.safetensors", "vocab.json"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path, lost: str):
    folder = save_ctc(tmp_path / "model")
    (folder / lost).unlink()
    with pytest.raises(ConfigError, match=r"transformers cannot load it: .*Name a folder"):
        load(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no such folder.*--model"):
        load(tmp_path / "none")


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path):
    folder = save_ctc(tmp_path / "model")
    (folder / "own.py").write_text("raise SystemExit('ran')")
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(ConfigError, match="transformers cannot load it"):
        load(folder)


def test_a_tokenizer_without_blank_is_refused(tmp_path: Path):
    folder = save_ctc(tmp_path / "model")
    edit(folder / "tokenizer_config.json", pad_token=None)
    with pytest.raises(ConfigError, match="without a pad token, CTC's blank"):
        load(folder)


@pytest.mark.parametrize("save", [save_ctc, save_moonshine, lambda folder: save_whisper(folder, many_languages=False)])
def test_a_model_of_one_language_takes_no_other(save: Callable[[Path], Path], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"language 'de': model .* has one language and takes no --language"):
        load(save(tmp_path / "model"), language="de")


def test_a_language_the_model_does_not_know_is_refused_with_those_it_knows(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"language 'fr': .* knows de, en\. Name one"):
        load(save_whisper(tmp_path / "model"), language="fr")
