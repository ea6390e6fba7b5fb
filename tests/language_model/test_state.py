"""The state: rows of the batch, and tensors by name."""

import pytest
import torch

from rnnfast.language_model import State
from rnnfast.text import InputError


@pytest.fixture
def state() -> State:
    """Two layers of different size, one of them with a cell, three rows."""
    h, c = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    return State(((h, c), (torch.randn(1, 3, 2),)))


def test_select_takes_rows_in_the_order_given(state):
    chosen = state.select(torch.tensor([2, 0, 0, 1]))
    for before, after in zip(state.tensors().values(), chosen.tensors().values(), strict=True):
        assert after.equal(before[:, [2, 0, 0, 1]])


def test_zeroed_empties_the_rows_that_are_marked(state):
    zeroed = state.zeroed(torch.tensor([True, False, True]))
    for before, after in zip(state.tensors().values(), zeroed.tensors().values(), strict=True):
        assert not after[:, [0, 2]].any()
        assert after[:, 1].equal(before[:, 1])


def test_detach_lets_no_gradient_through(state):
    state = State(tuple(tuple(t.requires_grad_() for t in layer) for layer in state.layers))
    detached = state.detach()
    assert not any(tensor.requires_grad for tensor in detached.tensors().values())
    torch.testing.assert_close(detached.layers, state.layers)


def test_tensors_have_names_and_make_the_state_again(state):
    tensors = state.tensors()
    assert list(tensors) == ["layers.0.h", "layers.0.c", "layers.1.h"]
    again = State.from_tensors(tensors)
    assert [len(layer) for layer in again.layers] == [2, 1]
    torch.testing.assert_close(again.layers, state.layers)


@pytest.mark.parametrize("names", [[], ["layers.1.h"], ["layers.0.c"], ["layers.0.h", "weight"]])
def test_other_names_are_refused(names):
    with pytest.raises(InputError, match=r"tensors must be named layers\.0\.h"):
        State.from_tensors(dict.fromkeys(names, torch.zeros(1, 1, 1)))
