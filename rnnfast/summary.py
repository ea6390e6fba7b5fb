"""A model as a table: its layers, what they give, how many weights they hold."""

import inspect
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.rnn import PackedSequence

__all__ = ["Row", "Summary", "summary"]


@dataclass(frozen=True)
class Row:
    """One layer of a :class:`Summary`.

    Attributes:
        name: its name in ``model.named_modules()``; ``"(root)"`` is the model itself.
        type: its class, with the arguments that are not at their defaults.
        output_shape: shape of what it gave for the example, of the first tensor where it gave
            several, and of its first call; None if it was not called.
        trainable: elements of its parameters that training changes.
        fixed: elements of its other parameters and of its persistent buffers.
        shared: names of the tensors that it shares with layers above and that are counted there, by
            its own names, each with the first owner's.
    """

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    trainable: int
    fixed: int
    shared: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Summary:
    """What :func:`summary` gives; printed, it is the table.

    Attributes:
        model: class of the model.
        rows: its layers in the order in which they were registered.
        bytes: size of all parameters and persistent buffers, by dtype; shared ones count once.
    """

    model: str
    rows: tuple[Row, ...]
    bytes: dict[torch.dtype, int]

    @property
    def trainable(self) -> int:
        """Elements of the parameters that training changes."""
        return sum(row.trainable for row in self.rows)

    @property
    def fixed(self) -> int:
        """Elements of all other parameters and of the persistent buffers."""
        return sum(row.fixed for row in self.rows)

    @property
    def total(self) -> int:
        """Elements of all parameters and persistent buffers."""
        return self.trainable + self.fixed

    def __str__(self) -> str:
        table = [("layer", "type", "output shape", "trainable", "fixed", "")]
        notes = []
        for row in self.rows:
            shape = "" if row.output_shape is None else str(row.output_shape)
            mark = "*" if row.shared else ""
            table.append((row.name, row.type, shape, f"{row.trainable:,}", f"{row.fixed:,}", mark))
            notes += [
                f"* {row.name} shares {name} with {owner}: counted there"
                for name, owner in row.shared.items()
            ]
        table.append(("total", "", "", f"{self.trainable:,}", f"{self.fixed:,}", ""))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if column in (3, 4) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in table
        ]
        rule = "-" * max(map(len, lines))
        sizes = ", ".join(
            f"{size:,} bytes of {str(dtype).removeprefix('torch.')}"
            for dtype, size in self.bytes.items()
        )
        end = f"{self.total:,} in all" + (f", {sizes}" if sizes else "")
        return "\n".join(
            [self.model, lines[0], rule, *lines[1:-1], rule, lines[-1], *notes, "", end]
        )

    __repr__ = __str__


