r"""The operators: one layer, one direction, a whole sequence, through torch's dispatcher.

The schemas and CPU kernels are registered by the compiled extension; this module adds what torch
needs to trace them (fake kernels) and to differentiate them (autograd formulas), and the functions
to call them by. These choose the operator: the `_inference` one, which keeps nothing and has no
autograd wrapper, where no gradient is recorded; and the plain-torch twin in
:mod:`rnnfast.reference`, right but slow, where the kernels have no rule: under forward-mode
differentiation, the transforms of ``torch.func``, and for derivatives of derivatives
(``create_graph=True``). On other devices than the CPU, :mod:`rnnfast.elsewhere`.

Shapes throughout: `input` is `(seq_len, batch, input_size)`, or `(batch, seq_len, input_size)` with
``batch_first=True``, in any strides; `output` is contiguous in the same layout; states are
`(batch, hidden_size)`. ``seq_len`` and ``batch`` may be 0; with no step, the final state equals the
initial one. With ``reverse=True`` time runs from the last index to the first: each output stays at
its time index, and the final state is the one after index 0. Every tensor of a call has the same
dtype: float32, float64 or, on the CPU, float16 or bfloat16, which are read and written as such, and
all between is computed in float32.

With `batch_sizes`, rows are packed as in :class:`torch.nn.utils.rnn.PackedSequence`: an int64 CPU
tensor `(seq_len)`, not increasing, says how many rows take part at each time index; sequences are
`(batch_sizes.sum(), features)`, the rows of index 0 first. A row's final state is the one after its
own last step; a row that takes part in none keeps its initial state.

`precision` says to what both operands of a matrix product may be rounded (to nearest); all else,
sums included, stays in float32 or float64:

- ``"fp32"``: not at all; the only one for float64.
- ``"bf16"``: bfloat16, forward and backward. On the CPU, where it multiplies bfloat16 (AVX512-BF16)
  and the sequence has more than one step; elsewhere nothing changes.
- ``"tf32"``, ``"fp16"``: TensorFloat-32 in the recurrent product, float16; on CUDA alone.

`packed_weights` is the number of weights that :mod:`rnnfast.prepacking` keeps packed, or 0. They
are read in place of the weights given, on the CPU where no gradient is recorded; that both are the
same is for the caller to know.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import register_fake

from rnnfast import backend, elsewhere, reference
from rnnfast._extension import eager, kernel_access  # which registers the operators

__all__ = ["gru", "lstm", "rnn"]

_ops = torch.ops.rnnfast
# The same in plain torch, in float32 where tensors are of a half type.
_twins = {
    cell: partial(elsewhere.by_twin, getattr(reference, cell)) for cell in ("lstm", "gru", "rnn")
}


def transformed() -> bool:
    """Whether forward-mode differentiation or a transform of ``torch.func`` is at work.

    torch has no public name to ask by.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def records_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd has to see the call; if not, nothing need be kept for backward."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def lstm(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    batch_first: bool = False,
    reverse: bool = False,
    precision: str = "fp32",
    packed_weights: int = 0,
    return_cells: bool = False,
) -> tuple[Tensor, ...]:
    r"""Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000;
    projection: Sak et al. 2014).

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t) \text{, projected: } W_{hr} (o_t \odot \tanh(c_t))

    Args:
        input: the sequence, `(seq_len, batch, input_size)`.
        h_0, c_0: the initial hidden and cell state, `(batch, hidden_size)`.
        weight_ih: `(4 * hidden_size, input_size)`, gates in the order i, f, g, o.
        weight_hh: `(4 * hidden_size, hidden_size)`.
        bias_ih, bias_hh: `(4 * hidden_size)`, either or both ``None`` for zero.
        weight_hr: `(proj_size, hidden_size)` or ``None``. With it, h_0, h_n and output have
            `proj_size` features, and weight_hh is `(4 * hidden_size, proj_size)`.
        batch_sizes: how rows are packed, `(seq_len)`, or ``None``.
        batch_first: `input` and `output` are `(batch, seq_len, features)`.
        reverse: runs time backwards.
        precision: to what operands of products are rounded (see above).
        packed_weights: the number of these very weights, packed (see above), or 0.
        return_cells: also returns :math:`c_t` of every step.

    Returns:
        output `(seq_len, batch, hidden_size)`, h_n and c_n `(batch, hidden_size)`, and, if asked
        for, all cell states, laid out as output, in float32 where the input is of a half type.
    """
    inputs = (input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    if transformed():
        run = _twins["lstm"]
    elif not backend.has_kernels(input):
        if not return_cells and input.numel():
            layout = (batch_sizes, batch_first, reverse)
            return elsewhere.by_torch("lstm", input, inputs[1:3], inputs[3:], *layout)
        run = _twins["lstm"]
    elif records_gradient(*inputs):
        run = _ops.lstm.default
    else:
        run = _ops.lstm_cells.default if return_cells else _ops.lstm_inference.default
    results = run(
        *inputs,
        batch_sizes=batch_sizes,
        batch_first=batch_first,
        reverse=reverse,
        precision=precision,
        **({"packed_weights": packed_weights} if run is _ops.lstm_inference.default else {}),
    )
    return results[: 4 if return_cells else 3]


def gru(
    input: Tensor,
    h_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    reset_after: bool = True,
    batch_first: bool = False,
    reverse: bool = False,
    precision: str = "fp32",
    packed_weights: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Gated recurrent unit (Cho et al. 2014), in the two forms that are taught.

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn}))
            && \text{reset\_after=True: torch.nn.GRU, cuDNN} \\
        n_t &= \tanh(W_{in} x_t + b_{in} + W_{hn} (r_t \odot h_{t-1}) + b_{hn})
            && \text{reset\_after=False: the paper} \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    Args:
        input: the sequence, `(seq_len, batch, input_size)`.
        h_0: the initial hidden state, `(batch, hidden_size)`.
        weight_ih: `(3 * hidden_size, input_size)`, gates in the order r, z, n.
        weight_hh: `(3 * hidden_size, hidden_size)`.
        bias_ih, bias_hh: `(3 * hidden_size)`, either or both ``None`` for zero.
        batch_sizes: how rows are packed, `(seq_len)`, or ``None``.
        reset_after: whether the reset gate acts after the recurrent product or before it.
        batch_first: `input` and `output` are `(batch, seq_len, features)`.
        reverse: runs time backwards.
        precision: to what operands of products are rounded (see above).
        packed_weights: the number of these very weights, packed (see above), or 0.

    Returns:
        output `(seq_len, batch, hidden_size)` and h_n `(batch, hidden_size)`.
    """
    inputs = (input, h_0, weight_ih, weight_hh, bias_ih, bias_hh)
    if transformed():
        run = _twins["gru"]
    elif not backend.has_kernels(input):
        if reset_after and input.numel():
            layout = (batch_sizes, batch_first, reverse)
            return elsewhere.by_torch("gru", input, (h_0,), inputs[2:], *layout)
        run = _twins["gru"]
    elif records_gradient(*inputs):
        run = _ops.gru.default
    else:
        run = _ops.gru_inference.default
    return run(
        *inputs,
        batch_sizes=batch_sizes,
        reset_after=reset_after,
        batch_first=batch_first,
        reverse=reverse,
        precision=precision,
        **({"packed_weights": packed_weights} if run is _ops.gru_inference.default else {}),
    )[:2]


def rnn(
    input: Tensor,
    h_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    reverse: bool = False,
    precision: str = "fp32",
    packed_weights: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Simple recurrent network (Elman 1990).

    .. math::
        h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})
        \qquad \phi = \tanh \text{ or } \text{ReLU}

    Args:
        input: the sequence, `(seq_len, batch, input_size)`.
        h_0: the initial hidden state, `(batch, hidden_size)`.
        weight_ih: `(hidden_size, input_size)`.
        weight_hh: `(hidden_size, hidden_size)`.
        bias_ih, bias_hh: `(hidden_size)`, either or both ``None`` for zero.
        batch_sizes: how rows are packed, `(seq_len)`, or ``None``.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        batch_first: `input` and `output` are `(batch, seq_len, features)`.
        reverse: runs time backwards.
        precision: to what operands of products are rounded (see above).
        packed_weights: the number of these very weights, packed (see above), or 0.

    Returns:
        output `(seq_len, batch, hidden_size)` and h_n `(batch, hidden_size)`.
    """
    inputs = (input, h_0, weight_ih, weight_hh, bias_ih, bias_hh)
    if transformed():
        run = _twins["rnn"]
    elif not backend.has_kernels(input):
        if input.numel():
            layout = (batch_sizes, batch_first, reverse)
            mode = f"rnn_{nonlinearity}"
            return elsewhere.by_torch(mode, input, (h_0,), inputs[2:], *layout)
        run = _twins["rnn"]
    elif records_gradient(*inputs):
        run = _ops.rnn.default
    else:
        run = _ops.rnn_inference.default
    return run(
        *inputs,
        batch_sizes=batch_sizes,
        nonlinearity=nonlinearity,
        batch_first=batch_first,
        reverse=reverse,
        precision=precision,
        **({"packed_weights": packed_weights} if run is _ops.rnn_inference.default else {}),
    )[:2]


