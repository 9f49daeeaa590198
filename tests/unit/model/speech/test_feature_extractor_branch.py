"""Encoders that take input from a feature extractor: Whisper, w2v-BERT, and two that the library does not know."""

import shutil

import pytest
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel, AutoFeatureExtractor, EncodecFeatureExtractor

from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.config.augment import SpecAugmentConfig
from ccts_dist.errors import CheckpointError, ConfigError
from ccts_dist.model import build_model, load_model, save_model
from ccts_dist.train.memory.activations import BatchShape, trace_peak
from ccts_dist.train.zero.ds_config import check_calls
from tests.helpers.models.model_shapes import EXTRACTED_FAMILIES, most_calls, save_extracted_encoder, utterances
from tests.tiers import with_long
from tests.unit.train.memory.test_activations import allocated_peak

FAMILIES = with_long(("whisper", "w2v-bert"), sorted(EXTRACTED_FAMILIES))
UNKNOWN = ["moonshine", "parakeet"]
LENGTHS = [9_000, 16_000, 4_000, 12_345]


def config(folder, family, *, checkpointing=False, **changes) -> ModelConfig:
    if not (folder / family).exists():
        save_extracted_encoder(folder / family, family)
    torch.manual_seed(0)
    speech = SpeechConfig(encoder=str(folder / family), **{"gru_hidden": 16} | changes)
    return ModelConfig(embedding_dim=8, gradient_checkpointing=checkpointing, speech=speech)


def build(folder, family, **changes):
    return build_model(config(folder, family, **changes))