def summary(model: nn.Module, *inputs: Any, **named_inputs: Any) -> Summary:
    """The layers of a model with their output shapes and parameter counts, as Keras prints them.

    A layer is a module that has parameters or buffers of its own, or no modules inside it; a
    dropout whose probability is 0 is left out. Parameters and buffers that several layers share are
    counted in the first of them, and marked in the others. A parametrized module's original weights
    count as its own.

    Args:
        model: any module.
        inputs, named_inputs: an example of the model's inputs, with which it is run once, in
            evaluation mode and without gradients, to see the output shapes. Without one, the
            model's attribute ``example_input_array`` is the example where it has one (Lightning's
            convention; language models have it), and no output shapes are shown where it has not.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if it has lazy parameters whose shapes no example has settled.

    Examples::

        >>> summary(nn.Sequential(nn.Embedding(65, 256), nn.Linear(256, 65)), torch.tensor([[3]]))
        Sequential
        layer  type                output shape  trainable  fixed
        ---------------------------------------------------------
        0      Embedding(65, 256)  (1, 1, 256)      16,640      0
        1      Linear(256, 65)     (1, 1, 65)       16,705      0
        ---------------------------------------------------------
        total                                       33,345      0
        <BLANKLINE>
        33,345 in all, 133,380 bytes of float32
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not inputs and not named_inputs:
        example = getattr(model, "example_input_array", None)
        # Lightning's rules: a tuple holds the arguments, a mapping those by name.
        if isinstance(example, Mapping):
            named_inputs = dict(example)
        elif example is not None:
            inputs = example if isinstance(example, tuple) else (example,)
    shapes = _output_shapes(model, inputs, named_inputs) if inputs or named_inputs else {}
    owners: dict[int, str] = {}
    sizes: Counter[torch.dtype] = Counter()
    rows = []
    for name, layer in _layers(model):
        shown = name or "(root)"
        counts = {True: 0, False: 0}
        shared = {}
        for key, tensor in _tensors(layer):
            full_name = f"{name}.{key}" if name else key
            if is_lazy(tensor):
                raise ValueError(
                    f"{full_name} has no shape yet: summary needs an example of the model's inputs"
                )
            if id(tensor) in owners:
                shared[key] = owners[id(tensor)]
                continue
            owners[id(tensor)] = full_name
            counts[tensor.requires_grad] += tensor.numel()
            sizes[tensor.dtype] += tensor.numel() * tensor.element_size()
        rows.append(
            Row(shown, _type(layer), shapes.get(layer), counts[True], counts[False], shared)
        )
    return Summary(type_before_parametrizations(model).__name__, tuple(rows), dict(sizes))


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that get a row, by name, each once."""
    inside_layer: set[nn.Module] = set()
    for name, part in module.named_modules():
        if part in inside_layer:
            continue
        children = list(part.children())
        if is_parametrized(part):
            inside_layer.update(part.parametrizations.modules())
            children.remove(part.parametrizations)
        holds_tensors = next(_tensors(part), None) is not None
        drops_nothing = getattr(part, "p", None) == 0
        if holds_tensors or not (children or drops_nothing):
            yield name, part


def _tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A layer's own parameters and persistent buffers, by name."""
    yield from layer.named_parameters(recurse=False)
    for name, buffer in layer.named_buffers(recurse=False):
        if name not in layer._non_persistent_buffers_set:
            yield name, buffer
    if is_parametrized(layer):
        for name, parametrization in layer.parametrizations.items():
            state = itertools.chain(
                parametrization.named_parameters(), parametrization.named_buffers()
            )
            for key, tensor in state:
                yield (name if key == "original" else f"{name}.{key}"), tensor


def _output_shapes(
    model: nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any]
) -> dict[nn.Module, tuple[int, ...]]:
    """Shapes of what each module gives; those that are not called, or give no tensor, lack."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        shape = _shape(output)
        if shape is not None:
            shapes.setdefault(module, shape)

    modes = {module: module.training for module in model.modules()}
    hooks = [
        module.register_forward_hook(note)
        for module in modes
        if not isinstance(module, torch.jit.ScriptModule)  # which takes none
    ]
    try:
        model.eval()
        with torch.no_grad():
            model(*inputs, **named_inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return shapes


def _shape(output: Any) -> tuple[int, ...] | None:
    """The shape of the first tensor in a module's result."""
    if isinstance(output, PackedSequence):
        output = output.data
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next((shape for shape in map(_shape, output) if shape is not None), None)
    return None


def _type(layer: nn.Module) -> str:
    """A layer's class and, of what its repr shows, required arguments and those not at default."""
    kind = type_before_parametrizations(layer)
    # A subclass may fix some of the arguments that its base shows.
    parameters: dict[str, inspect.Parameter] = {}
    for base in reversed(kind.__mro__):
        parameters |= inspect.signature(base.__init__).parameters
    shown = []
    for text in _top_level_comma.split(layer.extra_repr()):
        name, equals, value = text.partition("=")
        parameter = parameters.get(name) if equals else None
        # A dropout's probability is what there is to know of it.
        if parameter is None or name == "p":
            shown.append(text)
        elif parameter.default is inspect.Parameter.empty:
            shown.append(value)
        elif repr(parameter.default) != value:
            shown.append(text)
    arguments = ", ".join(text for text in shown if text)
    return f"{kind.__name__}({arguments})" if arguments else kind.__name__


# Commas that stand in no parentheses.
_top_level_comma = re.compile(r", (?![^(\[]*[)\]])")