# Fake kernels: shapes and strides, no values.


def _like_input(input: Tensor, features: int) -> Tensor:
    return input.new_empty(*input.shape[:-1], features)


def _computed_dtype(input: Tensor) -> torch.dtype:
    """That of what is kept for backward."""
    return torch.promote_types(input.dtype, torch.float32)


def _kept(input: Tensor, features: int) -> Tensor:
    return _like_input(input, features).to(_computed_dtype(input))


def _states(input: Tensor, h_0: Tensor) -> Tensor:
    """Those of every step, which output is where nothing is rounded to a half type."""
    half = input.dtype != _computed_dtype(input)
    return _kept(input, h_0.size(1)) if half else input.new_empty(0)


def _like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


def _gradient(needed: bool, like: Tensor, *shape: int) -> Tensor:
    """A contiguous gradient of that shape (default: of `like`), or the empty one in its place."""
    return like.new_empty((shape or like.shape) if needed else (0,))


@register_fake("rnnfast::lstm")
def _(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr=None, **options):
    hidden_size = c_0.size(1)
    return (
        _like_input(input, h_0.size(1)),
        _like(h_0),
        _like(c_0),
        _kept(input, hidden_size),
        _kept(input, 4 * hidden_size),
        _states(input, h_0),
    )


@register_fake("rnnfast::lstm_inference")
def _(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr=None, **options):
    return _like_input(input, h_0.size(1)), _like(h_0), _like(c_0)


