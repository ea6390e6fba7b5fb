"""Optimizers by name, and averaged gradient descent."""

import math

import pytest
import torch
from torch import nn

from rnnfast.language_model import (
    AveragedSGD,
    LanguageModel,
    ModelConfig,
    TrainingConfig,
    evaluate,
    fit,
    new_optimizer,
    preset,
)
from rnnfast.language_model.optimizers import clip_and_step, stalls, weights_for_use
from rnnfast.optim import ClippedSGD
from rnnfast.text import ContinuousBatches


def optimizer_of(model_settings=None, *, distributed=False, **settings) -> torch.optim.Optimizer:
    model = LanguageModel(9, ModelConfig(hidden_size=4, **(model_settings or {})))
    optimizer = new_optimizer(model, TrainingConfig(**settings), distributed=distributed)
    is_sparse = isinstance(optimizer, ClippedSGD)
    assert getattr(model.embedding, "sparse", False) == is_sparse
    # It goes through a step with the gradients that the model gives.
    input, target = torch.randint(9, (3, 2)), torch.randint(9, (3, 2))
    model.loss(input, target)[0].backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    clip_and_step(optimizer, list(model.parameters()), 5.0)
    changed = [
        not parameter.equal(value)
        for parameter, value in zip(model.parameters(), before, strict=True)
    ]
    assert changed == [parameter.requires_grad for parameter in model.parameters()]
    return optimizer


def test_optimizers_by_name():
    for name, kind in (
        ("adadelta", torch.optim.Adadelta),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("asgd", AveragedSGD),
    ):
        optimizer = optimizer_of(optimizer=name, learning_rate=0.25, weight_decay=0.5)
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.25, 0.5)
    assert optimizer_of(optimizer="adadelta").param_groups[0]["rho"] == 0.9


def test_plain_descent_is_fused_where_nothing_needs_a_dense_gradient():
    assert type(optimizer_of()) is ClippedSGD
    assert type(optimizer_of({"single_bias": True})) is ClippedSGD
    for model_settings in ({"backend": "torch"}, {"tied": True}, {"embedding": "one_hot"}):
        assert type(optimizer_of(model_settings)) is torch.optim.SGD
    assert type(optimizer_of(weight_decay=0.1)) is torch.optim.SGD
    assert type(optimizer_of(distributed=True)) is torch.optim.SGD


@pytest.mark.parametrize("largest", [0.5, 100.0, math.inf])
def test_gradients_are_clipped(largest):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    clip_and_step(torch.optim.SGD([parameter], lr=1.0), [parameter], largest)
    expected = -torch.tensor([3.0, 4.0]) * min(1.0, largest / 5)
    torch.testing.assert_close(parameter.detach(), expected)


def test_averages_are_those_of_the_weights_since_averaging_started():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, 2))]
    plain = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    optimizer = AveragedSGD(parameters, lr=0.1, weight_decay=0.2)
    reference = torch.optim.SGD(plain, lr=0.1, weight_decay=0.2)
    trail = []
    for step in range(7):
        if step == 3:
            assert not optimizer.is_averaging
            optimizer.start_averaging()
            trail.append([parameter.detach().clone() for parameter in parameters])
        for parameter, twin in zip(parameters, plain, strict=True):
            parameter.grad = torch.randn_like(parameter)
            twin.grad = parameter.grad.clone()
        optimizer.step()
        reference.step()
        if step >= 3:
            trail.append([parameter.detach().clone() for parameter in parameters])
    now = [parameter.detach().clone() for parameter in parameters]
    for value, twin in zip(now, plain, strict=True):
        assert value.equal(twin)
    with weights_for_use(optimizer):
        for index, parameter in enumerate(parameters):
            mean = torch.stack([values[index] for values in trail]).mean(0)
            torch.testing.assert_close(parameter.detach(), mean)
            assert not parameter.equal(now[index])
    for parameter, value in zip(parameters, now, strict=True):
        assert parameter.equal(value)


def test_the_non_monotone_rule():
    # The paper's n = 2: the last loss against the best but for the two before it.
    assert not stalls([], 2)
    assert not stalls([5.0, 6.0, 7.0], 2)
    assert stalls([5.0, 6.0, 7.0, 5.1], 2)
    assert not stalls([5.0, 4.0, 3.0, 4.9], 2)
    assert not stalls([5.0, 4.0, 3.0, 4.5, 3.5], 2)
    assert stalls([5.0, 4.0, 3.0, 4.5, 3.5, 3.1], 2)
    assert stalls([5.0, 6.0], 0)


def test_averages_are_validated_and_kept_as_the_best(tmp_path):
    """A rate too large for the raw weights to settle: their averages do, from whatever seed."""
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog ran to the cat\nso it is\n" * 40)
    config = preset("test").replace(
        corpus="text",
        path=str(path),
        hidden_size=16,
        num_steps=5,
        batch_size=4,
        epochs=14,
        optimizer="asgd",
        learning_rate=20.0,
        schedule="constant",
        non_monotone=1,
        dropout=0.5,
    )
    corpus = config.data.load()
    states = {}

    class Recorder:
        def begin(self):
            pass

        def save(self, checkpoint, *, is_best):
            count = checkpoint.optimizer["param_groups"][0]["num_averaged"]
            states[len(checkpoint.results)] = (count, checkpoint.weights["output.bias"].clone())

    model = LanguageModel(len(corpus.vocabulary), config.model)
    result = fit(model, corpus, config.training, recorder=Recorder(), show_progress=False)
    counts = [count for count, _ in states.values()]
    losses = [epoch.valid_loss for epoch in result.epochs]
    first = next(done for done in states if states[done][0] > 0)
    assert [stalls(losses[:done], 1) for done in range(1, first + 1)] == [False] * (first - 1) + [
        True
    ]
    windows = len(ContinuousBatches(corpus.train, 4, 5))
    assert counts[first:] == [1 + windows * n for n in range(len(counts) - first)]
    assert result.best.epoch > first
    valid = ContinuousBatches(corpus.valid, 4, 5)
    assert evaluate(model, valid).mean_loss == pytest.approx(result.best.valid_loss)
    assert not model.output.bias.equal(states[result.best.epoch][1])
