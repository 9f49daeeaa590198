import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.model.pooling import (
    AttentiveStatisticsPooling,
    FirstPooling,
    GruPooling,
    MeanPooling,
    SelfAttentionPooling,
    StatisticsPooling,
    build_pooling,
)
from tests.helpers.models.model_shapes import speech_config
from tests.tiers import examples


def _every_pooling() -> list[torch.nn.Module]:
    poolings = [
        GruPooling(3, 4, 2),
        FirstPooling(3),
        MeanPooling(3),
        StatisticsPooling(3),
        AttentiveStatisticsPooling(3, 5),
        SelfAttentionPooling(3),
    ]
    torch.nn.init.normal_(poolings[-1].query.weight)
    return poolings


def _gru_that_forgets() -> GruPooling:
    """A GRU whose output is tanh of its input: its update gate is shut, so nothing earlier survives."""
    pooling = GruPooling(1, 1, 1)
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.zero_()
        gru = pooling.gru
        gru.weight_ih_l0[2, 0] = 1.0  # rows are the reset gate, the update gate, the candidate
        gru.bias_ih_l0[1] = -40.0
    return pooling


def test_gru_pooling_is_the_output_at_the_last_real_frame():
    frames = torch.tensor([[0.1, 0.5, 9.0], [0.2, 0.3, -1.0]])[:, :, None]
    pooled = _gru_that_forgets()(frames, torch.tensor([2, 3]))
    assert pooled[:, 0].tolist() == pytest.approx([0.46211716, -0.76159416])  # tanh(0.5), tanh(-1)


def test_first_pooling_is_the_first_frame():
    frames = torch.tensor([[0.1, 0.5], [0.2, 0.3]])[:, :, None]
    assert FirstPooling(1)(frames, torch.tensor([2, 1]))[:, 0].tolist() == pytest.approx([0.1, 0.2])
    assert isinstance(build_pooling(speech_config(pooling="first"), 3), FirstPooling)


def test_mean_and_deviation_are_over_real_frames_by_hand():
    frames = torch.tensor([[[1.0], [4.0], [100.0]], [[2.0], [2.0], [5.0]]])
    num_frames = torch.tensor([2, 3])
    assert MeanPooling(1)(frames, num_frames)[:, 0].tolist() == [2.5, 3.0]
    statistics = StatisticsPooling(1)(frames, num_frames)
    assert statistics[0].tolist() == pytest.approx([2.5, 1.5])
    assert statistics[1].tolist() == pytest.approx([3.0, math.sqrt(2.0)])


def test_attentive_statistics_by_hand():
    pooling = AttentiveStatisticsPooling(1, 1)
    with torch.no_grad():
        pooling.hidden.weight.fill_(1.0)
        pooling.hidden.bias.zero_()
        pooling.score.weight.fill_(math.log(3.0) / math.tanh(1.0))
    # Scores 0 and ln 3, so weights 1/4 and 3/4: mean 3/4, variance 1/4 (3/4)^2 + 3/4 (1/4)^2 = 3/16.
    pooled = pooling(torch.tensor([[[0.0], [1.0], [9.0]]]), torch.tensor([2]))
    assert pooled[0].tolist() == pytest.approx([0.75, math.sqrt(3 / 16)])


def test_self_attention_by_hand():
    pooling = SelfAttentionPooling(4)
    frames = torch.tensor([[[0.0, 8.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
    num_frames = torch.tensor([2])
    assert pooling(frames, num_frames)[0].tolist() == pytest.approx([0.5, 4.0, 0.0, 0.0])  # starts as the mean
    with torch.no_grad():
        pooling.query.weight.copy_(torch.tensor([[2 * math.log(3.0), 0.0, 0.0, 0.0]]))
    # Scores 0 and 2 ln 3 / sqrt(4), so weights 1/4 and 3/4.
    assert pooling(frames, num_frames)[0].tolist() == pytest.approx([0.75, 2.0, 0.0, 0.0])


def test_attention_is_learnt_from_the_start():
    for pooling in (SelfAttentionPooling(3), AttentiveStatisticsPooling(3, 5)):
        pooling(torch.randn(2, 6, 3), torch.tensor([6, 4])).square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in pooling.parameters())


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("gru", GruPooling, 16),
        ("mean", MeanPooling, 4),
        ("statistics", StatisticsPooling, 8),
        ("attentive-statistics", AttentiveStatisticsPooling, 8),
        ("self-attention", SelfAttentionPooling, 4),
    ],
)
def test_the_name_in_the_run_file_chooses_the_pooling(name, kind, size):
    pooling = build_pooling(speech_config(pooling=name, attention_hidden=7), 4)
    assert type(pooling) is kind
    assert pooling.size == size
    if kind is AttentiveStatisticsPooling:
        assert pooling.hidden.out_features == 7


@pytest.mark.parametrize("pooling", [StatisticsPooling(3), AttentiveStatisticsPooling(3, 5)])
def test_deviation_of_a_constant_feature_has_a_finite_gradient(pooling):
    frames = torch.ones(2, 4, 3, requires_grad=True)
    pooling(frames, torch.tensor([4, 1])).sum().backward()
    assert torch.isfinite(frames.grad).all()


@pytest.mark.parametrize("pooling", _every_pooling())
def test_a_row_without_frames_pools_to_something_finite(pooling):
    pooled = pooling(torch.randn(2, 5, 3), torch.tensor([0, 5]))
    assert pooled.shape == (2, pooling.size)
    assert torch.isfinite(pooled).all()


@pytest.mark.parametrize(
    "pooling", [MeanPooling(2), StatisticsPooling(2), AttentiveStatisticsPooling(2, 5), SelfAttentionPooling(2)]
)
def test_not_even_infinite_padding_reaches_the_pooled_vector(pooling):
    frames = torch.randn(1, 4, 2)
    frames[:, 2:] = math.inf
    torch.testing.assert_close(pooling(frames, torch.tensor([2])), pooling(frames[:, :2], torch.tensor([2])))


@examples(30)
@given(real=st.integers(1, 9), padding=st.integers(0, 9), seed=st.integers(0, 99))
def test_pooling_does_not_see_padding(real, padding, seed):
    torch.manual_seed(seed)
    frames = torch.randn(1, real + padding, 3)
    num_frames = torch.tensor([real])
    for pooling in _every_pooling():
        torch.testing.assert_close(pooling(frames, num_frames), pooling(frames[:, :real], num_frames))


@pytest.mark.parametrize("pooling", _every_pooling())
def test_pooling_of_bfloat16_frames_is_float32(pooling):
    pooled = pooling.bfloat16()(torch.randn(2, 5, 3).bfloat16(), torch.tensor([3, 5]))
    assert pooled.dtype == torch.float32