@register_fake("rnnfast::lstm_cells")
def _(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr=None, **options):
    cells = _kept(input, c_0.size(1))
    return _like_input(input, h_0.size(1)), _like(h_0), _like(c_0), cells


@register_fake("rnnfast::lstm_backward")
def _(
    grad_output, grad_h_n, grad_c_n, grad_cells, input, h_0, c_0, weight_ih, weight_hh, weight_hr,
    output, cells, gates, *, need_input=True, need_weights=True, need_bias=True, **options,
):  # fmt: skip
    projected = weight_hr is not None
    return (
        _gradient(need_input, input),
        _gradient(True, h_0),
        _gradient(True, c_0),
        _gradient(need_weights, weight_ih),
        _gradient(need_weights, weight_hh),
        _gradient(need_bias, weight_hh, weight_hh.size(0)),
        _gradient(need_weights and projected, weight_hr if projected else weight_hh),
    )


@register_fake("rnnfast::gru")
def _(input, h_0, weight_ih, weight_hh, bias_ih, bias_hh, **options):
    hidden_size = h_0.size(1)
    gates = _kept(input, 4 * hidden_size)
    return _like_input(input, hidden_size), _like(h_0), gates, _states(input, h_0)


@register_fake("rnnfast::rnn")
def _(input, h_0, weight_ih, weight_hh, bias_ih, bias_hh, **options):
    return _like_input(input, h_0.size(1)), _like(h_0), _states(input, h_0)


@register_fake("rnnfast::gru_inference")
@register_fake("rnnfast::rnn_inference")
def _(input, h_0, weight_ih, weight_hh, bias_ih, bias_hh, **options):
    return _like_input(input, h_0.size(1)), _like(h_0)


@register_fake("rnnfast::gru_backward")
def _(
    grad_output, grad_h_n, input, h_0, weight_ih, weight_hh, output, gates,
    *, need_input=True, need_weights=True, need_bias=True, **options,
):  # fmt: skip
    return (
        _gradient(need_input, input),
        _gradient(True, h_0),
        _gradient(need_weights, weight_ih),
        _gradient(need_weights, weight_hh),
        _gradient(need_bias, weight_hh, weight_hh.size(0)),
        _gradient(need_bias, weight_hh, weight_hh.size(0)),
    )


@register_fake("rnnfast::rnn_backward")
def _(
    grad_output, grad_h_n, input, h_0, weight_ih, weight_hh, output,
    *, need_input=True, need_weights=True, need_bias=True, **options,
):  # fmt: skip
    return (
        _gradient(need_input, input),
        _gradient(True, h_0),
        _gradient(need_weights, weight_ih),
        _gradient(need_weights, weight_hh),
        _gradient(need_bias, weight_hh, weight_hh.size(0)),
    )


