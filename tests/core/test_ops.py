"""The operators: registration, derivatives, what is kept for backward, layouts and edges."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from rnnfast import ops, reference

NUM_GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# Every form of every cell.
FORMS = [
    ("lstm", {}),
    ("gru", {"reset_after": True}),
    ("gru", {"reset_after": False}),
    ("rnn", {"nonlinearity": "tanh"}),
    ("rnn", {"nonlinearity": "relu"}),
]
FORM_IDS = ["lstm", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu"]
every_form = pytest.mark.parametrize(("cell", "form"), FORMS, ids=FORM_IDS)
LAYOUTS = [
    {"batch_first": batch_first, "reverse": reverse}
    for batch_first, reverse in itertools.product([False, True], repeat=2)
]
LAYOUT_IDS = ["time_major", "time_major-reverse", "batch_first", "batch_first-reverse"]
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=LAYOUT_IDS)
two_layouts = pytest.mark.parametrize("layout", LAYOUTS[::3], ids=LAYOUT_IDS[::3])
# Of four rows, the last takes part in no step.
PACKED = [
    {"batch_sizes": torch.tensor([3, 2, 2, 1]), "reverse": reverse} for reverse in (False, True)
]
PACKED_IDS = ["packed", "packed-reverse"]
# What forms and layouts above are without: packed rows, and a projection in every layout.
every_packed_or_projected = pytest.mark.parametrize(
    ("cell", "form", "layout", "sizes"),
    [(*form, layout, {"batch": 4}) for form in FORMS for layout in PACKED]
    + [("lstm", {}, layout, {"proj_size": 3, "batch": 4}) for layout in (*LAYOUTS[::3], *PACKED)],
    ids=[f"{form}-{layout}" for form in FORM_IDS for layout in PACKED_IDS]
    + [f"lstm_projected-{layout}" for layout in (*LAYOUT_IDS[::3], *PACKED_IDS)],
)


def arguments(
    cell: str,
    *,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    bias: bool = True,
    seq_len: int = 3,
    batch: int = 2,
    input_size: int = 3,
    hidden_size: int = 5,
    proj_size: int = 0,
    dtype: torch.dtype = torch.float64,
    requires_grad: bool = False,
) -> list[Tensor | None]:
    """Random positional arguments of an operator."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        tensor = torch.randn(*shape, generator=generator, dtype=dtype)
        return tensor.requires_grad_(requires_grad)

    gates = NUM_GATES[cell] * hidden_size
    sizes = (batch, seq_len) if batch_first else (seq_len, batch)
    if batch_sizes is not None:
        sizes = (int(batch_sizes.sum()),)
    state_size = proj_size or hidden_size
    states = [random(batch, state_size)]
    if cell == "lstm":
        states.append(random(batch, hidden_size))
    biases = [random(gates), random(gates)] if bias else [None, None]
    weights = [random(gates, input_size), random(gates, state_size)]
    projection = [random(proj_size, hidden_size)] if proj_size else []
    return [random(*sizes, input_size), *states, *weights, *biases, *projection]


def arguments_for(cell: str, layout: dict, **sizes) -> list[Tensor | None]:
    """The same, with the input as this layout has it."""
    of_input = {name: value for name, value in layout.items() if name != "reverse"}
    return arguments(cell, **of_input, **sizes)


def op(name: str):
    return getattr(torch.ops.rnnfast, name).default


def backward_arguments(cell: str, form: dict, layout: dict, **sizes) -> list[Tensor | None]:
    """Random positional arguments of a backward operator."""
    inputs = arguments_for(cell, layout, **sizes)
    results = op(cell)(*inputs, **form, **layout)
    num_states = 2 if cell == "lstm" else 1
    gradients = [torch.randn_like(tensor) for tensor in results[: 4 if cell == "lstm" else 2]]
    weights = inputs[: num_states + 3]
    projection = [inputs[7] if len(inputs) > 7 else None] if cell == "lstm" else []
    *kept, states = results[1 + num_states :]
    output = states if states.numel() else results[0]
    return [*gradients, *weights, *projection, output, *kept]


