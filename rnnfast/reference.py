r"""The readable specification: every operator of :mod:`rnnfast.ops` in plain torch.

Each function takes the arguments of the operator of the same name (``torch.ops.rnnfast.lstm`` and
so on), returns the same tensors, those kept for backward included, and is differentiable any number
of times by autograd, which is the twin of the ``*_backward`` operators. Any dtype and device. They
are loops over time: right, not fast.

Shapes are those of one layer in one direction: `input` is `(seq_len, batch, input_size)`, or
`(batch, seq_len, input_size)` with ``batch_first=True``; every sequence returned has the same
layout; states are `(batch, features)`. With ``reverse=True`` time runs from the last index to the
first: each output stays at its time index, and the final state is the one after index 0.

With `batch_sizes` the rows are packed as in :class:`torch.nn.utils.rnn.PackedSequence`:
`batch_sizes` `(seq_len)` is a non-increasing int64 tensor on the CPU, and of time index `t` the
first ``batch_sizes[t]`` rows of the batch have a step. `input` is `(sum(batch_sizes), input_size)`,
those rows of index 0, then those of index 1 and so on, whatever `batch_first` is; sequences are
returned likewise. A row without a step at some index keeps its state: forwards after its last step,
and with ``reverse=True`` before its first. So a final state is the one after the row's own last
step in that direction, and the initial one where it has none.

`precision`, to which the operators may round the operands of their products, changes nothing here.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

__all__ = ["gru", "linear_cross_entropy", "lstm", "quantized", "rnn"]


def _time_steps(
    input: Tensor, batch_sizes: Tensor | None, batch_first: bool, reverse: bool
) -> list[tuple[Tensor, slice]]:
    """The steps in the order in which they are taken: the input `(rows, input_size)` of each, and
    which rows of the states these are."""
    if batch_sizes is None:
        steps = [(x, slice(None)) for x in input.unbind(1 if batch_first else 0)]
    else:
        sizes = batch_sizes.tolist()
        steps = [(x, slice(size)) for x, size in zip(input.split(sizes), sizes, strict=True)]
    return steps[::-1] if reverse else steps


def _merge(new: Tensor, state: Tensor) -> Tensor:
    """The state after a step: `new` for the first rows, which took it; the others as before."""
    untouched = state[new.size(0) :]
    return torch.cat((new, untouched)) if untouched.size(0) else new


def _sequence(
    steps: list[Tensor],
    input: Tensor,
    features: int,
    batch_sizes: Tensor | None,
    batch_first: bool,
    reverse: bool,
) -> Tensor:
    """Puts what the steps gave back into the layout of `input`."""
    if not steps:
        return input.new_empty(*input.shape[:-1], features)
    if reverse:
        steps = steps[::-1]
    if batch_sizes is None:
        return torch.stack(steps, dim=1 if batch_first else 0)
    return torch.cat(steps)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000;
    projection: Sak et al. 2014).

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t) && \text{without weight\_hr} \\
        h_t &= W_{hr} (o_t \odot \tanh(c_t)) && \text{with weight\_hr}

    Shape:
        - weight_ih: `(4 * hidden_size, input_size)`, gates in the order i, f, g, o
        - weight_hh: `(4 * hidden_size, hidden_size)`; bias_ih, bias_hh: `(4 * hidden_size)`
        - weight_hr: `(proj_size, hidden_size)`; weight_hh is then `(4 * hidden_size, proj_size)`,
          and h_0, h_n and output have `proj_size` features

    Returns:
        output, h_n, c_n, cells `(..., hidden_size)` (c_t of every step), gates
        `(..., 4 * hidden_size)` (i, f, g, o after activation) and an empty tensor, in place of the
        states that the operator keeps where it rounds its output to a half type.
    """
    h, c = h_0, c_0
    outputs, gates, cells = [], [], []
    for x, rows in _time_steps(input, batch_sizes, batch_first, reverse):
        pre = linear(x, weight_ih, bias_ih) + linear(h[rows], weight_hh, bias_hh)
        i, f, g, o = pre.chunk(4, dim=-1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_t = f * c[rows] + i * g
        h_t = o * c_t.tanh()
        if weight_hr is not None:
            h_t = linear(h_t, weight_hr)
        outputs.append(h_t)
        gates.append(torch.cat((i, f, g, o), dim=-1))
        cells.append(c_t)
        h, c = _merge(h_t, h), _merge(c_t, c)
    layout = (batch_sizes, batch_first, reverse)
    hidden_size = c_0.size(-1)
    return (
        _sequence(outputs, input, h_0.size(-1), *layout),
        h,
        c,
        _sequence(cells, input, hidden_size, *layout),
        _sequence(gates, input, 4 * hidden_size, *layout),
        input.new_empty(0),
    )


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
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gated recurrent unit (Cho et al. 2014).

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn}))
            && \text{reset\_after=True: torch.nn.GRU, cuDNN} \\
        n_t &= \tanh(W_{in} x_t + b_{in} + W_{hn} (r_t \odot h_{t-1}) + b_{hn})
            && \text{reset\_after=False: the paper} \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    Shape:
        - weight_ih: `(3 * hidden_size, input_size)`, gates in the order r, z, n
        - weight_hh: `(3 * hidden_size, hidden_size)`; bias_ih, bias_hh: `(3 * hidden_size)`

    Returns:
        output, h_n, gates `(..., 4 * hidden_size)`: r, z, n after activation and, fourth,
        :math:`W_{hn} h_{t-1} + b_{hn}` (reset_after) or :math:`r_t \odot h_{t-1}`; and an empty
        tensor, as of :func:`lstm`.
    """
    hidden_size = h_0.size(-1)
    split = (2 * hidden_size, hidden_size)
    weight_rz, weight_n = weight_hh.split(split)
    bias_rz, bias_n = bias_hh.split(split) if bias_hh is not None else (None, None)
    h = h_0
    outputs, gates = [], []
    for x, rows in _time_steps(input, batch_sizes, batch_first, reverse):
        h_before = h[rows]
        pre_rz, pre_n = linear(x, weight_ih, bias_ih).split(split, dim=-1)
        r, z = (pre_rz + linear(h_before, weight_rz, bias_rz)).sigmoid().chunk(2, dim=-1)
        if reset_after:
            fourth = linear(h_before, weight_n, bias_n)
            n = (pre_n + r * fourth).tanh()
        else:
            fourth = r * h_before
            n = (pre_n + linear(fourth, weight_n, bias_n)).tanh()
        h_t = (1 - z) * n + z * h_before
        outputs.append(h_t)
        gates.append(torch.cat((r, z, n, fourth), dim=-1))
        h = _merge(h_t, h)
    layout = (batch_sizes, batch_first, reverse)
    return (
        _sequence(outputs, input, hidden_size, *layout),
        h,
        _sequence(gates, input, 4 * hidden_size, *layout),
        input.new_empty(0),
    )


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
) -> tuple[Tensor, Tensor]:
    r"""Simple recurrent network (Elman 1990).

    .. math::
        h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})
        \qquad \phi = \tanh \text{ or } \text{ReLU}

    Shape:
        - weight_ih: `(hidden_size, input_size)`
        - weight_hh: `(hidden_size, hidden_size)`; bias_ih, bias_hh: `(hidden_size)`

    Returns:
        output, h_n and an empty tensor, as of :func:`lstm`.
    """
    activation = {"tanh": torch.tanh, "relu": torch.relu}[nonlinearity]
    h = h_0
    outputs = []
    for x, rows in _time_steps(input, batch_sizes, batch_first, reverse):
        h_t = activation(linear(x, weight_ih, bias_ih) + linear(h[rows], weight_hh, bias_hh))
        outputs.append(h_t)
        h = _merge(h_t, h)
    output = _sequence(outputs, input, h_0.size(-1), batch_sizes, batch_first, reverse)
    return output, h, input.new_empty(0)


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    precision: str = "fp32",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Cross entropy of the logits that a linear layer makes, with its gradients.

    .. math::
        z_n &= W x_n + b \\
        L &= s \sum_{n : y_n \ne \text{ignore}} \Bigl(\log \sum_c e^{z_{nc}} - z_{n y_n}\Bigr)
            && s = 1 \text{, or 1 over the number of terms (mean)} \\
        d_n &= s (\operatorname{softmax}(z_n) - \operatorname{onehot}(y_n))
            && 0 \text{ where ignored} \\
        \frac{\partial L}{\partial x_n} &= W^T d_n \qquad
        \frac{\partial L}{\partial W} = \sum_n d_n x_n^T \qquad
        \frac{\partial L}{\partial b} = \sum_n d_n

    Shape:
        - input: `(rows, in_features)`; target: `(rows)`
        - weight: `(num_classes, in_features)`; bias: `(num_classes)`

    Returns:
        The loss, a scalar, and its gradients with respect to input, weight and bias.
    """
    log_probabilities = linear(input, weight, bias).log_softmax(-1)
    counted = target != ignore_index
    chosen = target.where(counted, 0).unsqueeze(-1)
    losses = -log_probabilities.gather(-1, chosen).squeeze(-1)
    scale = 1 / counted.sum() if reduction == "mean" else 1.0
    loss = losses.where(counted, 0.0).sum() * scale
    onehot = torch.zeros_like(log_probabilities).scatter(-1, chosen, 1.0)
    d = ((log_probabilities.exp() - onehot) * scale).where(counted.unsqueeze(-1), 0.0)
    return loss, d @ weight, d.T @ input, d.sum(0)


