"""Weights that stay packed between calls, for inference.

The kernels read a weight in panels, into which every call packs it: a few percent of a long
sequence's time, most of a short one's. A module cannot know by itself that its weights are as they
were at the call before, since not every change leaves a trace; :func:`prepack` is told so.
"""

from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from rnnfast import ops
from rnnfast._extension import _C

__all__ = ["PackedLayers", "prepack"]

_GATES = {"LSTM": 4, "GRU": 3, "GRU_RESET_BEFORE": 3, "RNN": 1}

# Of one layer in one direction, or of a cell: weight_ih, weight_hh, bias_ih, bias_hh and, where
# there is a projection, weight_hr; None for what it has not.
Weights = list[Tensor | None]


def prepack(module: nn.Module, *, enabled: bool = True) -> nn.Module:
    """Keeps the weights of rnnfast's modules packed from call to call, for inference on the CPU.

    The next call of each that records no gradient (under ``torch.inference_mode`` or
    ``torch.no_grad``) packs its weights, for the dtype, the precision and the instruction set in
    use; those that follow read them so. Results are the same, to the bit but for single steps,
    whose sums then run in the order of longer sequences. Other calls, training among them, are as
    before. Packed weights take as much memory as the weights, and are left out of ``state_dict``,
    of copies and of pickles.

    Changes of the weights that torch counts (an optimizer's step, ``load_state_dict``, ``copy_``)
    or that put another tensor in place are noticed, and the weights packed again. Those made behind
    its back are not: in place through ``.data``, through NumPy, by another process in shared
    memory, or under ``torch.inference_mode`` where the weights themselves were made under it. Call
    this function again after them.

    Args:
        module: an LSTM, GRU or RNN of rnnfast, a cell, or any module that contains some.
        enabled: ``False`` lets go of what is packed, and from then on each call packs again.

    Returns:
        The module that was given.

    Raises:
        TypeError: if `module` is not a module.
        ValueError: if there is no such module of rnnfast in it.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    found = [part for part in module.modules() if hasattr(type(part), "_packed_layers")]
    if not found:
        raise ValueError(
            "module must be or contain an LSTM, GRU, RNN or a cell of rnnfast, got "
            f"{type(module).__name__}"
        )
    for part in found:
        part._packed_layers = PackedLayers() if enabled else None
    return module


class PackedLayers:
    """The packed weights of one module, layer by layer, forwards before backwards.

    Attributes:
        ids: the number of each, by which the operators know it; empty before the first call.
    """

    def __init__(self) -> None:
        self.ids: tuple[int, ...] = ()
        # What they were made of, and they. As long as a tensor is held, no other has its address.
        self._kept: tuple[list[Tensor], tuple[_C.PackedWeights, ...]] = ([], ())

    def __reduce__(self) -> tuple:
        # Copies begin empty, for they have weights of their own.
        return PackedLayers, ()

    def of(
        self,
        cell: str,
        given: list[Weights],
        computed: list[Weights],
        precision: str,
        *inputs: Tensor,
    ) -> tuple["_C.PackedWeights", ...] | None:
        """The packed weights as they are now, made where what is there does not fit them.

        Args:
            cell: ``"LSTM"``, ``"GRU"``, ``"GRU_RESET_BEFORE"`` or ``"RNN"``.
            given: the module's weights.
            computed: the same in the dtype of the kernels.
            precision: of products, as for the operators.
            inputs: input and states of the call.

        Returns:
            Those of each layer; ``None`` where the call has to do without: where a gradient is
            recorded or operators are watched, traced or transformed, with weights off the CPU or
            of shapes that do not fit.
        """
        watched = torch.jit.is_tracing() or is_in_torch_dispatch_mode() or ops.transformed()
        if (
            torch.compiler.is_compiling()
            or watched
            or ops.records_gradient(*inputs, *chain(*computed))
            or not all(map(_packable, given, computed, [cell] * len(given)))
        ):
            return None
        kind = {
            "cell": cell,
            "dtype": str(computed[0][0].dtype).removeprefix("torch."),
            "bf16": precision == "bf16",
        }
        tensors = [
            [
                (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
                for tensor in weights
                if tensor is not None
            ]
            for weights in given
        ]
        layers = self._kept[1]
        if len(layers) != len(tensors) or not all(
            layer.serves(**kind, tensors=own) for layer, own in zip(layers, tensors, strict=True)
        ):
            layers = tuple(
                _C.PackedWeights(
                    **kind,
                    weights=[0 if w is None else w.data_ptr() for w in (*weights, None)[:5]],
                    input_size=weights[0].size(1),
                    hidden_size=weights[0].size(0) // _GATES[cell],
                    proj_size=weights[4].size(0) if len(weights) > 4 else 0,
                    tensors=own,
                )
                for weights, own in zip(computed, tensors, strict=True)
            )
            held = [tensor.detach() for tensor in chain(*given) if tensor is not None]
            self._kept = held, layers
            self.ids = tuple(layer.id for layer in layers)
        return layers


def _packable(given: Weights, computed: Weights, cell: str) -> bool:
    """Whether these are plain tensors, of the shapes that a layer's weights have."""
    weight_ih, weight_hh, bias_ih, bias_hh, *weight_hr = computed
    rows, size = weight_ih.size(0), weight_hh.size(-1)
    hidden_size = rows // _GATES[cell]
    shapes = [(rows, weight_ih.size(-1)), (rows, size), (rows,), (rows,)]
    if weight_hr:
        shapes.append((size, hidden_size))
    elif size != hidden_size:
        return False
    return all(
        own is None
        or (
            type(own) in (Tensor, nn.Parameter)
            and type(tensor) in (Tensor, nn.Parameter)
            and tensor.is_cpu
            and tensor.dtype == weight_ih.dtype
            and tensor.shape == shape
            and tensor.is_contiguous()
        )
        for own, tensor, shape in zip(given, computed, shapes, strict=True)
    ) and tuple(given[2:4]).count(None) in (0, 2)