class TestRegistration:
    """Schema, autograd and fake kernels are what torch expects of them."""

    @two_layouts
    @every_form
    def test_forward(self, cell, form, layout, isa):
        inputs = arguments(
            cell,
            batch_first=layout["batch_first"],
            bias=layout["batch_first"],
            requires_grad=True,
        )
        opcheck(op(cell), inputs, form | layout)

    @two_layouts
    @every_form
    def test_inference(self, cell, form, layout, isa):
        inputs = arguments(cell, batch_first=layout["batch_first"])
        opcheck(op(f"{cell}_inference"), inputs, form | layout)
        if cell == "lstm":
            opcheck(op("lstm_cells"), inputs, layout)

    @two_layouts
    @every_form
    def test_backward(self, cell, form, layout, isa):
        opcheck(op(f"{cell}_backward"), backward_arguments(cell, form, layout), form | layout)

    @pytest.mark.parametrize("unneeded", ["need_input", "need_weights", "need_bias"])
    @every_form
    def test_backward_of_part(self, cell, form, unneeded):
        inputs = backward_arguments(cell, form, LAYOUTS[0])
        opcheck(op(f"{cell}_backward"), inputs, form | {unneeded: False})

    @every_packed_or_projected
    def test_packed_and_projected(self, cell, form, layout, sizes):
        for name in (cell, f"{cell}_inference"):
            inputs = arguments_for(cell, layout, **sizes, requires_grad=name == cell)
            opcheck(op(name), inputs, form | layout)
        inputs = backward_arguments(cell, form, layout, **sizes)
        opcheck(op(f"{cell}_backward"), inputs, form | layout)


