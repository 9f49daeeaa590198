"""The filter bank and its small encoder."""

import copy
import math

import pytest
import torch
import torchaudio

from ccts_dist.config import FilterbankConfig, ModelConfig, SpeechConfig
from ccts_dist.model import build_model, describe, load_model, parameter_groups, save_model
from ccts_dist.model.speech.filterbank import FFT_SIZE, Filterbank, _window_and_bands
from ccts_dist.train.memory.activations import BatchShape, trace_peak
from tests.helpers.models.model_shapes import utterances

ENERGIES = FilterbankConfig(channels=())
SHORTEST = 12 * 160 + 400  # 5 frames for the second convolution, 13 for the first


def config(**changes) -> ModelConfig:
    speech = SpeechConfig(encoder="filterbank", gru_hidden=16, **changes)
    return ModelConfig(embedding_dim=8, speech=speech)


def build(**changes):
    torch.manual_seed(0)
    return build_model(config(**changes))


@pytest.mark.parametrize("bins", [8, 40, 80, 128])
def test_bands_are_those_of_torchaudio_and_none_is_empty(bins):
    _, bands = _window_and_bands(FilterbankConfig(num_mel_bins=bins), torch.device("cpu"))
    theirs = torchaudio.functional.melscale_fbanks(FFT_SIZE // 2 + 1, 0.0, 8_000.0, bins, 16_000, mel_scale="htk")
    torch.testing.assert_close(bands, theirs, atol=1e-4, rtol=0)
    assert (bands.sum(dim=0) > 0).all()


def test_energy_of_silence_and_of_a_tone_by_hand():
    bank = Filterbank(ENERGIES)
    assert torch.equal(bank(torch.zeros(1, 400)), torch.full((1, 1, 40), (math.log10(1e-8) + 4) / 4))
    # A tone on the 64th point of the spectrum: half its amplitude times the window's sum, 200, squared.
    time = torch.arange(400) / 16_000
    tone = bank(0.1 * torch.cos(2 * math.pi * 1_000 * time)[None])[0, 0]
    _, bands = _window_and_bands(ENERGIES, torch.device("cpu"))
    strongest = int(bands[64].argmax())
    assert int(tone.argmax()) == strongest
    at_least = (math.log10((0.5 * 0.1 * 200) ** 2 * float(bands[64, strongest])) + 4) / 4
    assert at_least <= float(tone[strongest]) <= at_least + 0.25  # the window spreads the rest over its neighbours


def test_frames_by_hand():
    bank = Filterbank(ENERGIES)
    assert bank.num_frames(torch.tensor([400, 559, 560, 16_000])).tolist() == [1, 1, 2, 98]
    assert bank(torch.zeros(1, 16_000)).shape == (1, 98, 40)
    deep = Filterbank(FilterbankConfig())
    assert deep.samples_for_one_frame() == SHORTEST
    assert deep.num_frames(torch.tensor([SHORTEST, 16_000])).tolist() == [1, 22]  # 98 -> 47 -> 22
    assert deep(torch.zeros(1, 16_000)).shape == (1, 22, 64)


@pytest.mark.parametrize("do_normalize", ["on", "off"])
@pytest.mark.parametrize("pooling", ["gru", "statistics", "self-attention"])
def test_predictions_are_the_same_alone_and_in_a_batch(pooling, do_normalize):
    model = build(pooling=pooling, do_normalize=do_normalize).eval()
    lengths = [1, 300, SHORTEST, 4_000, 16_000, 9_001]
    audio, num_samples = utterances(lengths)
    dirty = audio.clone()
    dirty[3, 4_000:] = 7.0
    with torch.no_grad():
        together = model(dirty, num_samples).prediction
        alone = [model(audio[i : i + 1, :n], num_samples[i : i + 1]).prediction for i, n in enumerate(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert together.std(dim=0).min() > 1e-4


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"num_mel_bins": 20}, (1, 22, 64)),
        ({"frame_length_ms": 50.0}, (1, 21, 64)),  # (16,000 - 800) // 160 + 1 = 96 -> 46 -> 21
        ({"frame_shift_ms": 20.0}, (1, 10, 64)),  # 49 -> 23 -> 10
        ({"channels": (8, 16, 24)}, (1, 9, 24)),  # 98 -> 47 -> 22 -> 9
        ({"kernel": 3}, (1, 23, 64)),  # 98 -> 48 -> 23
        ({"stride": 1}, (1, 90, 64)),
    ],
)
def test_each_key_of_its_table_does_what_it_states(change, shape):
    bank = Filterbank(FilterbankConfig(**change))
    assert bank(torch.zeros(1, 16_000)).shape == shape
    assert bank.convolutions[0].in_channels == change.get("num_mel_bins", 40)


def test_loudness_is_read_unless_it_is_normalised():
    audio, num_samples = utterances([8_000])
    for do_normalize, received in (("auto", True), ("off", True), ("on", False)):
        branch = build(do_normalize=do_normalize, pooling="mean").eval().speech
        with torch.no_grad():
            off = (branch(4 * audio, num_samples) - branch(audio, num_samples)).abs().max()
        assert bool(off > 1e-3) is received, do_normalize


def test_it_is_trained_as_a_speech_encoder_and_all_of_it():
    model = build()
    model(*utterances([8_000, 5_000])).prediction.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    groups = parameter_groups(model)
    assert {id(p) for p in groups["speech"]} == {id(p) for p in model.speech.encoder.parameters()}
    convolutions = 64 * 40 * 5 + 64 + 64 * 64 * 5 + 64
    assert sum(p.numel() for p in groups["speech"]) == convolutions
    assert describe(model)["speech"].parameters < 50_000


def test_bands_stay_float32_in_a_bfloat16_model():
    model = build(filterbank=FilterbankConfig(channels=()), pooling="mean")
    audio, num_samples = utterances([8_000])
    expected = model.speech(audio, num_samples)
    assert torch.equal(model.bfloat16().speech(audio, num_samples), expected)


def test_it_comes_back_from_its_folder_and_can_be_copied(tmp_path):
    model = build(filterbank=FilterbankConfig(num_mel_bins=20, channels=(8,))).eval()
    save_model(
        tmp_path / "m", model.state_dict(), model.config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={}
    )
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["model.json", "model.safetensors"]
    batch = utterances([8_000, 5_000])
    loaded = load_model(tmp_path / "m")
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded.model(*batch).prediction, model(*batch).prediction)
        assert torch.equal(copy.deepcopy(model)(*batch).prediction, model(*batch).prediction)


@pytest.mark.parametrize("training", [True, False])
def test_its_memory_can_be_foreseen(training):
    shape = BatchShape(rows=2, samples=16_000)
    peaks = [
        trace_peak(
            config(pooling=pooling), build().encoder_configs, shape, precision="fp32", training=training, on_gpu=False
        )
        for pooling in ("mean", "gru")
    ]
    assert all(peak is not None and peak > 2 * 16_000 * 4 for peak in peaks)
