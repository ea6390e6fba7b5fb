"""The model, its initial weights, and the loss."""

import math

import pytest
import torch

import rnnfast
from rnnfast.language_model import LanguageModel, ModelConfig, State, sequence_loss
from rnnfast.language_model.config import BACKENDS


def test_parameters_are_those_of_the_tutorials_model():
    model = LanguageModel(50, ModelConfig(hidden_size=8, num_layers=2, backend="torch"))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "embedding.weight": (50, 8),
        "lstm.weight_ih_l0": (32, 8),
        "lstm.weight_hh_l0": (32, 8),
        "lstm.bias_ih_l0": (32,),
        "lstm.bias_hh_l0": (32,),
        "lstm.weight_ih_l1": (32, 8),
        "lstm.weight_hh_l1": (32, 8),
        "lstm.bias_ih_l1": (32,),
        "lstm.bias_hh_l1": (32,),
        "output.weight": (50, 8),
        "output.bias": (50,),
    }


def test_backend_is_whose_lstm_runs():
    assert type(LanguageModel(5, ModelConfig(2, backend="torch")).lstm) is torch.nn.LSTM
    assert type(LanguageModel(5, ModelConfig(2, backend="rnnfast")).lstm) is rnnfast.LSTM


def test_initial_weights_are_uniform_and_seeded():
    config = ModelConfig(hidden_size=40, init_scale=0.05, backend="torch")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = LanguageModel(100, config, seed=3)
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() <= 0.05, name
        assert parameter.abs().max() > 0.04, name
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    # A uniform distribution on [-s, s] has mean 0 and standard deviation s / sqrt(3).
    assert abs(weights.mean()) < 4 * 0.05 / math.sqrt(3 * len(weights))
    assert weights.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.02)

    torch.set_rng_state(before)
    again = LanguageModel(100, config, seed=3)
    torch.manual_seed(8)
    third = LanguageModel(100, config, seed=3)
    other = LanguageModel(100, config, seed=4)
    for name, value in model.state_dict().items():
        assert value.equal(again.state_dict()[name])
        assert value.equal(third.state_dict()[name])
        assert not value.equal(other.state_dict()[name])


def test_a_text_in_two_windows_gives_what_it_gives_in_one():
    model = LanguageModel(11, ModelConfig(hidden_size=6, backend="torch"))
    input = torch.randint(11, (9, 3))
    whole, (h, c) = model(input)
    first, state = model(input[:4])
    assert isinstance(state, State)
    assert state.h.shape == state.c.shape == (2, 3, 6)
    second, state = model(input[4:], state.detach())
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state, State(h, c))


def test_loss_is_the_sum_over_time_of_the_mean_over_the_batch():
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[0.5, 0.5], [0.0, 3.0]]])
    target = torch.tensor([[0, 0], [1, 0]])

    def loss(chosen, other):
        return math.log(1 + math.exp(other - chosen))

    by_hand = (loss(0, 1) + loss(2, 0)) / 2 + (loss(0.5, 0.5) + loss(0, 3)) / 2
    assert sequence_loss(logits, target).item() == pytest.approx(by_hand, rel=1e-6)


def test_dropout_acts_on_the_embedding_and_on_the_output_of_each_layer():
    model = LanguageModel(11, ModelConfig(6, num_layers=2, dropout=1 - 1e-7, backend="torch"))
    seen = []
    model.lstm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.train()
    logits, state = model(torch.randint(11, (9, 3)))
    assert not seen[0].any()
    assert logits.equal(model.output.bias.expand(9, 3, 11))
    # The second layer sees nothing of the first: all its columns agree. Its state is not dropped.
    assert state.h[1].all() and state.c[1].all()
    assert state.h[1].equal(state.h[1, :1].expand(3, 6))


def test_dropout_acts_in_training_only():
    model = LanguageModel(11, ModelConfig(hidden_size=6, dropout=0.5, backend="torch"))
    input = torch.randint(11, (9, 3))
    model.train()
    assert not model(input)[0].equal(model(input)[0])
    model.eval()
    assert model(input)[0].equal(model(input)[0])


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_backends_agree_on_outputs_and_gradients_from_the_same_seed(num_layers, dropout):
    input = torch.randint(30, (7, 5))
    target = torch.randint(30, (7, 5))
    logits, states, gradients = {}, {}, {}
    for backend in BACKENDS:
        config = ModelConfig(24, num_layers, dropout, backend=backend)
        model = LanguageModel(30, config, seed=2).double()
        torch.manual_seed(5)
        logits[backend], states[backend] = model(input)
        torch.manual_seed(5)
        loss, _ = model.loss(input, target)
        torch.testing.assert_close(loss, sequence_loss(logits[backend], target))
        loss.backward()
        gradients[backend] = {name: p.grad for name, p in model.named_parameters()}
    torch.testing.assert_close(logits["rnnfast"], logits["torch"])
    torch.testing.assert_close(states["rnnfast"], states["torch"])
    assert list(gradients["rnnfast"]) == list(gradients["torch"])
    torch.testing.assert_close(gradients["rnnfast"], gradients["torch"])
