import pytest
import torch
from torch import nn
from transformers import HubertConfig, HubertModel

from ccts_dist.model.speech.feature_encoder import FrontEnd, MaskedGroupNormConvLayer, normalize_utterances
from tests.helpers.models.model_shapes import LAYER_NORM, SPEECH, utterances


def _hubert(**shape):
    torch.manual_seed(0)
    keys = {key: value for key, value in (SPEECH | shape).items() if key != "model_type"}
    model = HubertModel(HubertConfig(**keys)).eval()
    norm = model.feature_extractor.conv_layers[0].layer_norm
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return model


def _front_end(model):
    return FrontEnd(model.feature_extractor, list(model.config.conv_kernel), list(model.config.conv_stride))


def test_normalising_is_over_real_samples_by_hand():
    audio = torch.tensor([[1.0, 3.0, 7.0], [5.0, 5.0, 5.0]])
    normalised = normalize_utterances(audio, torch.tensor([2, 3]))
    assert normalised[0].tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-6)
    assert normalised[1].tolist() == [0.0, 0.0, 0.0]


def test_normalising_an_empty_row_gives_zeros():
    assert normalize_utterances(torch.ones(1, 4), torch.tensor([0])).tolist() == [[0.0] * 4]


def test_masked_group_norm_is_group_norm_on_an_unpadded_row():
    model = _hubert()
    audio, num_samples = utterances([3000])
    expected = model.feature_extractor(audio)
    torch.testing.assert_close(_front_end(model)(audio, num_samples), expected, atol=1e-5, rtol=1e-5)


def test_group_norm_of_transformers_sees_padding_and_ours_does_not():
    model = _hubert()
    audio, num_samples = utterances([1000, 2500])
    alone = model.feature_extractor(audio[:1, :1000])
    num_frames = alone.shape[2]
    theirs = model.feature_extractor(audio)[:1, :, :num_frames]
    ours = _front_end(model)(audio, num_samples)[:1, :, :num_frames]
    assert (theirs - alone).norm() / alone.norm() > 0.1
    torch.testing.assert_close(ours, alone, atol=1e-5, rtol=1e-5)


def test_masked_group_norm_keeps_the_names_of_its_parameters():
    model = _hubert()
    names = set(model.feature_extractor.state_dict())
    front_end = _front_end(model)
    assert isinstance(front_end.conv_layers[0], MaskedGroupNormConvLayer)
    assert set(front_end.state_dict()) == names


def test_layer_norm_front_end_is_left_as_it_is():
    model = _hubert(**LAYER_NORM)
    layers = list(model.feature_extractor.conv_layers)
    assert list(_front_end(model).conv_layers) == layers


@pytest.mark.parametrize("num_frames", [1, 2, 10])
def test_fewest_samples_for_so_many_frames(num_frames):
    model = _hubert()
    front_end = _front_end(model)
    assert front_end.samples_for(1) == 185  # 8 -> (8 - 1) * 4 + 8 = 36 -> (36 - 1) * 5 + 10 = 185
    samples = front_end.samples_for(num_frames)
    assert int(model._get_feat_extract_output_lengths(torch.tensor(samples))) == num_frames
    assert int(model._get_feat_extract_output_lengths(torch.tensor(samples - 1))) == num_frames - 1
