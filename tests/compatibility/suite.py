"""What a scenario is, and what scenarios are written with."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves, tree_map

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
MODULES = LAYERS + CELLS
LSTM = ("LSTM",)
DEEP = {"num_layers": 2, "bidirectional": True}

# The backend "rnnfast" answers misuse, and other devices, with an error of its own.
AUTO = ("auto",)


@dataclass(frozen=True)
class Scenario:
    """Something that a user does with a module, told once for every implementation.

    Args:
        name: what stands in the table; unique.
        group: the table's section.
        call: does it. Its argument builds the module under test, with that module's constructor
            arguments; what it returns is compared.
        modules: the modules it is for.
        raises: the type of the exception that it has to end with.
        refused: the modules for which torch.nn raises although the call is a sensible one.
        refused_here: those for which rnnfast raises RuntimeError although torch.nn works.
        dtype: the default dtype it runs under.
        backends: those under which rnnfast is asked for it.
    """

    name: str
    group: str
    call: Callable[[Callable[..., nn.Module]], object]
    modules: tuple[str, ...]
    raises: type[Exception] | None
    refused: tuple[str, ...]
    refused_here: tuple[str, ...]
    dtype: torch.dtype
    backends: tuple[str, ...]


SCENARIOS: list[Scenario] = []


def scenario(
    name: str,
    group: str,
    modules: tuple[str, ...] = LAYERS,
    *,
    raises: type[Exception] | None = None,
    refused: tuple[str, ...] = (),
    refused_here: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float64,
    backends: tuple[str, ...] = ("auto", "rnnfast"),
):
    """Registers the decorated function as a scenario."""

    def register(call):
        SCENARIOS.append(
            Scenario(name, group, call, modules, raises, refused, refused_here, dtype, backends)
        )
        return call

    return register


def random(*shape: int) -> Tensor:
    """Normal numbers in the default dtype, the same ones in each."""
    return torch.randn(shape, dtype=torch.float64).to(torch.get_default_dtype())


def is_cell(net: nn.Module) -> bool:
    return isinstance(net, nn.RNNCellBase)


def example(net: nn.Module) -> Tensor:
    """An input for the module."""
    return random(2, net.input_size) if is_cell(net) else random(5, 2, net.input_size)


def states(net: nn.Module, input: Tensor | PackedSequence) -> Tensor | tuple[Tensor, Tensor]:
    """A random hx for the module and its input."""
    if isinstance(input, PackedSequence):
        shape = (len(net.all_weights), int(input.batch_sizes[0]))
    elif is_cell(net):
        shape = input.shape[:-1]
    else:
        batch = input.shape[:-1][:: -1 if net.batch_first else 1][1:]
        shape = (len(net.all_weights), *batch)
    hidden = random(*shape, getattr(net, "proj_size", 0) or net.hidden_size)
    is_lstm = "LSTM" in type(net).__name__
    return (hidden, random(*shape, net.hidden_size)) if is_lstm else hidden


def packed(enforce_sorted: bool) -> PackedSequence:
    lengths = [5, 3, 3, 1] if enforce_sorted else [3, 5, 1, 3]
    sequences = [random(length, 3) for length in lengths]
    return pack_sequence(sequences, enforce_sorted=enforce_sorted)


def weight_name(net: nn.Module) -> str:
    """The name of the (first) recurrent weight."""
    return "weight_hh" if is_cell(net) else "weight_hh_l0"


def is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def map_floats(function: Callable[[Tensor], Tensor], values: object) -> object:
    return tree_map(lambda value: function(value) if is_float(value) else value, values)


def loss(result: object) -> Tensor:
    """A number that depends on every output, differently on each element."""
    outputs = [tensor for tensor in tree_leaves(result) if is_float(tensor)]
    weights = [torch.linspace(-1, 1, max(t.numel(), 1))[: t.numel()].view_as(t) for t in outputs]
    return sum((tensor * weight).sum() for tensor, weight in zip(outputs, weights, strict=True))


def trained(
    net: nn.Module, *inputs: object, context: AbstractContextManager | None = None
) -> dict[str, object]:
    """What a call in that context returns, and the gradients of all that went in."""
    inputs = map_floats(lambda value: value.detach().clone().requires_grad_(), inputs)
    with context or nullcontext():
        result = net(*inputs)
    leaves = [leaf for leaf in (*tree_leaves(inputs), *net.parameters()) if is_float(leaf)]
    needed = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(loss(result), needed, allow_unused=True)
    return {"result": result, "gradients": gradients}


@dataclass(frozen=True)
class Deviation:
    """How far results of few digits are from float64's: relative, in the Euclidean norm."""

    value: float


def deviations(
    net: nn.Module, *inputs: object, context: AbstractContextManager | None = None
) -> dict[str, object]:
    """The dtypes of what `trained` gives, and how far it is from what float64 gives."""
    values = trained(net, *inputs, context=context)
    exact = trained(copy.deepcopy(net).double(), *map_floats(Tensor.double, inputs))
    report = {}
    for key in values:
        flat, truth = (
            [leaf for leaf in tree_leaves(result[key]) if is_float(leaf)]
            for result in (values, exact)
        )
        right = torch.cat([tensor.flatten() for tensor in truth])
        error = torch.cat([tensor.flatten().double() for tensor in flat]) - right
        report[key] = [t.dtype for t in flat], Deviation((error.norm() / right.norm()).item())
    return report