# Autograd.
#
# rnnfast._eager has the rule in C++; what follows is the same in Python, for a torch that the
# extension was not built with. It is as torch.library.register_autograd does it, but for one
# detour: at each call that one looks up the default of every argument in the schema, which takes
# 30 to 45 µs, more than a short call itself.

_library = torch.library.Library("rnnfast", "IMPL")


def composite_gradients(
    twin: Callable, options: dict, inputs: tuple, needed: tuple[bool, ...], grad_results: tuple
) -> list[Tensor | None]:
    """The gradients of the inputs that need them, differentiable again, by autograd on the twin."""
    with torch.enable_grad():
        # A fresh name for each, for one input may have been computed from another.
        inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        results = twin(*inputs, **options)
        pairs = [
            (result, grad)
            for result, grad in zip(results, grad_results, strict=False)
            if grad is not None and result.requires_grad
        ]
        wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
        if not pairs or not wanted:
            return [None] * len(inputs)
        gradients = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                wanted,
                [grad for _, grad in pairs],
                create_graph=True,
                allow_unused=True,
            )
        )
    return [next(gradients) if need else None for need in needed]


def _register_autograd(cell: str, num_states: int, num_results: int, twin: Callable) -> None:
    """Makes an operator differentiable, by its backward operator.

    The forward operator takes input, initial states, both weights, both biases and what else there
    is. It returns output, final states, then what it keeps for backward, last the states of all
    steps or, where output is that, an empty tensor; the first `num_results` of these are
    differentiable. The backward operator takes the gradients of those, all inputs but the biases,
    those states, and what else is kept. It gives the gradients of the inputs in their
    order, with one or two for the biases: of the states always, of the input, of the weights and of
    the biases when told to.

    Args:
        cell: the forward operator's name; the other's ends in ``_backward``.
        num_states: how many states the cell has.
        num_results: how many results are differentiable.
        twin: the same function in plain torch, for derivatives of derivatives.
    """
    forward_op = getattr(_ops, cell).default
    backward_op = getattr(_ops, f"{cell}_backward").default
    num_inputs = sum(not argument.kwarg_only for argument in forward_op._schema.arguments)
    biases = slice(num_states + 3, num_states + 5)

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, options, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                results = forward_op(*inputs, **options)
            ctx.mark_non_differentiable(*results[num_results:])
            ctx.set_materialize_grads(False)
            half = results[0].dtype in (torch.float16, torch.bfloat16)
            states = results[-1] if half else results[0]
            ctx.save_for_backward(*inputs, states, *results[1 + num_states : -1])
            ctx.options = options
            return results

        @staticmethod
        def backward(ctx, *grad_results):
            needed = ctx.needs_input_grad[1:]
            saved = ctx.saved_tensors  # once: each access is one of checkpoint's unpackings
            inputs, kept = saved[:num_inputs], saved[num_inputs:]
            grad_results = grad_results[:num_results]
            if torch.is_grad_enabled() or transformed():
                return None, *composite_gradients(twin, ctx.options, inputs, needed, grad_results)
            need_bias_ih, need_bias_hh = needed[biases]
            gradients = backward_op(
                *grad_results,
                *inputs[: biases.start],
                *inputs[biases.stop :],
                *kept,
                **ctx.options,
                need_input=needed[0],
                need_weights=any(needed[biases.start - 2 : biases.start] + needed[biases.stop :]),
                need_bias=need_bias_ih or need_bias_hh,
            )
            if len(gradients) < len(needed):
                # One gradient for both biases. Were it one tensor, too, an update in place of one
                # would change the other.
                grad_bias = gradients[biases.start]
                both = grad_bias.clone() if need_bias_ih and need_bias_hh else grad_bias
                gradients = (*gradients[: biases.start], both, *gradients[biases.start :])
            return None, *(
                gradient if need else None for need, gradient in zip(needed, gradients, strict=True)
            )

    # By this name it appears as grad_fn.
    function = type(forward_op.name().replace("::", "_"), (Derivative,), {})

    def kernel(*inputs, **options):
        if torch.is_grad_enabled():
            inputs += (None,) * (num_inputs - len(inputs))  # defaults that were left out
            return function.apply(options, *inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return forward_op(*inputs, **options)

    _library.impl(forward_op, kernel, "Autograd")


if eager is None:
    _register_autograd("lstm", 2, 4, _twins["lstm"])
    _register_autograd("gru", 1, 2, _twins["gru"])
    _register_autograd("rnn", 1, 2, _twins["rnn"])
else:
    eager.set_up(kernel_access, lambda cell, *call: composite_gradients(_twins[cell], *call))
