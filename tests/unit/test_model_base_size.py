"""Group-norm encoders at the real base size do not see padding."""

import pytest
import torch

from ccts_dist.config import ModelConfig, SpeechConfig
from ccts_dist.model import build_model
from tests.unit.model_shapes import utterances

LENGTHS = [4_000, 16_000, 40_000]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own attention
@pytest.mark.parametrize("model_type", ["hubert", "wav2vec2", "wavlm", "data2vec-audio", "unispeech-sat", "sew"])
def test_predictions_at_the_real_base_configuration_are_the_same_alone_and_in_a_batch(model_type):
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
    torch.testing.assert_close(together.prediction, torch.cat([one.prediction for one in alone]), atol=1e-4, rtol=0)
    torch.testing.assert_close(together.embedding, torch.cat([one.embedding for one in alone]), atol=1e-4, rtol=0)
    assert together.embedding.std(dim=0).max() > 5e-3
