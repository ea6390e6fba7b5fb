"""The softmaxes and the loss."""

import math

import pytest
import torch
from torch import nn

from rnnfast.language_model import sequence_loss
from rnnfast.language_model.softmax import AdaptiveSoftmax, Softmax
from rnnfast.text import InputError


def test_loss_is_the_sum_over_time_of_the_mean_over_the_batch():
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[0.5, 0.5], [0.0, 3.0]]])
    target = torch.tensor([[0, 0], [1, 0]])

    def loss(chosen, other):
        return math.log(1 + math.exp(other - chosen))

    by_hand = (loss(0, 1) + loss(2, 0)) / 2 + (loss(0.5, 0.5) + loss(0, 3)) / 2
    assert sequence_loss(logits, target).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(
    "softmax",
    [
        Softmax(16, 30, fused=True),
        Softmax(16, 30, fused=False),
        AdaptiveSoftmax(16, 30, (4, 11)),
        AdaptiveSoftmax(16, 30, (29,)),
    ],
    ids=["fused", "full", "adaptive", "adaptive, a cluster of one"],
)
def test_loss_is_that_of_the_logits(softmax):
    softmax = softmax.double()
    hidden = torch.randn(7, 5, 16, dtype=torch.float64, requires_grad=True)
    target = torch.arange(35).remainder(30).view(7, 5)  # every cluster has a target
    inputs = [hidden, *softmax.parameters()]
    expected = sequence_loss(softmax(hidden), target)
    loss = softmax.loss(hidden, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs)
    )


def test_adaptive_softmax_gives_log_probabilities_of_torchs():
    softmax = AdaptiveSoftmax(16, 30, (4, 11))
    hidden = torch.randn(7, 5, 16)
    log_probabilities = softmax(hidden)
    assert log_probabilities.shape == (7, 5, 30)
    torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(7, 5))
    theirs = nn.AdaptiveLogSoftmaxWithLoss(16, 30, [4, 11])
    theirs.load_state_dict(softmax.clusters.state_dict())
    torch.testing.assert_close(log_probabilities[3], theirs.log_prob(hidden[3]))


@pytest.mark.parametrize(
    "size,cutoffs,message",
    [
        (16, (4, 30), r"below the vocabulary's size, 30, got \(4, 30\)"),
        (15, (4, 11), r"15 units are divided by 4 for each, got 2"),
    ],
)
def test_cutoffs_that_do_not_fit_are_refused(size, cutoffs, message):
    with pytest.raises(InputError, match=message):
        AdaptiveSoftmax(size, 30, cutoffs)
