"""Clipped gradient descent: torch's clipping and SGD, in one."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from rnnfast.optim import ClippedSGD


def models(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """The same model twice, with gradients and a parameter that has none."""
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 3), nn.Linear(4, 2)).to(dtype)
        model[:2](torch.tensor([1, 4, 4])).square().sum().backward()
        pair.append(model)
    return pair[0], pair[1]


@pytest.mark.parametrize("max_grad_norm", [0.01, 1e6, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torchs_clipping_and_sgd(max_grad_norm, dtype):
    ours, theirs = models(dtype)
    gradients = [p.grad.clone() for p in ours.parameters() if p.grad is not None]
    ClippedSGD(ours.parameters(), 0.3, max_grad_norm).step()
    norm = clip_grad_norm_(theirs.parameters(), max_grad_norm)
    assert 0.01 < norm < 1e6
    torch.optim.SGD(theirs.parameters(), 0.3).step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    left = [p.grad for p in ours.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(left, gradients, strict=True))


def test_groups_share_the_norm_and_have_their_own_learning_rates():
    ours, theirs = models()
    groups = [
        [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1:].parameters()}]
        for model in (ours, theirs)
    ]
    optimizers = ClippedSGD(groups[0], 0.3, 0.5), torch.optim.SGD(groups[1], 0.3)
    clip_grad_norm_(theirs.parameters(), 0.5)
    for optimizer in optimizers:
        optimizer.param_groups[1]["lr"] = 0.7
        optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_reaches_the_weights(value):
    ours, theirs = models()
    for model in (ours, theirs):
        model[1].bias.grad[1] = value
    ClippedSGD(ours.parameters(), 0.3, 1.0).step()
    clip_grad_norm_(theirs.parameters(), 1.0)
    torch.optim.SGD(theirs.parameters(), 0.3).step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), equal_nan=True)


def test_a_sparse_gradient_is_worth_a_dense_one():
    """Of an embedding whose tokens come more than once; the other rows stay as they are."""
    ours, theirs = models()
    ours[0].sparse = True
    ours.zero_grad()
    ours[:2](torch.tensor([1, 4, 4])).square().sum().backward()
    assert ours[0].weight.grad.is_sparse
    before = ours[0].weight.detach().clone()
    ClippedSGD(ours.parameters(), 0.3, 0.5).step()
    clip_grad_norm_(theirs.parameters(), 0.5)
    torch.optim.SGD(theirs.parameters(), 0.3).step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    changed = (ours[0].weight != before).any(1)
    assert changed.nonzero().flatten().tolist() == [1, 4]


def test_closure():
    ours, _ = models()
    optimizer = ClippedSGD(ours.parameters(), 0.01, 1.0)

    def closure():
        optimizer.zero_grad()
        loss = ours[:2](torch.tensor([1, 4])).square().sum()
        loss.backward()
        return loss

    first, second = (optimizer.step(closure).item() for _ in range(2))
    assert second < first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1.0,), "lr must be at least 0"), ((0.1, 0.0), "max_grad_norm must be above 0")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClippedSGD(nn.Linear(2, 2).parameters(), *arguments)
