r"""The operators: one layer, one direction, a whole sequence, through torch's dispatcher.

The schemas and CPU kernels are registered by the compiled extension; this module adds what torch
needs to trace them (fake kernels) and to differentiate them (autograd formulas), and the functions
to call them by. These choose the operator: the `_inference` one, which keeps nothing and has no
autograd wrapper, where no gradient is recorded, and the plain-torch twin in
:mod:`rnnfast.reference`, right but slow, under forward-mode differentiation and the transforms of
``torch.func``, for which the kernels have no rule.

Shapes throughout: `input` is `(seq_len, batch, input_size)`, or `(batch, seq_len, input_size)` with
``batch_first=True``, in any strides; `output` is contiguous in the same layout; states are
`(batch, hidden_size)`. ``seq_len`` and ``batch`` may be 0; with no step, the final state equals the
initial one. With ``reverse=True`` time runs from the last index to the first: each output stays at
its time index, and the final state is the one after index 0. Every tensor of a call has the same
dtype, float32 or float64.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import register_fake

from rnnfast import _extension, reference  # noqa: F401  (the extension registers the operators)

__all__ = ["gru", "lstm", "rnn"]

_ops = torch.ops.rnnfast


def _transformed() -> bool:
    """Whether forward-mode differentiation or a transform of ``torch.func`` is at work.

    torch has no public name to ask by.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _records_gradient(*tensors: Tensor | None) -> bool:
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
    *,
    batch_first: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)

    Args:
        input: the sequence, `(seq_len, batch, input_size)`.
        h_0, c_0: the initial hidden and cell state, `(batch, hidden_size)`.
        weight_ih: `(4 * hidden_size, input_size)`, gates in the order i, f, g, o.
        weight_hh: `(4 * hidden_size, hidden_size)`.
        bias_ih, bias_hh: `(4 * hidden_size)`, either or both ``None`` for zero.
        batch_first: `input` and `output` are `(batch, seq_len, features)`.
        reverse: runs time backwards.

    Returns:
        output `(seq_len, batch, hidden_size)`, h_n and c_n `(batch, hidden_size)`.
    """
    if _transformed():
        run = reference.lstm
    elif _records_gradient(weight_ih, input, weight_hh, bias_ih, bias_hh, h_0, c_0):
        run = _ops.lstm.default
    else:
        run = _ops.lstm_inference.default
    return run(
        *(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh),
        batch_first=batch_first,
        reverse=reverse,
    )[:3]


def gru(
    input: Tensor,
    h_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
    batch_first: bool = False,
    reverse: bool = False,
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
        reset_after: whether the reset gate acts after the recurrent product or before it.
        batch_first: `input` and `output` are `(batch, seq_len, features)`.
        reverse: runs time backwards.

    Returns:
        output `(seq_len, batch, hidden_size)` and h_n `(batch, hidden_size)`.
    """
    if _transformed():
        run = reference.gru
    elif _records_gradient(weight_ih, input, weight_hh, bias_ih, bias_hh, h_0):
        run = _ops.gru.default
    else:
        run = _ops.gru_inference.default
    return run(
        *(input, h_0, weight_ih, weight_hh, bias_ih, bias_hh),
        reset_after=reset_after,
        batch_first=batch_first,
        reverse=reverse,
    )[:2]


