"""SpecAugment drawn on the host: the masks of transformers' own, from the same draws."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

from ccts_dist.model.speech.spec_augment import SpecAugment
from tests.helpers.models.model_shapes import SPEECH

MASKS = {"mask_time_prob": 0.3, "mask_time_length": 3, "mask_feature_prob": 0.2, "mask_feature_length": 4}
REAL = torch.tensor([20, 14, 9])


def encoder_of(model_type: str) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = {key: value for key, value in SPEECH.items() if key != "model_type"}
    config = CONFIG_MAPPING[model_type](**settings, **MASKS)
    config.mask_feature_min_masks = 0  # which WavLM lacks
    return AutoModel.from_config(config).train()


def hidden_of(encoder: PreTrainedModel) -> Tensor:
    return torch.randn(3, 20, encoder.config.hidden_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("by_length", [False, True], ids=["by width", "by length"])
@pytest.mark.parametrize("model_type", ["hubert", "wav2vec2", "wavlm", "sew"])
def test_masks_and_gradients_are_those_of_transformers(model_type: str, by_length: bool):
    encoder = encoder_of(model_type)
    mask = torch.arange(20) < REAL[:, None] if by_length else None
    masked, gradients = [], []
    ours = SpecAugment(encoder)
    ours.num_frames = REAL
    for write in (type(encoder)._mask_hidden_states.__get__(encoder), ours):
        hidden = hidden_of(encoder).requires_grad_()
        np.random.seed(3)
        result = write(hidden * 1.0, attention_mask=mask)  # transformers writes into what it is given
        result.square().sum().backward()
        masked.append(result.detach())
        gradients.append([hidden.grad, encoder.masked_spec_embed.grad.clone()])
        encoder.masked_spec_embed.grad = None
    assert torch.equal(masked[0], masked[1])
    assert not torch.equal(masked[0], hidden_of(encoder))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_frames_that_rounding_has_added_change_no_draw():
    encoder = encoder_of("hubert")
    results = []
    for added in (0, 6):
        masks = SpecAugment(encoder)
        masks.width = 20
        np.random.seed(3)
        results.append(masks(torch.nn.functional.pad(hidden_of(encoder), (0, 0, 0, added)))[:, :20])
    assert torch.equal(results[0], results[1])


def test_nothing_is_masked_in_evaluation():
    encoder = encoder_of("hubert").eval()
    assert torch.equal(SpecAugment(encoder)(hidden_of(encoder)), hidden_of(encoder))