class TestDerivatives:
    @every_layout
    @pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
    @every_form
    def test_gradcheck(self, cell, form, bias, layout, isa):
        inputs = arguments(cell, batch_first=layout["batch_first"], bias=bias, requires_grad=True)
        given = [tensor for tensor in inputs if tensor is not None]

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            return getattr(ops, cell)(*tensors, **form, **layout)

        assert torch.autograd.gradcheck(function, given)

    @every_packed_or_projected
    def test_gradcheck_of_packed_and_projected(self, cell, form, layout, sizes, isa):
        inputs = arguments_for(cell, layout, **sizes, requires_grad=True)

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            more = {"return_cells": True} if cell == "lstm" else {}
            return getattr(ops, cell)(*tensors, **form, **layout, **more)

        assert torch.autograd.gradcheck(function, inputs)

    @every_form
    def test_each_output_alone(self, cell, form, isa):
        """A gradient that comes from one output only, the others' being absent."""
        inputs = arguments(cell, requires_grad=True)
        outputs = getattr(ops, cell)(*inputs, **form)
        expected = getattr(reference, cell)(*inputs, **form)
        for output, twin in zip(outputs, expected, strict=False):
            cotangent = torch.randn_like(output)
            ours = torch.autograd.grad(output, inputs, cotangent, retain_graph=True)
            theirs = torch.autograd.grad(
                twin, inputs, cotangent, retain_graph=True, materialize_grads=True
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    @every_form
    def test_each_input_alone(self, cell, form, isa):
        """The gradient of one argument is the same, to the bit, when no other is asked for."""
        every = arguments(cell, requires_grad=True)
        output = getattr(ops, cell)(*every, **form)[0]
        expected = torch.autograd.grad(output.sum(), every)
        for index, gradient in enumerate(expected):
            inputs = arguments(cell)
            inputs[index].requires_grad_()
            output = getattr(ops, cell)(*inputs, **form)[0]
            (alone,) = torch.autograd.grad(output.sum(), inputs[index])
            assert torch.equal(alone, gradient)

    @every_form
    def test_backward_twice_through_one_graph(self, cell, form, isa):
        inputs = arguments(cell, requires_grad=True)
        total = getattr(ops, cell)(*inputs, **form)[0].sum()
        first = torch.autograd.grad(total, inputs, retain_graph=True)
        second = torch.autograd.grad(total, inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @every_form
    def test_gradients_share_no_memory(self, cell, form):
        inputs = arguments(cell, requires_grad=True)
        getattr(ops, cell)(*inputs, **form)[0].sum().backward()
        memory = [tensor.grad.untyped_storage().data_ptr() for tensor in inputs]
        assert len(set(memory)) == len(memory)

    @every_form
    def test_unneeded_gradients_are_empty(self, cell, form, isa):
        layout = {"batch_first": False, "reverse": False}
        inputs = backward_arguments(cell, form, layout)
        backward = op(f"{cell}_backward")
        every = backward(*inputs, **form)
        states = 2 if cell == "lstm" else 1
        of_flag = {
            "need_input": {0},
            "need_weights": {1 + states, 2 + states},
            "need_bias": {3 + states, 4 + states} if cell == "gru" else {3 + states},
        }
        every = every[:6]  # without the gradient of a projection, which is not there
        for flag, absent in of_flag.items():
            part = backward(*inputs, **form, **{flag: False})
            for index, gradient in enumerate(part[: len(every)]):
                if index in absent:
                    assert gradient.shape == (0,)
                else:
                    assert torch.equal(gradient, every[index])

    @every_form
    def test_forward_mode_agrees_with_reverse_mode(self, cell, form):
        """<w, J v> by forward mode equals <J^T w, v> by the kernels' backward."""
        inputs = arguments(cell)
        tangents = [torch.randn_like(tensor) for tensor in inputs]

        def output(*tensors: Tensor) -> Tensor:
            return getattr(ops, cell)(*tensors, **form)[0]

        value, pushed = torch.func.jvp(output, tuple(inputs), tuple(tangents))
        cotangent = torch.randn_like(value)
        leaves = [tensor.requires_grad_() for tensor in inputs]
        pulled = torch.autograd.grad(output(*leaves), leaves, cotangent)
        left = (cotangent * pushed).sum()
        right = sum((a * b).sum() for a, b in zip(pulled, tangents, strict=True))
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)

    @every_form
    def test_function_transforms(self, cell, form):
        inputs = arguments(cell)

        def total(x: Tensor) -> Tensor:
            return getattr(ops, cell)(x, *inputs[1:], **form)[0].sum()

        leaf = inputs[0].clone().requires_grad_()
        (expected,) = torch.autograd.grad(total(leaf), leaf)
        torch.testing.assert_close(torch.func.grad(total)(inputs[0]), expected)
        stack = torch.stack([inputs[0], 2 * inputs[0]])
        each = torch.stack([total(x) for x in stack])
        torch.testing.assert_close(torch.func.vmap(total)(stack), each)


class TestResults:
    @every_layout
    @every_form
    def test_all_outputs_agree_with_the_reference(self, cell, form, layout, isa):
        """Those kept for backward included, so that their layout is the one documented."""
        inputs = arguments(cell, batch_first=layout["batch_first"], seq_len=4, batch=3)
        ours = op(cell)(*inputs, **form, **layout)
        theirs = getattr(reference, cell)(*inputs, **form, **layout)
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
        assert all(tensor.is_contiguous() for tensor in ours)

    @every_packed_or_projected
    def test_packed_and_projected(self, cell, form, layout, sizes, isa):
        inputs = arguments_for(cell, layout, **sizes)
        ours = op(cell)(*inputs, **form, **layout)
        theirs = getattr(reference, cell)(*inputs, **form, **layout)
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
        for kept_less in ("inference", "cells") if cell == "lstm" else ("inference",):
            results = op(f"{cell}_{kept_less}")(*inputs, **form, **layout)
            assert all(torch.equal(a, b) for a, b in zip(results, ours, strict=False))

    @every_form
    def test_inference_gives_the_same_bits(self, cell, form, isa):
        inputs = arguments(cell)
        kept = op(cell)(*inputs, **form)
        assert all(
            torch.equal(a, b)
            for a, b in zip(op(f"{cell}_inference")(*inputs, **form), kept, strict=False)
        )

    @every_form
    def test_the_inference_operator_runs_where_no_gradient_is_recorded(self, cell, form):
        def called(inputs: list[Tensor]) -> set[str]:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
                getattr(ops, cell)(*inputs, **form)
            return {event.name for event in trace.events() if "rnnfast" in event.name}

        assert called(arguments(cell)) == {f"rnnfast::{cell}_inference"}
        assert f"rnnfast::{cell}" in called(arguments(cell, requires_grad=True))
        with torch.no_grad():
            assert called(arguments(cell, requires_grad=True)) == {f"rnnfast::{cell}_inference"}

    @pytest.mark.parametrize("absent", [5, 6], ids=["bias_ih", "bias_hh"])
    def test_one_bias_alone(self, absent, isa):
        inputs = arguments("lstm", requires_grad=True)
        inputs[absent] = None
        given = [tensor for tensor in inputs if tensor is not None]
        results = [
            torch.autograd.grad(function(*inputs)[0].sum(), given)
            for function in (ops.lstm, reference.lstm)
        ]
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


class TestLayouts:
    @every_form
    def test_strided_arguments(self, cell, form, isa):
        """Views of all kinds give the bits of their contiguous copies, gradients included."""

        def strided(tensor: Tensor) -> Tensor:
            wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"))
            view = wide[..., 1::2]
            view.copy_(tensor)
            return view

        def transposed(tensor: Tensor) -> Tensor:
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)

        plain = arguments(cell)
        expected = self.outputs_and_gradients(cell, form, plain)
        for view in (strided, transposed):
            results = self.outputs_and_gradients(cell, form, [view(tensor) for tensor in plain])
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))

    @staticmethod
    def outputs_and_gradients(cell, form, inputs) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        outputs = getattr(ops, cell)(*leaves, **form)
        # Gradients that are expanded and transposed views.
        cotangents = [torch.ones((), dtype=out.dtype).expand_as(out) for out in outputs]
        cotangents[0] = torch.linspace(-1, 1, outputs[0].numel(), dtype=outputs[0].dtype)
        cotangents[0] = cotangents[0].view(outputs[0].transpose(0, 2).shape).transpose(0, 2)
        return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]

    @every_form
    def test_expanded_arguments(self, cell, form, isa):
        inputs = arguments(cell, requires_grad=True)
        leaves = [inputs[0][:1, :1], *inputs[1:]]
        expanded = leaves[0].expand_as(inputs[0])
        expected = getattr(ops, cell)(expanded.contiguous(), *inputs[1:], **form)
        results = getattr(ops, cell)(expanded, *inputs[1:], **form)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


