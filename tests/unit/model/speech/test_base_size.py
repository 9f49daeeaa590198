"""Group-norm encoders at the real base size do not see padding."""

import pytest
import torch
from torch import Tensor, nn

from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.model import build_model
from ccts_dist.model.speech.feature_encoder import MaskedGroupNorm
from tests.helpers.models.model_shapes import utterances

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),  # WavLM's own attention
]

LENGTHS = [4_000, 16_000, 40_000]


def received(model_type: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a base-size model makes of utterances in one batch, and of each alone."""
    torch.manual_seed(0)
    # No key but the type: transformers' defaults are the base configuration, with group norm but for data2vec.
    speech = SpeechConfig(encoder="scratch", scratch={"model_type": model_type}, pooling="statistics")
    model = build_model(ModelConfig(speech=speech)).eval()
    settings = model.encoder_configs.speech
    assert (settings.hidden_size, settings.num_hidden_layers) == (768, 12)
    audio, num_samples = utterances(LENGTHS)
    # White noise, brown noise and a tone: were all alike, so would be their vectors, padding or none.
    audio[1, : LENGTHS[1]] = audio[1, : LENGTHS[1]].cumsum(dim=0) / 10
    audio[2] = 0.1 * torch.sin(0.3 * torch.arange(LENGTHS[2]))
    with torch.no_grad():
        together = model(audio, num_samples)
        alone = [model(audio[i : i + 1, :n], num_samples[i : i + 1]) for i, n in enumerate(LENGTHS)]
    assert together.embedding.std(dim=0).max() > 5e-3
    return (
        {"prediction": together.prediction, "embedding": together.embedding},
        {
            "prediction": torch.cat([one.prediction for one in alone]),
            "embedding": torch.cat([one.embedding for one in alone]),
        },
    )


@pytest.mark.parametrize(
    "model_type",
    ["hubert", "wav2vec2", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "wav2vec2-conformer", "sew"],
)
def test_predictions_at_the_real_base_configuration_are_the_same_alone_and_in_a_batch(model_type: str):
    together, alone = received(model_type)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_with_the_usual_group_norm_they_would_not_be(monkeypatch: pytest.MonkeyPatch):
    def over_padding_too(norm: MaskedGroupNorm, hidden: Tensor, num_frames: Tensor) -> Tensor:
        return nn.functional.group_norm(hidden, hidden.shape[1], norm.weight, norm.bias, norm.eps)

    monkeypatch.setattr(MaskedGroupNorm, "forward", over_padding_too)
    together, alone = received("hubert")
    for name, ours in together.items():
        *shorter, longest = (ours - alone[name]).abs().amax(dim=1).tolist()
        assert min(shorter) > 1e-2, f"{name}: more than 0.05 was measured"
        assert longest < 1e-4, f"{name}: the longest has no padding"
