"""What a language model carries from one time step to the next."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from ..text import InputError

_NAMES = ("h", "c")


class State(NamedTuple):
    """The state of each layer after a time step, of every row of the batch.

    Attributes:
        layers: for each layer, the lowest first, ``(h, c)`` of an LSTM (its output and its cell) or
            ``(h,)`` of a GRU or RNN.

    Shape:
        - h, c: ``(1, batch, hidden_size)``, with the layer's own hidden size.
    """

    layers: tuple[tuple[Tensor, ...], ...]

    def detach(self) -> "State":
        """The same values, through which no gradient flows back."""
        return self._map(Tensor.detach)

    def select(self, indices: Tensor) -> "State":
        """The state of some rows of the batch, in that order, each as often as it is named.

        Shape:
            - indices: ``(rows)``, int64, in ``[0, batch)``.
        """
        return self._map(lambda tensor: tensor.index_select(1, indices))

    def zeroed(self, mask: Tensor) -> "State":
        """The same values but for zeros in the rows that the mask marks.

        Shape:
            - mask: ``(batch)``, bool.
        """
        rows = mask.unsqueeze(1)
        return self._map(lambda tensor: tensor.masked_fill(rows, 0))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, such as ``layers.0.h``, for a checkpoint."""
        return {
            f"layers.{index}.{name}": tensor
            for index, layer in enumerate(self.layers)
            for name, tensor in zip(_NAMES, layer, strict=False)
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "State":
        """The state that :meth:`tensors` gave.

        Raises:
            InputError: the names are not those of a state.
        """
        layers: list[tuple[Tensor, ...]] = []
        while f"layers.{len(layers)}.h" in tensors:
            names = (f"layers.{len(layers)}.{name}" for name in _NAMES)
            layers.append(tuple(tensors[name] for name in names if name in tensors))
        state = cls(tuple(layers))
        if not layers or state.tensors().keys() != tensors.keys():
            raise InputError(
                "tensors must be named layers.0.h, layers.0.c, layers.1.h and so on, "
                f"got {', '.join(sorted(tensors)) or 'none'}"
            )
        return state

    def _map(self, function: Callable[[Tensor], Tensor]) -> "State":
        return State(tuple(tuple(map(function, layer)) for layer in self.layers))
