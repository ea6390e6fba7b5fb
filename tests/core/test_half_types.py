"""The operators on tensors of a half type: what the float32 operators give, rounded once.

Truth is the operator itself on the same numbers in float32, held to its own truth elsewhere. What a
half type holds is exact in float32, so results agree to the bit.
"""

import math

import pytest
import torch
from test_ops import (
    FORM_IDS,
    FORMS,
    arguments_for,
    every_form,
    every_layout,
    every_packed_or_projected,
)
from torch import Tensor
from torch.library import opcheck

from rnnfast import ops

pytestmark = pytest.mark.usefixtures("isa")
every_half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
# Sizes with ends inside vectors and, in rows, more than the products of gradients take at once.
LARGE = {"seq_len": 33, "batch": 17, "input_size": 21, "hidden_size": 67}


def outputs_and_gradients(
    cell: str, inputs: list[Tensor], dtype: torch.dtype, **options
) -> tuple[Tensor, ...]:
    """Of the operator on these numbers in that dtype, with cotangents that float16 holds."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    results = getattr(ops, cell)(*leaves, **options)
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randint(-64, 65, result.shape, generator=generator).to(result.dtype) / 32
        for result in results
    ]
    with torch.no_grad():  # which keeps nothing
        unrecorded = getattr(ops, cell)(*leaves, **options)
    assert all(torch.equal(a, b) for a, b in zip(results, unrecorded, strict=True))
    return *results, *torch.autograd.grad(results, leaves, cotangents)


def assert_rounded(cell: str, inputs: list[Tensor], dtype: torch.dtype, **options) -> None:
    """In the half type, results and gradients are float32's, rounded."""
    halves = outputs_and_gradients(cell, inputs, dtype, **options)
    floats = outputs_and_gradients(cell, inputs, torch.float32, **options)
    for half, single in zip(halves, floats, strict=True):
        # Kept cells are not rounded.
        expected = single if half.dtype == torch.float32 else single.to(dtype)
        assert half.dtype == expected.dtype
        assert torch.equal(half, expected)


@every_half
@every_layout
@every_form
def test_every_layout(cell, form, layout, dtype):
    inputs = [tensor.to(dtype) for tensor in arguments_for(cell, layout)]
    options = form | layout | ({"return_cells": True} if cell == "lstm" else {})
    assert_rounded(cell, inputs, dtype, **options)


@every_half
@every_packed_or_projected
def test_packed_and_projected(cell, form, layout, sizes, dtype):
    inputs = [tensor.to(dtype) for tensor in arguments_for(cell, layout, **sizes)]
    options = form | layout
    assert_rounded(cell, inputs, dtype, **options)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("seq_len", [2, 33], ids=["one_block", "several_blocks"])
@every_half
@every_form
def test_large(cell, form, dtype, seq_len, precision):
    """Gradients of weights that are added up from several blocks are rounded at the end alone; in
    bfloat16, operands are taken as they stand, which float32's are rounded to."""
    sizes = LARGE | {"seq_len": seq_len * (2 if precision == "bf16" else 1)}
    inputs = [tensor.to(dtype) / 4 for tensor in arguments_for(cell, {}, **sizes)]
    assert_rounded(cell, inputs, dtype, **form, precision=precision)


@every_half
@every_form
def test_a_single_step(cell, form, dtype):
    """Weights in float32 are read where they stand, in another order of the sums."""
    sizes = LARGE | {"seq_len": 1, "input_size": 150, "hidden_size": 160}
    inputs = [tensor.to(dtype) / 8 for tensor in arguments_for(cell, {}, **sizes)]
    halves = outputs_and_gradients(cell, inputs, dtype, **form)
    floats = outputs_and_gradients(cell, inputs, torch.float32, **form)
    for half, single in zip(halves, floats, strict=True):
        eps, largest = torch.finfo(dtype).eps, float(single.abs().max())
        torch.testing.assert_close(half.float(), single, rtol=eps, atol=1e-5 * largest)


@every_half
@every_form
def test_strided_arguments(cell, form, dtype):
    def strided(tensor: Tensor) -> Tensor:
        wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), math.nan)
        wide[..., 1::2] = tensor
        return wide[..., 1::2]

    inputs = [tensor.to(dtype) for tensor in arguments_for(cell, {})]
    with torch.no_grad():
        results = getattr(ops, cell)(*map(strided, inputs), **form)
        expected = getattr(ops, cell)(*inputs, **form)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@every_half