def transformers_own(folder, family, encoder, samples):
    """The real frames of one utterance as transformers' documentation gets them."""
    given = AutoFeatureExtractor.from_pretrained(folder / family)(
        samples.numpy(), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        output = encoder(**given, output_hidden_states=True)
    return [*output.hidden_states[:-1], output.last_hidden_state]


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_those_that_transformers_gives(tmp_path, family):
    encoder = save_extracted_encoder(tmp_path / family, family)
    branch = build(tmp_path, family).eval().speech
    audio, num_samples = utterances([16_000, 16_000])
    with torch.no_grad():
        frames, num_frames = branch.encode(audio, num_samples)
        layers = branch.layer_frames(audio, num_samples)
    expected = transformers_own(tmp_path, family, encoder, audio[1])
    # Whisper's come every 20 ms, as w2v-BERT's do from windows of 25 + 10; 384 samples each, and every 80 ms.
    assert (
        num_frames.tolist()
        == {"whisper": [50] * 2, "w2v-bert": [49] * 2, "moonshine": [40] * 2, "parakeet": [13] * 2}[family]
    )
    torch.testing.assert_close(frames[1:], expected[-1])
    assert len(layers) == 3
    for ours, theirs in zip(layers, expected, strict=True):
        torch.testing.assert_close(ours.frames[1:], theirs)
    assert frames.std() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_the_same_alone_and_in_a_batch(tmp_path, family):
    model = build(tmp_path, family, pooling="attentive-statistics").eval()
    lengths = [*LENGTHS, 500, 40_000]
    audio, num_samples = utterances(lengths)
    audio[0, lengths[0] :] = 7.0  # what stands in the padding is not read
    with torch.no_grad():
        together = model(audio, num_samples).prediction
        alone = [model(audio[i : i + 1, :n], num_samples[i : i + 1]).prediction for i, n in enumerate(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert together.std(dim=0).min() > 1e-4  # else equality would state nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_do_not_see_padding_whether_layers_are_recomputed_or_not(tmp_path, family):
    def gradients(model, rows):
        model.zero_grad()
        sum(model(audio[i, : num_samples[i].max()], num_samples[i]).prediction.sum() for i in rows).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    audio, num_samples = utterances([9_000, 14_000])
    plain = build(tmp_path, family, pooling="mean").double()
    together = gradients(plain, [slice(0, 2)])
    recomputed = build(tmp_path, family, pooling="mean", checkpointing=True).double()
    assert most_calls(plain.speech.encoder, lambda: gradients(plain, [slice(0, 2)])) * 2 == most_calls(
        recomputed.speech.encoder, lambda: gradients(recomputed, [slice(0, 2)])
    )
    for other in (gradients(plain, [slice(0, 1), slice(1, 2)]), gradients(recomputed, [slice(0, 2)])):
        for name, gradient in together.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-8, rtol=1e-5, msg=name)


def test_what_an_extractor_states_of_padding_and_noise_does_not_reach_the_frames(tmp_path):
    settings = {"w2v-bert": {"padding_side": "left", "return_attention_mask": False}, "whisper": {"dither": 0.01}}
    audio, num_samples = utterances(LENGTHS)
    for family, changes in settings.items():
        plain, _ = build(tmp_path, family).eval().speech.encode(audio, num_samples)
        extractor = AutoFeatureExtractor.from_pretrained(tmp_path / family)
        for name, value in changes.items():
            assert hasattr(extractor, name)
            setattr(extractor, name, value)
        extractor.save_pretrained(tmp_path / family)
        changed, _ = build(tmp_path, family).eval().speech.encode(audio, num_samples)
        torch.testing.assert_close(changed, plain)


def test_longer_audio_than_whisper_reads_at_once_is_read_in_pieces(tmp_path):
    encoder = save_extracted_encoder(tmp_path / "whisper", "whisper")
    branch = build(tmp_path, "whisper").eval().speech
    audio, num_samples = utterances([40_000, 100, 16_001])
    with torch.no_grad():
        frames, num_frames = branch.encode(audio, num_samples)
    # 2.5 pieces of 50 frames; 4,000 samples at least, of 320 each; a second and a frame of which one sample is real.
    assert num_frames.tolist() == [125, 13, 51]
    pieces = [transformers_own(tmp_path, "whisper", encoder, piece)[-1][0] for piece in audio[0].split(16_000)]
    torch.testing.assert_close(frames[0], torch.cat(pieces)[:125])


@pytest.mark.parametrize("trainable", ["none", "top:1", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_just_what_is_named_is_trained_and_all_of_it_gets_a_gradient(tmp_path, family, trainable):
    model = build(tmp_path, family, trainable=trainable)
    names = [name for name, _ in model.speech.encoder.named_parameters()]
    top = ("encoder.layers.1.", "layers.1.", "layer_norm.")  # Whisper's and Moonshine's last norm
    expected = {
        "none": [],
        "top:1": [name for name in names if name.startswith(top)],
        "all": [name for name in names if name != "embed_positions.weight"],  # Whisper's are not learnt
    }[trainable]
    assert [name for name, p in model.speech.encoder.named_parameters() if p.requires_grad] == expected
    model(*utterances(LENGTHS)).prediction.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.train().speech.encoder.training is (trainable != "none")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_is_what_leaves_it_and_those_above_are_not_computed(tmp_path, family):
    encoder = save_extracted_encoder(tmp_path / family, family)
    audio, num_samples = utterances([16_000])
    below, first, last = transformers_own(tmp_path, family, encoder, audio[0])
    for layers, expected in (("layer:0", below), ("layer:1", first), ("layer:2", last)):
        branch = build(tmp_path, family, layers=layers).eval().speech
        torch.testing.assert_close(branch.encode(audio, num_samples)[0], expected)
    weighted = build(tmp_path, family, layers="weighted").eval().speech
    torch.testing.assert_close(weighted.encode(audio, num_samples)[0], (below + first + last) / 3)
    assert not any("layers.1." in name for name, _ in build(tmp_path, family, layers="layer:1").named_parameters())
    with pytest.raises(ConfigError, match=r"layers = 'layer:3': the encoder has layers 0 to 2"):
        build(tmp_path, family, layers="layer:3")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_needs_nothing_of_the_encoders_folder(tmp_path, family):
    settings = config(tmp_path, family)
    model = build_model(ModelConfig(embedding_dim=8, speech=settings.speech, extra_speech=(settings.speech,))).eval()
    save_model(
        tmp_path / "m", model.state_dict(), model.config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={}
    )
    shutil.rmtree(tmp_path / family)
    loaded = load_model(tmp_path / "m").model
    batch = utterances(LENGTHS)
    torch.testing.assert_close(loaded(*batch), model(*batch))
    assert not any("decoder" in name for name in loaded.state_dict())
    (tmp_path / "m" / "also_encoder_0" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"also_encoder_0/preprocessor_config.json: cannot be read"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("family", with_long(("whisper",), sorted(EXTRACTED_FAMILIES)))
def test_memory_is_foreseen(tmp_path, family, checkpointing):
    if family == "whisper":  # else most of what is measured would be for the spectra of these twelve pieces
        save_extracted_encoder(tmp_path / family, family, encoder_layers=8, encoder_ffn_dim=512)
    settings = config(tmp_path, family, checkpointing=checkpointing, pooling="mean")
    shape = BatchShape(rows=4, samples=48_000)
    encoders = build_model(settings).encoder_configs
    peak = trace_peak(settings, encoders, shape, precision="fp32", training=True, on_gpu=False)
    assert peak == pytest.approx(allocated_peak(settings, shape), rel=0.25)


def test_a_batch_read_one_by_one_is_refused_under_zero_3(tmp_path):
    for family in sorted(EXTRACTED_FAMILIES):
        model = build(tmp_path, family)
        for stage in (0, 1, 2, 3):
            ds_config = {"zero_optimization": {"stage": stage}}
            if family in UNKNOWN and stage == 3:
                with pytest.raises(
                    ConfigError, match=r"zero3.json: ZeRO-3 .* is called once for each utterance. Use stage 2"
                ):
                    check_calls("zero3.json", ds_config, model)
            else:
                check_calls("zero3.json", ds_config, model)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"do_normalize": "on"}, "do_normalize"),
        ({"train_feature_encoder": True}, "train_feature_encoder"),
        ({"spec_augment": SpecAugmentConfig()}, "spec_augment"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(tmp_path, changes, key):
    with pytest.raises(ConfigError, match=rf"model.speech.{key}: has no meaning for a whisper encoder"):
        build(tmp_path, "whisper", **changes)


def test_an_encoder_without_an_extractor_of_audio_at_16_khz_is_refused(tmp_path):
    settings = config(tmp_path, "whisper")
    (tmp_path / "whisper" / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no preprocessor_config.json .* Save one next to it") as error:
        build_model(settings)
    assert "\n" not in str(error.value)
    EncodecFeatureExtractor(sampling_rate=24_000).save_pretrained(tmp_path / "whisper")
    with pytest.raises(ConfigError, match="reads audio at 24000 Hz: must be 16000 Hz"):
        build_model(settings)


def test_models_whose_frames_do_not_go_with_the_audio_are_refused(tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    ASTModel(ASTConfig(**shape)).save_pretrained(tmp_path)
    ASTFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"'audio-spectrogram-transformer', and cannot be used: its extractor cuts 120 s"
    ):
        build_model(ModelConfig(speech=SpeechConfig(encoder=str(tmp_path))))


def test_models_that_give_no_frames_of_audio_are_refused_in_one_line(tmp_path):
    save_extracted_encoder(tmp_path / "moonshine", "moonshine")
    EXTRACTED_FAMILIES["w2v-bert"][1].save_pretrained(tmp_path / "moonshine")
    with pytest.raises(ConfigError, match=r"of type 'moonshine', and cannot be used: .*Name another") as error:
        build_model(ModelConfig(speech=SpeechConfig(encoder=str(tmp_path / "moonshine"))))
    assert "\n" not in str(error.value)
