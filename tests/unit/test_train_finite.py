import pytest
import torch
from torch import nn

from ccts_dist.train.finite import FiniteGradients


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_step_with_a_gradient_that_is_not_finite_changes_neither_weights_nor_state(kind, bad):
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    optimizer = kind(weights, lr=0.1)
    guard = FiniteGradients(optimizer)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    moved = [weight.detach().clone() for weight in weights]
    state = {name: value.clone() for name, value in optimizer.state.get(weights[0], {}).items()}
    assert guard.num_refused == 0
    assert not torch.equal(moved[0], torch.ones(3))

    for weight in weights:
        weight.grad = torch.ones_like(weight)
    weights[1].grad[1] = bad
    optimizer.step()
    assert guard.num_refused == 1
    assert all(torch.equal(weight, before) for weight, before in zip(weights, moved, strict=True))
    assert {name: value.tolist() for name, value in optimizer.state.get(weights[0], {}).items()} == {
        name: value.tolist() for name, value in state.items()
    }


def test_next_sound_gradient_is_taken_again():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    guard = FiniteGradients(optimizer)
    for gradient in (float("nan"), 0.25):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    assert weight.item() == 0.75
    assert guard.num_refused == 1