@pytest.mark.parametrize("empty", ["seq_len", "batch", "input_size"])
@every_form
def test_nothing_to_do(cell, form, empty, dtype):
    inputs = [tensor.to(dtype) for tensor in arguments_for(cell, {}, **{empty: 0})]
    assert_rounded(cell, inputs, dtype, **form)


@every_half
@every_form
def test_registration(cell, form, dtype):
    """Schema, autograd and fake kernels are what torch expects of them."""
    inputs = [tensor.to(dtype).requires_grad_() for tensor in arguments_for(cell, {})]
    # Compiled backwards are compared with eager ones in test_compile.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(getattr(torch.ops.rnnfast, cell).default, inputs, form, test_utils=checks)
    inference = getattr(torch.ops.rnnfast, f"{cell}_inference").default
    opcheck(inference, [tensor.detach() for tensor in inputs], form, test_utils=checks)


@every_half
@every_form
def test_derivatives_of_derivatives(cell, form, dtype):
    """They go through the twin in plain torch, in float32 as well."""
    inputs = [tensor.to(dtype) / 2 for tensor in arguments_for(cell, {})]
    results = []
    for kind in (dtype, torch.float32):
        leaves = [tensor.detach().to(kind).requires_grad_() for tensor in inputs]
        output = getattr(ops, cell)(*leaves, **form)[0]
        (gradient,) = torch.autograd.grad(output.float().sum(), leaves[0], create_graph=True)
        results.append(torch.autograd.grad(gradient.float().square().sum(), leaves))
    for half, single in zip(*results, strict=True):
        assert half.dtype == dtype
        scale = float(single.abs().max())
        torch.testing.assert_close(
            half.float(), single, rtol=0, atol=16 * scale * torch.finfo(dtype).eps
        )


def test_kept_states_are_named():
    """Backward takes what it needs unrounded."""
    inputs = [tensor.half() for tensor in arguments_for("rnn", {})]
    output, h_n, states = torch.ops.rnnfast.rnn(*inputs)
    backward = torch.ops.rnnfast.rnn_backward
    assert states.dtype == torch.float32
    assert torch.equal(states.half(), output)
    backward(output, h_n, *inputs[:4], states)
    with pytest.raises(
        RuntimeError, match="output must have the dtype in which .* Float.* got Half"
    ):
        backward(output, h_n, *inputs[:4], output)


def rounded_product(x: Tensor, weight: Tensor) -> Tensor:
    """relu(x * weight) of each element, by an RNN of one unit."""
    zero = x.new_zeros(x.numel(), 1)
    return ops.rnn(
        torch.stack((x.view(-1, 1), x.view(-1, 1))),
        zero,
        weight.view(1, 1),
        weight.new_zeros(1, 1),
        nonlinearity="relu",
    )[0][0].view(-1)


@every_half
def test_every_number_is_read_and_written_exactly(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype)
    result = rounded_product(numbers, torch.ones((), dtype=dtype))
    expected = numbers.float().relu().to(dtype)
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.nan_to_num(0), expected.nan_to_num(0))
    assert torch.equal(result.isinf(), expected.isinf())


@every_half
def test_rounding_is_torchs(dtype):
    """To nearest, ties to even: below the least normal number, between, and beyond the largest."""
    bits = torch.arange(0, 2**15, 3, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype)
    numbers = numbers[numbers.isfinite()]
    for factor in (1.5, 3.0, 0.5, 0.75, 0.25, 1.0078125, 2.0**-9, 1.0 + 2.0**-7):
        weight = torch.tensor(factor, dtype=dtype)
        expected = (numbers.float() * weight.float()).to(dtype)
        assert torch.equal(rounded_product(numbers, weight), expected)


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_a_row_has_the_bits_it_has_alone(form):
    cell, options = form
    inputs = [tensor.half() for tensor in arguments_for(cell, {}, **LARGE)]
    count = 3 if cell == "lstm" else 2
    with torch.no_grad():
        output = getattr(ops, cell)(*inputs, **options)[0]
        for row in (0, 5, 16):
            alone = [inputs[0][:, [row]], *(state[[row]] for state in inputs[1:count])]
            single = getattr(ops, cell)(*alone, *inputs[count:], **options)[0]
            assert torch.equal(single[:, 0], output[:, row])
