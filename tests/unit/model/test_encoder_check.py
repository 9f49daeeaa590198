"""Encoders of transformers that do not do what is relied on are refused when they are loaded, in one line."""

from collections import Counter
from functools import wraps

import pytest
import torch
from transformers import (
    CohereAsrFeatureExtractor,
    FunAsrNanoFeatureExtractor,
    GraniteSpeech5FeatureExtractor,
    ParakeetFeatureExtractor,
    PeAudioFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model
from ccts_dist.model.encoder_check import check_encoder
from tests.helpers.models.model_shapes import EXTRACTED_FAMILIES, save_extracted, utterances

WHISPER, _ = EXTRACTED_FAMILIES["whisper"]
W2V_BERT, _ = EXTRACTED_FAMILIES["w2v-bert"]
NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
PARAKEET = NARROW | {"subsampling_conv_channels": 16, "conv_kernel_size": 5}
GRANITE = NARROW | {"model_type": "granite_speech5_encoder", "num_hidden_layers": 4}
QWEN2 = WHISPER | {"model_type": "qwen2_audio_encoder", "num_mel_bins": 80}
ONE_SECOND = WhisperFeatureExtractor(chunk_length=1)

REFUSED = {
    "other mel bands than the encoder's": (WHISPER | {"num_mel_bins": 128}, ONE_SECOND, "last", "cannot be used: .*80"),
    "longer pieces than the encoder's": (WHISPER, WhisperFeatureExtractor(chunk_length=2), "last", "length 100"),
    "pieces of nothing": (WHISPER, WhisperFeatureExtractor(chunk_length=0), "last", "pieces of 0 samples"),
    "another's extractor": (W2V_BERT, Wav2Vec2FeatureExtractor(), "last", "cannot be used: .*input_features"),
    "other strides than the encoder's": (W2V_BERT, SeamlessM4TFeatureExtractor(stride=1), "last", "cannot be used: "),
    "long audio taken apart": (
        {"model_type": "cohere_asr", "encoder_config": PARAKEET},
        CohereAsrFeatureExtractor(), "last", "takes 120 s of audio apart",
    ),
    "a configuration that AutoModel does not know by itself": (
        NARROW
        | {
            "model_type": "moonshine_streaming",
            "num_key_value_heads": 4,
            "encoder_config": NARROW | {"num_key_value_heads": 4},
        },
        Wav2Vec2FeatureExtractor(do_normalize=False), "last", "no moonshine_streaming_encoder can have this shape",
    ),
    "something between its layers": (
        GRANITE, GraniteSpeech5FeatureExtractor(), "layer:2", "does more than its layers between them",
    ),
    "something above its layers that makes fewer frames": (
        QWEN2, ONE_SECOND, "layer:1", "does more than its layers between them",
    ),
    "the same, and its layers mixed": (QWEN2, ONE_SECOND, "weighted", "does more than its layers between them"),
    "layers of unequal width": (
        NARROW | {"model_type": "fun_asr_nano_encoder"}, FunAsrNanoFeatureExtractor(), "weighted", "not 'last'",
    ),
}  # fmt: skip


def build(folder, layers: str = "last", **changes):
    return build_model(ModelConfig(embedding_dim=8, speech=SpeechConfig(encoder=str(folder), layers=layers), **changes))


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_relied_on_is_refused_in_one_line(tmp_path, what: str):
    shape, extractor, layers, words = REFUSED[what]
    save_extracted(tmp_path, shape, extractor)
    with pytest.raises(ConfigError, match=words) as error:
        build(tmp_path, layers)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [GRANITE, QWEN2], ids=lambda shape: shape["model_type"])
def test_what_leaves_such_an_encoder_can_be_used(tmp_path, shape):
    save_extracted(tmp_path, shape, ONE_SECOND if shape is QWEN2 else GraniteSpeech5FeatureExtractor())
    model = build(tmp_path)
    model(*utterances([9_000, 16_000])).prediction.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.integration
def test_weights_that_no_frame_depends_on_are_not_trained(tmp_path):
    save_extracted(tmp_path, NARROW | {"model_type": "pe_audio_encoder"}, PeAudioFeatureExtractor(sampling_rate=16_000))
    encoder = build(tmp_path).speech.encoder
    trained = Counter(name.split(".")[0] for name, p in encoder.named_parameters() if p.requires_grad)
    unused = Counter(name.split(".")[0] for name, p in encoder.named_parameters() if not p.requires_grad)
    assert trained["layers"] > 0
    assert unused["layers"] == 0
    assert sum(unused.values()) > 0
    model = build(tmp_path)
    model(*utterances([9_000, 16_000])).prediction.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.integration
def test_layer_drop_of_an_encoder_within_a_larger_model_is_off(tmp_path):
    whole = {"model_type": "cohere_asr", "encoder_config": PARAKEET | {"layerdrop": 0.9}}
    save_extracted(tmp_path, whole, ParakeetFeatureExtractor(feature_size=128))
    branch = build(tmp_path).speech
    assert branch.encoder.config.layerdrop == 0.0
    calls = Counter()
    for number, layer in enumerate(branch.encoder.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: calls.update([number]))
    audio = utterances([8_000])
    for _ in range(10):
        branch.train().encode(*audio)
    assert calls == {0: 10, 1: 10}


def test_recomputing_that_transformers_does_not_do_is_refused(tmp_path, monkeypatch):
    save_extracted(tmp_path, WHISPER, ONE_SECOND)
    monkeypatch.setattr("ccts_dist.model.speech.feature_extractor_branch.GradientCheckpointingLayer", torch.nn.GRUCell)
    with pytest.raises(
        ConfigError, match=r"gradient_checkpointing = true: transformers recomputes no layer of a whisper"
    ):
        build(tmp_path, gradient_checkpointing=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frames: frames[:, :1], "it makes 1 frames of 0.25 s of audio and 1 of 4 s"),
        (lambda frames: frames[..., :3], "no frames of 32 features"),
        (lambda frames: frames * float("nan"), "its frames are not finite"),
    ],
)
def test_frames_that_cannot_be_used_are_refused(tmp_path, change, words):
    save_extracted(tmp_path, GRANITE, GraniteSpeech5FeatureExtractor())
    branch = build(tmp_path).speech
    forward = branch.encoder.forward

    @wraps(forward)
    def changed(**inputs):
        output = forward(**inputs)
        output.last_hidden_state = change(output.last_hidden_state)
        return output

    branch.encoder.forward = changed
    with pytest.raises(ConfigError, match=words):
        check_encoder(branch.encoder, GraniteSpeech5FeatureExtractor(), SpeechConfig(encoder=str(tmp_path)))


def test_encoder_that_reports_fewer_layers_than_it_has_is_refused(tmp_path):
    save_extracted(tmp_path, GRANITE, GraniteSpeech5FeatureExtractor())
    encoder = build(tmp_path).speech.encoder
    forward = encoder.forward

    @wraps(forward)
    def changed(**inputs):
        output = forward(**inputs)
        if inputs.get("output_hidden_states"):
            output.hidden_states = output.hidden_states[1:]
        return output

    encoder.forward = changed
    speech = SpeechConfig(encoder=str(tmp_path), layers="weighted")
    with pytest.raises(ConfigError, match="it does not report what leaves each of its layers, and layers = 'weighted'"):
        check_encoder(encoder, GraniteSpeech5FeatureExtractor(), speech)