def quantized(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    scale_ih: Tensor,
    scale_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    *,
    mode: str,
    batch_sizes: Tensor | None = None,
    reset_after: bool = True,
    batch_first: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Every cell with int8 weights and rounded activations; no gradient.

    The equations are those of :func:`lstm`, :func:`gru` and :func:`rnn`, by `mode` (``"LSTM"``,
    ``"GRU"``, ``"RNN_TANH"``, ``"RNN_RELU"``), with products of whole numbers in place of
    :math:`W a`:

    .. math::
        s &= \max_k |a_k| / \text{limit} && \text{0 in place of } a \text{ where that is below }
            2^{-100} \\
        q_k &= \operatorname{round}(a_k / s) && \text{ties to even} \\
        (W a)_r &= \text{scale}_r \, s \sum_k w_{rk} q_k && \text{limit} = \min(32767,
            \lfloor (2^{31} - 1) / (127 \cdot \text{depth}) \rfloor)

    Shape:
        - weight_ih, weight_hh: int8, in tiles (:func:`untiled`)
        - scale_ih, scale_hh, bias_ih, bias_hh: `(gates * hidden_size)`

    Returns:
        output, h_n and c_n, which is empty but with mode ``"LSTM"``.
    """
    hidden_size = h_0.size(-1)
    weight_ih = untiled(weight_ih, hidden_size, input.size(-1))
    weight_hh = untiled(weight_hh, hidden_size, hidden_size)
    h, c = h_0, c_0
    outputs = []
    for x, rows in _time_steps(input, batch_sizes, batch_first, reverse):
        h_before = h[rows]
        pre_x = _quantized_product(x, weight_ih, scale_ih, bias_ih)
        pre_h = _quantized_product(h_before, weight_hh, scale_hh, bias_hh)
        if mode == "LSTM":
            i, f, g, o = (pre_x + pre_h).chunk(4, dim=-1)
            c_t = f.sigmoid() * c[rows] + i.sigmoid() * g.tanh()
            h_t = o.sigmoid() * c_t.tanh()
            c = _merge(c_t, c)
        elif mode == "GRU":
            pre_x, pre_h = pre_x.chunk(3, dim=-1), pre_h.chunk(3, dim=-1)
            r, z = (pre_x[0] + pre_h[0]).sigmoid(), (pre_x[1] + pre_h[1]).sigmoid()
            if reset_after:
                n = (pre_x[2] + r * pre_h[2]).tanh()
            else:
                reset = _quantized_product(r * h_before, weight_hh, scale_hh, bias_hh)
                n = (pre_x[2] + reset.chunk(3, dim=-1)[2]).tanh()
            h_t = n + z * (h_before - n)
        else:
            h_t = (pre_x + pre_h).tanh() if mode == "RNN_TANH" else (pre_x + pre_h).relu()
        outputs.append(h_t)
        h = _merge(h_t, h)
    output = _sequence(outputs, input, hidden_size, batch_sizes, batch_first, reverse)
    return output, h, input.new_empty(0) if c is None else c


def _quantized_product(rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    largest = pad(rows.abs(), (0, 1)).amax(-1, keepdim=True)  # without features, 0
    # As a tensor, for torch divides a number by a tensor in two roundings.
    limit = torch.full_like(largest, min(32767, (2**31 - 1) // (127 * max(weight.size(1), 1))))
    zero = largest < 2.0**-100
    inverse = (limit / largest).masked_fill(zero, 0)
    # In float64 these sums of whole numbers are exact.
    sums = linear((rows * inverse).round().double(), weight.double()).to(rows.dtype)
    product = sums * (scale * (largest / limit).masked_fill(zero, 0))
    return product if bias is None else product + bias


def untiled(tiles: Tensor, hidden_size: int, depth: int) -> Tensor:
    """A weight `(gates * hidden_size, depth)` from its tiles `(units / 16, depth / 2, gates, 16,
    2)`, units and depth rounded up to multiples of 16."""
    by_gate = tiles.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
    return by_gate[:, :hidden_size, :depth].flatten(0, 1)