def rnn(
    input: Tensor,
    h_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    reverse: bool = False,
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
        nonlinearity: ``"tanh"`` or ``"relu"``.
        batch_first: `input` and `output` are `(batch, seq_len, features)`.
        reverse: runs time backwards.

    Returns:
        output `(seq_len, batch, hidden_size)` and h_n `(batch, hidden_size)`.
    """
    if _transformed():
        run = reference.rnn
    elif _records_gradient(weight_ih, input, weight_hh, bias_ih, bias_hh, h_0):
        run = _ops.rnn.default
    else:
        run = _ops.rnn_inference.default
    return run(
        *(input, h_0, weight_ih, weight_hh, bias_ih, bias_hh),
        nonlinearity=nonlinearity,
        batch_first=batch_first,
        reverse=reverse,
    )


# Fake kernels: shapes and strides, no values.


def _like_output(input: Tensor, features: int) -> Tensor:
    return input.new_empty(*input.shape[:2], features)


def _gradient(needed: bool, like: Tensor, *shape: int) -> Tensor:
    """A contiguous gradient of that shape (default: of `like`), or the empty one in its place."""
    return like.new_empty((shape or like.shape) if needed else (0,))


@register_fake("rnnfast::lstm")
def _(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, *, batch_first=False, reverse=False):
    hidden_size = weight_hh.size(1)
    return (
        _like_output(input, hidden_size),
        h_0.new_empty(h_0.shape),
        c_0.new_empty(c_0.shape),
        _like_output(input, 4 * hidden_size),
        _like_output(input, hidden_size),
    )


@register_fake("rnnfast::lstm_inference")
def _(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, *, batch_first=False, reverse=False):
    output = _like_output(input, weight_hh.size(1))
    return output, h_0.new_empty(h_0.shape), c_0.new_empty(c_0.shape)


@register_fake("rnnfast::lstm_backward")
def _(
    grad_output, grad_h_n, grad_c_n, input, h_0, c_0, weight_ih, weight_hh, output, gates, cells,
    *, batch_first=False, reverse=False, need_input=True, need_weights=True, need_bias=True,
):  # fmt: skip
    return (
        _gradient(need_input, input),
        _gradient(True, h_0),
        _gradient(True, c_0),
        _gradient(need_weights, weight_ih),
        _gradient(need_weights, weight_hh),
        _gradient(need_bias, weight_hh, weight_hh.size(0)),
    )


@register_fake("rnnfast::gru")
def _(
    input, h_0, weight_ih, weight_hh, bias_ih, bias_hh,
    *, reset_after=True, batch_first=False, reverse=False,
):  # fmt: skip
    hidden_size = weight_hh.size(1)
    return (
        _like_output(input, hidden_size),
        h_0.new_empty(h_0.shape),
        _like_output(input, 4 * hidden_size),
    )


@register_fake("rnnfast::gru_inference")
def _(
    input, h_0, weight_ih, weight_hh, bias_ih, bias_hh,
    *, reset_after=True, batch_first=False, reverse=False,
):  # fmt: skip
    return _like_output(input, weight_hh.size(1)), h_0.new_empty(h_0.shape)


@register_fake("rnnfast::gru_backward")
def _(
    grad_output, grad_h_n, input, h_0, weight_ih, weight_hh, output, gates,
    *, reset_after=True, batch_first=False, reverse=False,
    need_input=True, need_weights=True, need_bias=True,
):  # fmt: skip
    return (
        _gradient(need_input, input),
        _gradient(True, h_0),
        _gradient(need_weights, weight_ih),
        _gradient(need_weights, weight_hh),
        _gradient(need_bias, weight_hh, weight_hh.size(0)),
        _gradient(need_bias, weight_hh, weight_hh.size(0)),
    )


@register_fake("rnnfast::rnn")
@register_fake("rnnfast::rnn_inference")
def _(
    input, h_0, weight_ih, weight_hh, bias_ih, bias_hh,
    *, nonlinearity="tanh", batch_first=False, reverse=False,
):  # fmt: skip
    return _like_output(input, weight_hh.size(1)), h_0.new_empty(h_0.shape)


@register_fake("rnnfast::rnn_backward")
def _(
    grad_output, grad_h_n, input, h_0, weight_ih, weight_hh, output,
    *, nonlinearity="tanh", batch_first=False, reverse=False,
    need_input=True, need_weights=True, need_bias=True,
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
# As torch.library.register_autograd does it, but for one detour: at each call that one looks up the
# default of every argument in the schema, which takes 30 to 45 µs, more than a short call itself.

_library = torch.library.Library("rnnfast", "IMPL")


def _register_autograd(cell: str, num_states: int) -> None:
    """Makes an operator differentiable, by its backward operator.

    The operator returns its output, the final states, and what it kept for backward. The backward
    operator takes the gradients of output and states, all inputs but the biases, output, and what
    was kept. It gives the gradients of the states always, and those of the input, of both weights
    and of the biases when told to.
    """
    forward_op = getattr(_ops, cell).default
    backward_op = getattr(_ops, f"{cell}_backward").default
    num_results = 1 + num_states

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, options, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                results = forward_op(*inputs, **options)
            kept = results[num_results:]
            ctx.mark_non_differentiable(*kept)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*inputs[:-2], results[0], *kept)
            ctx.options = options
            return results

        @staticmethod
        def backward(ctx, *grad_results):
            needed = ctx.needs_input_grad[1:]
            need_input, *_, need_weight_ih, need_weight_hh, need_bias_ih, need_bias_hh = needed
            gradients = backward_op(
                *grad_results[:num_results],
                *ctx.saved_tensors,
                **ctx.options,
                need_input=need_input,
                need_weights=need_weight_ih or need_weight_hh,
                need_bias=need_bias_ih or need_bias_hh,
            )
            if len(gradients) < len(needed):
                # One gradient for both biases. Were it one tensor, too, an update in place of one
                # would change the other.
                grad_bias = gradients[-1]
                both = need_bias_ih and need_bias_hh
                gradients = (*gradients, grad_bias.clone() if both else grad_bias)
            return None, *(
                gradient if need else None for need, gradient in zip(needed, gradients, strict=True)
            )

    class SecondDerivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, options, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                return backward_op(*inputs, **options)

        @staticmethod
        def backward(ctx, *gradients):
            raise RuntimeError(
                "rnnfast's kernels have no second derivative: backward through the gradients that "
                "create_graph=True gave is not possible. The functions of rnnfast.reference are "
                "differentiable any number of times."
            )

    def register(op, function: type[torch.autograd.Function]) -> None:
        # By this name it appears as grad_fn.
        function = type(op.name().replace("::", "_"), (function,), {})

        def kernel(*inputs, **options):
            if torch.is_grad_enabled():
                return function.apply(options, *inputs)
            with torch._C._AutoDispatchBelowAutograd():
                return op(*inputs, **options)

        _library.impl(op, kernel, "Autograd")

    register(forward_op, Derivative)
    register(backward_op, SecondDerivative)


_register_autograd("lstm", num_states=2)
_register_autograd("gru", num_states=1)
_register_autograd("rnn", num_states=1)