class TestEdges:
    @every_layout
    @every_form
    def test_no_step(self, cell, form, layout, isa):
        inputs = arguments(cell, batch_first=layout["batch_first"], seq_len=0, requires_grad=True)
        output, *final = getattr(ops, cell)(*inputs, **form, **layout)
        assert output.shape == ((2, 0, 5) if layout["batch_first"] else (0, 2, 5))
        for state, initial in zip(final, inputs[1:], strict=False):
            assert torch.equal(state, initial)
        states = inputs[1 : 1 + len(final)]
        gradients = torch.autograd.grad(sum(state.sum() for state in final), inputs)
        for tensor, gradient in zip(inputs, gradients, strict=True):
            of_state = any(tensor is state for state in states)
            assert torch.equal(gradient, torch.full_like(tensor, 1.0 if of_state else 0.0))

    @every_layout
    @every_form
    def test_no_row(self, cell, form, layout, isa):
        inputs = arguments(cell, batch_first=layout["batch_first"], batch=0, requires_grad=True)
        output, *final = getattr(ops, cell)(*inputs, **form, **layout)
        assert output.shape == ((0, 3, 5) if layout["batch_first"] else (3, 0, 5))
        assert all(state.shape == (0, 5) for state in final)
        for tensor, gradient in zip(inputs, torch.autograd.grad(output.sum(), inputs), strict=True):
            assert torch.equal(gradient, torch.zeros_like(tensor))

    @every_form
    def test_no_feature(self, cell, form, isa):
        inputs = arguments(cell, input_size=0, requires_grad=True)
        results = getattr(ops, cell)(*inputs, **form)
        expected = getattr(reference, cell)(*inputs, **form)[: len(results)]
        torch.testing.assert_close(results, expected, rtol=1e-13, atol=1e-13)
        gradients = torch.autograd.grad(results[0].sum(), inputs)
        twins = torch.autograd.grad(expected[0].sum(), inputs, materialize_grads=True)
        torch.testing.assert_close(gradients, twins, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @every_form
    def test_nan_stays_in_its_row(self, cell, form, value, isa):
        """Nothing of row 1 reaches the others; its own NaN does not get lost."""
        for dtype in (torch.float32, torch.float64):
            inputs = arguments(cell, batch=7, hidden_size=19, dtype=dtype)
            clean = getattr(ops, cell)(*inputs, **form)
            inputs[0][1, 1, 2] = value
            results = getattr(ops, cell)(*inputs, **form)
            rows = [0, 2, 3, 4, 5, 6]
            for result, expected in zip(results, clean, strict=True):
                assert torch.equal(result[..., rows, :], expected[..., rows, :])
            output = results[0]
            assert torch.equal(output[0], clean[0][0])
            twin = getattr(reference, cell)(*inputs, **form)[0]
            assert torch.equal(output.isnan(), twin.isnan())


class TestErrors:
    @pytest.mark.parametrize(
        ("position", "name"),
        list(enumerate(["input", "h_0", "c_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"])),
    )
    def test_a_wrong_argument_is_named(self, position, name):
        inputs = arguments("lstm")
        wrong_shape = list(inputs)
        wrong_shape[position] = inputs[position][..., :-1]
        if name == "input":
            # What is wrong about the input shows at the weight.
            name = "weight_ih"
        with pytest.raises(RuntimeError, match=name):
            ops.lstm(*wrong_shape)
        wrong_dtype = list(inputs)
        wrong_dtype[position] = inputs[position].float()
        with pytest.raises(RuntimeError, match="dtype"):
            ops.lstm(*wrong_dtype)

    def test_dimensions_of_input(self):
        inputs = arguments("gru")
        with pytest.raises(RuntimeError, match="input must be 3-D"):
            ops.gru(inputs[0][0], *inputs[1:])

    @pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e5m2])
    def test_dtype_of_input(self, dtype):
        with pytest.raises(RuntimeError, match="rnn_inference: input must .* but got"):
            ops.rnn(*(tensor.to(dtype) for tensor in arguments("rnn")))

    def test_unknown_nonlinearity(self):
        with pytest.raises(RuntimeError, match="nonlinearity.*sin"):
            ops.rnn(*arguments("rnn"), nonlinearity="sin")

    @pytest.mark.parametrize(
        ("batch_sizes", "message"),
        [
            (torch.tensor([2, 2, 1], dtype=torch.int32), "batch_sizes must have dtype Long"),
            (torch.tensor([2.0, 2.0, 1.0]), "batch_sizes must have dtype Long"),
            (torch.tensor([[2, 2, 1]]), "batch_sizes must be 1-D"),
            (torch.tensor([2, 1, 2]), r"batch_sizes\[2\] is 2 after 1"),
            (torch.tensor([3, 1, 1]), r"at most batch \(2\).* batch_sizes\[0\] is 3"),
            (torch.tensor([2, 2, 2, -1]), r"batch_sizes\[3\] is -1"),
            (torch.tensor([2, 2]), "as many rows as batch_sizes add up to, 4, but got .*5, 3"),
            (torch.tensor([2, 2, 2]), "as many rows as batch_sizes add up to, 6, but got .*5, 3"),
        ],
    )
    @every_form
    def test_batch_sizes(self, cell, form, batch_sizes, message):
        inputs = arguments(cell, batch_sizes=torch.tensor([2, 2, 1]))
        with pytest.raises(RuntimeError, match=f"rnnfast::{cell}.*{message}"):
            getattr(ops, cell)(*inputs, **form, batch_sizes=batch_sizes)

    @every_form
    def test_what_does_not_go_with_batch_sizes(self, cell, form):
        batch_sizes = torch.tensor([2, 2, 1])
        inputs = arguments(cell, batch_sizes=batch_sizes)
        with pytest.raises(RuntimeError, match="batch_first must be False"):
            getattr(ops, cell)(*inputs, **form, batch_sizes=batch_sizes, batch_first=True)
        with pytest.raises(RuntimeError, match=r"input must be 2-D \[rows, input_size\]"):
            getattr(ops, cell)(*arguments(cell), **form, batch_sizes=batch_sizes)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda weight: weight[:, :-1], r"weight_hh must have shape \[16, 3\]"),
            (lambda weight: weight[:-1], r"weight_hr must have shape \[3, 5\], but got \[2, 5\]"),
            (lambda weight: weight[0], "weight_hr must be 2-D"),
            (lambda weight: weight.float(), "weight_hr must have the dtype of input, Double"),
        ],
        ids=["hidden_size", "proj_size", "dimensions", "dtype"],
    )
    def test_weight_hr(self, change, message):
        *inputs, weight_hr = arguments("lstm", proj_size=3)
        with pytest.raises(RuntimeError, match=message):
            ops.lstm(*inputs, change(weight_hr))
