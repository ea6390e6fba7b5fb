"""The CUDA sequence kernels, their plans and launchers, compiled for the CPU (on_host/).

The blocks of a grid run in turn, each until it needs the others. This shows that indices, tails,
strides, exchange, barriers and maths are right; it is no run on a GPU and says nothing of one.
"""

import ctypes
import itertools

import pytest
import torch
from on_host_checks import assert_like_torch, random, read_struct
from torch.autograd import grad

pytestmark = pytest.mark.slow

ROWS, MOST_UNITS, H100 = 16, 16, {"multiprocessors": 132, "shared_bytes": 227 * 1024}
SUCCESS, INVALID_VALUE = 0, 1
OPERAND_BYTES = {"float32": 4, "float64": 8, "tf32": 4, "float16": 2, "bfloat16": 2}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# seq_len, batch, hidden_size: around tiles of 16 rows, chunks of 16 or 32, and every unit count.
SIZES = [(2, 1, 1), (7, 3, 8), (2, 16, 32), (3, 17, 33), (2, 65, 20), (1, 5, 61), (2, 15, 100)]


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Float values with 10 bits of mantissa: to nearest, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


# How the operands of the recurrent product are rounded.
OPERANDS = {
    "float32": lambda x: x,
    "tf32": to_tf32,
    "float16": lambda x: x.half().float(),
    "bfloat16": lambda x: x.bfloat16().float(),
}

Problem, Device, Plan = (
    read_struct("sequence_plan.h", f"Sequence{name}") for name in ("Problem", "Device", "Plan")
)
STRUCTS = {
    f"{cell}_sequence{suffix}": read_struct(
        f"{cell}_sequence_cuda.h", f"{cell.title()}Sequence{title}Cuda"
    )
    for cell in GATES
    for suffix, title in (("", ""), ("_backward", "Backward"))
}


class Host:
    """The compiled launchers, on a device of the given size."""

    memory = "cpu"

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.planned = self.device()

    def device(
        self, multiprocessors: int = 16, shared_bytes: int = 227 * 1024, grid_barrier: int = 1
    ) -> Device:
        self.library.set_device(multiprocessors, shared_bytes, 1, grid_barrier)
        return Device(multiprocessors, shared_bytes, 65536, 1)

    def plan(
        self,
        cell: str,
        batch: int,
        hidden: int,
        operand_bytes: int,
        backward: bool,
        recurrences: int = 1,
    ) -> Plan:
        problem = Problem(batch, hidden, GATES[cell], operand_bytes, int(backward), recurrences)
        plan = Plan()
        self.library.plan(*map(ctypes.byref, (problem, self.planned, plan)))
        return plan

    def launch(
        self, launcher: str, operand: str, *recurrences: dict, plan: Plan | None = None
    ) -> int:
        """Calls the launcher for recurrences given by the values of their structs, with strides
        taken from the tensors; returns its error."""
        args = (STRUCTS[launcher] * len(recurrences))()
        fields = {name for name, _ in STRUCTS[launcher]._fields_}
        tensors = {}
        for i, values in enumerate(recurrences):
            assert values.keys() <= fields
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[i, name] = value
                else:
                    setattr(args[i], name, value)
        addresses = self.addresses(tensors)
        for (i, name), x in tensors.items():
            setattr(args[i], name, addresses[i, name])
            assert x.stride(-1) == 1 or x.shape[-1] == 1
            if f"{name}_time" in fields:
                setattr(args[i], f"{name}_time", x.stride(0))
                setattr(args[i], f"{name}_row", x.stride(1))
            else:
                assert x.is_contiguous(), name
        batch, hidden = args[0].batch, args[0].hidden_size
        if plan is None:
            cell, backward = launcher.split("_")[0], launcher.endswith("backward")
            problem = (batch, hidden, OPERAND_BYTES[operand], backward, len(recurrences))
            plan = self.plan(cell, *problem)
        size = max(
            plan.workspace_bytes, 8 * batch * hidden
        )  # the latter for gru's reset-before form
        workspace = torch.full((max(size, 0) + 128,), 255, dtype=torch.uint8, device=self.memory)
        pointer = ctypes.c_void_p(workspace.data_ptr())
        function = getattr(self.library, f"{launcher}_{operand}")
        error = function(args, len(recurrences), ctypes.byref(plan), pointer)
        assert (workspace[size:] == 255).all()
        self.fetch(tensors)
        return error

    def addresses(self, tensors: dict[tuple[int, str], torch.Tensor]) -> dict:
        """Where the launcher finds the tensors, under the same keys."""
        return {key: x.data_ptr() for key, x in tensors.items()}

    def fetch(self, tensors: dict[tuple[int, str], torch.Tensor]) -> None:
        """What the launcher wrote is in the tensors from here on."""


@pytest.fixture(scope="module")
def library(host_library):
    return host_library("sequences")


@pytest.fixture
def host(library):
    return Host(library)


def spread(x: torch.Tensor, batch_first: bool) -> torch.Tensor:
    """A copy of a sequence whose rows and steps lie apart, with NaN between and behind them."""
    time, batch, width = x.shape
    shape = (batch + 1, time + 1) if batch_first else (time + 1, batch + 1)
    room = torch.full((*shape, width + 3), torch.nan, dtype=x.dtype)
    view = room.transpose(0, 1) if batch_first else room
    view[:time, :batch, :width] = x
    return view[:time, :batch, :width]


def assert_margin_untouched(*views: torch.Tensor) -> None:
    for view in views:
        written = view.numel() - int(view.isnan().sum())
        assert written == view.numel() == int((~view._base.isnan()).sum())


# ---- plain torch


class RecurrentProduct(torch.autograd.Function):
    """h @ weight.T whose operands, in backward too, are rounded; `rounded` is one of OPERANDS."""

    @staticmethod
    def forward(ctx, h, weight, rounded):
        ctx.rounded, ctx.weight = rounded, rounded(weight)
        return rounded(h) @ ctx.weight.T

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.rounded(grad_output) @ ctx.weight, None, None


def lstm(gates_x, states, weight_hh, rounded):
    (h, c), steps = states, []
    for x in gates_x:
        i, f, g, o = (x + RecurrentProduct.apply(h, weight_hh, rounded)).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        steps.append({"output": h, "gates": torch.cat([i, f, g, o], 1), "cells": c})
    return steps, {"h_n": h, "c_n": c}


def gru(gates_x, gates_h_bias, states, weight_hh, rounded, reset_after):
    (h,), steps, (w_r, w_z, w_n) = states, [], weight_hh.chunk(3)
    for x, bias in zip(gates_x, gates_h_bias, strict=True):
        (x_r, x_z, x_n), (b_r, b_z, b_n) = x.chunk(3, 1), bias.chunk(3, 1)
        r = (x_r + (RecurrentProduct.apply(h, w_r, rounded) + b_r)).sigmoid()
        z = (x_z + (RecurrentProduct.apply(h, w_z, rounded) + b_z)).sigmoid()
        if reset_after:
            fourth = RecurrentProduct.apply(h, w_n, rounded) + b_n
            n = (x_n + r * fourth).tanh()
        else:
            fourth = r * h
            n = (x_n + (RecurrentProduct.apply(fourth, w_n, rounded) + b_n)).tanh()
        h = (1 - z) * n + z * h
        steps.append({"output": h, "gates": torch.cat([r, z, n, fourth], 1)})
    return steps, {"h_n": h}


def rnn(gates_x, states, weight_hh, rounded, relu):
    (h,), steps = states, []
    for x in gates_x:
        pre = x + RecurrentProduct.apply(h, weight_hh, rounded)
        h = pre.relu() if relu else pre.tanh()
        steps.append({"output": h})
    return steps, {"h_n": h}


def reference(cell, inputs, rounded, reverse, **form):
    """Results and gradients of the cell over a sequence by plain torch, from random()'s inputs."""
    x = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    gates_x = x["gates_x"]
    states = [x["h_0"], x["c_0"]] if cell == "lstm" else [x["h_0"]]
    wanted = {"grad_gates": gates_x, "grad_h_0": x["h_0"]}
    hidden = {}
    if cell == "gru":
        shape = (*gates_x.shape[:2], -1)
        bias = inputs["bias_hh"].expand(shape).clone().requires_grad_()
        hidden = {"gates_h_bias": bias.flip(0) if reverse else bias}
        wanted = {"grad_gates_x": gates_x, "grad_gates_h": bias, "grad_h_0": x["h_0"]}
        if not form["reset_after"]:
            del wanted["grad_gates_h"]
    if cell == "lstm":
        wanted["grad_c_0"] = x["c_0"]
    run = {"lstm": lstm, "gru": gru, "rnn": rnn}[cell]
    walk = gates_x.flip(0) if reverse else gates_x
    steps, final = run(
        walk, states=states, weight_hh=x["weight_hh"].detach(), rounded=rounded, **hidden, **form
    )
    if reverse:
        steps = steps[::-1]
    results = {name: torch.stack([step[name] for step in steps]) for name in steps[0]} | final
    outputs = {"grad_output": results["output"], "grad_h_n": results["h_n"]}
    if cell == "lstm":
        outputs["grad_c_n"] = results["c_n"]
    incoming = [inputs[name] for name in outputs]
    gradients = grad(list(outputs.values()), list(wanted.values()), incoming)
    return {k: v.detach() for k, v in results.items()} | dict(zip(wanted, gradients, strict=True))


def random_inputs(cell: str, dtype, seq_len: int, batch: int, hidden: int) -> dict:
    width, state, sequence = GATES[cell] * hidden, (batch, hidden), (seq_len, batch, hidden)
    shapes = {"gates_x": (seq_len, batch, width), "h_0": state, "weight_hh": (width, hidden)}
    shapes |= {"grad_output": sequence, "grad_h_n": state}
    if cell == "lstm":
        shapes |= {"c_0": state, "grad_c_n": state}
    if cell == "gru":
        shapes |= {"bias_hh": (width,)}
    return random(dtype, **shapes)


def calls(results, cell, inputs, reverse=0, batch_first=False, **form):
    """The calls of one direction as (launcher, values): forward, inference, backward. Sequences in
    and out have strides of their own; every result is in `results` once the last call was made."""
    seq_len, batch, width = inputs["gates_x"].shape
    hidden, dtype = width // GATES[cell], inputs["gates_x"].dtype
    sizes = {"seq_len": seq_len, "batch": batch, "hidden_size": hidden, "reverse": reverse}
    sizes |= {name: int(value) for name, value in form.items()}
    inputs = {k: spread(x, batch_first) if x.dim() == 3 else x for k, x in inputs.items()}

    def sequence(width):
        return spread(torch.full((seq_len, batch, width), torch.nan, dtype=dtype), batch_first)

    def state():
        return torch.full((batch, hidden), torch.nan, dtype=dtype)

    results |= {"output": sequence(hidden), "h_n": state()}
    if cell != "rnn":
        results["gates"] = sequence(4 * hidden)
    if cell == "lstm":
        results |= {"cells": sequence(hidden), "c_n": state()}
    names = {"gates_x", "h_0", "c_0", "weight_hh", "bias_hh"} & inputs.keys()
    given = {name: inputs[name] for name in names}
    yield f"{cell}_sequence", sizes | given | results

    inference = {"output": sequence(hidden), "h_n": state()}
    if cell == "lstm":
        inference["c_n"] = state()
    scratch = {}
    if not form.get("reset_after", True):
        scratch["gates"] = torch.empty(1, batch, 4 * hidden, dtype=dtype).expand(seq_len, -1, -1)
    yield f"{cell}_sequence", sizes | given | inference | scratch
    assert all(torch.equal(inference[name], results[name]) for name in inference)

    reads = {"lstm": ("gates", "cells"), "gru": ("gates", "output"), "rnn": ("output",)}[cell]
    given = {name: results[name] for name in reads}
    names = {"c_0", "weight_hh", "grad_output", "grad_h_n", "grad_c_n"}
    names |= {"h_0"} if cell == "gru" else set()
    given |= {name: inputs[name] for name in names & inputs.keys()}
    gradients = {"grad_gates": sequence(width), "grad_h_0": state()}
    if cell == "lstm":
        gradients["grad_c_0"] = state()
    if cell == "gru":
        gradients["grad_gates_x"] = gradients.pop("grad_gates")
        if form["reset_after"]:
            gradients["grad_gates_h"] = sequence(width)
    yield f"{cell}_sequence_backward", sizes | given | gradients
    results |= gradients
    assert_margin_untouched(*(x for x in results.values() if x.dim() == 3))


def forward_and_backward(host, cell, operand, inputs, reverse=0, batch_first=False, **form):
    """Every result of the two launchers, for one direction."""
    results = {}
    for launcher, values in calls(results, cell, inputs, reverse, batch_first, **form):
        assert not host.launch(launcher, operand, values)
    return results


def run_together(host, cell, operand, inputs, **form):
    """The same for several recurrences, every other from the end, from the inputs of each."""
    results = [{} for _ in inputs]
    each = [
        calls(result, cell, given, reverse=i % 2, **form)
        for i, (result, given) in enumerate(zip(results, inputs, strict=True))
    ]
    for now in zip(*each, strict=True):
        assert not host.launch(now[0][0], operand, *(values for _, values in now))
    return results


def random_recurrences(cell: str, *sizes: tuple[int, ...]) -> list[dict]:
    """Inputs of a recurrence of each size, with nothing in common."""
    inputs = [random_inputs(cell, torch.float32, *each) for each in sizes]
    return [{name: (-0.5) ** i * x for name, x in given.items()} for i, given in enumerate(inputs)]


def assert_as_if_alone(host, cell, form, operand, inputs, together):
    """Each recurrence has the bits of a call of its own."""
    for i, (given, result) in enumerate(zip(inputs, together, strict=True)):
        alone = forward_and_backward(host, cell, operand, given, i % 2, **form)
        assert all(torch.equal(result[name], alone[name]) for name in alone)


FORMS = [
    ("lstm", {}), ("gru", {"reset_after": True}), ("gru", {"reset_after": False}),
    ("rnn", {"relu": False}), ("rnn", {"relu": True}),
]  # fmt: skip


def form_name(value):
    if isinstance(value, dict):
        return "-".join(f"{name}{int(on)}" for name, on in value.items()) or "plain"
    return None


def assert_cell_like_torch(host, cell, form, operand, sizes, reverse=0, batch_first=False):
    inputs = random_inputs(cell, torch.float32, *sizes)
    ours = forward_and_backward(host, cell, operand, inputs, reverse, batch_first, **form)

    def torch_in(gates_x, **others):
        # The truth, in float64, rounds nothing; the peer rounds the operands of the product.
        rounded = OPERANDS[operand if gates_x.dtype == torch.float32 else "float32"]
        return reference(cell, {"gates_x": gates_x, **others}, rounded, reverse, **form)

    assert_like_torch(ours, torch_in, inputs, roundings=4)  # of several steps


def assert_operands_rounded(host, operand: str, kept_bits: int, ties: str) -> None:
    """One step of relu(h_0 @ weight_hh.T) gives, on the diagonal, each value as it was rounded."""
    last, beyond = 2.0**-kept_bits, 2.0**-23
    steps = torch.tensor([last / 2 - beyond, last / 2, last / 2 + beyond, 1.5 * last])
    rounded = torch.tensor([0, last if ties == "away" else 0, last, 2 * last])
    values = torch.cat([1 + steps, -1 - steps])
    n, signs = len(values), values.sign().diag()
    for h_0, weight_hh in ((values.diag(), signs), (signs, values.diag())):
        output = torch.empty(1, n, n)
        results = {"output": output, "h_n": torch.empty(n, n)}
        given = {"gates_x": torch.zeros(1, n, n), "h_0": h_0, "weight_hh": weight_hh}
        sizes = {"seq_len": 1, "batch": n, "hidden_size": n, "relu": 1}
        assert not host.launch("rnn_sequence", operand, sizes | given | results)
        assert torch.equal(output[0], (1 + rounded).repeat(2).diag())


# ---- parity


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("cell, form", FORMS[:2] + FORMS[3:], ids=form_name)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_persistent(host, cell, form, operand, sizes):
    before = host.library.cooperative_launches()
    assert_cell_like_torch(host, cell, form, operand, sizes)
    assert host.library.cooperative_launches() == before + 3  # forward, inference, backward


ROUNDINGS = [("tf32", 10, "away"), ("float16", 10, "even"), ("bfloat16", 7, "even")]


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=str)
def test_operands_are_rounded_to_nearest(host, rounding):
    assert_operands_rounded(host, *rounding)


@pytest.mark.parametrize("operand", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell, form", FORMS[:2] + FORMS[3:4], ids=form_name)
@pytest.mark.parametrize("batch_first", [False, True])
def test_reverse_and_layouts(host, cell, form, operand, batch_first):
    assert_cell_like_torch(host, cell, form, operand, (3, 17, 9), 1, batch_first)


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("cell, form", FORMS, ids=form_name)
@pytest.mark.parametrize("sizes", [(3, 17, 9), (1, 2, 33)], ids=str)
def test_step_by_step_where_the_grid_cannot_be_resident(host, cell, form, sizes, reverse):
    host.device(multiprocessors=1, shared_bytes=4096)  # smaller than the one that was planned for
    assert_cell_like_torch(host, cell, form, "float32", sizes, reverse)
    assert host.library.cooperative_launches() == 0


@pytest.mark.parametrize("cell, form", FORMS, ids=form_name)
def test_double_goes_step_by_step(host, cell, form):
    inputs = random_inputs(cell, torch.float64, 3, 5, 7)
    ours = forward_and_backward(host, cell, "float64", inputs, **form)
    assert_like_torch(ours, lambda **x: reference(cell, x, OPERANDS["float32"], 0, **form), inputs)
    assert host.library.cooperative_launches() == 0


def test_no_incoming_gradients_are_zeros(host):
    inputs = random_inputs("lstm", torch.float32, 3, 4, 9)
    zeros = {name: torch.zeros_like(x) for name, x in inputs.items() if name.startswith("grad")}
    expected = forward_and_backward(host, "lstm", "float32", inputs | zeros)
    without = {name: x for name, x in inputs.items() if name not in zeros}
    ours = forward_and_backward(host, "lstm", "float32", without)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize("cell, form", FORMS, ids=form_name)
def test_no_steps_hand_the_states_through(host, cell, form):
    inputs = random_inputs(cell, torch.float32, 0, 3, 5)
    ours = forward_and_backward(host, cell, "float32", inputs, **form)
    pairs = [("h_n", "h_0"), ("grad_h_0", "grad_h_n")]
    pairs += [("c_n", "c_0"), ("grad_c_0", "grad_c_n")] if cell == "lstm" else []
    assert all(torch.equal(ours[out], inputs[into]) for out, into in pairs)


# ---- what the contract promises besides


@pytest.mark.parametrize("operand", ["float32", "tf32", "bfloat16"])
def test_a_row_has_the_same_bits_in_any_batch_and_plan(host, operand):
    inputs = random_inputs("lstm", torch.float32, 3, 50, 20)
    whole = forward_and_backward(host, "lstm", operand, inputs)
    many_groups = host.plan("lstm", 50, 20, 4, False)
    for rows in (slice(0, 1), slice(33, 34), slice(7, 40)):
        part = {k: x[..., rows, :] if k != "weight_hh" else x for k, x in inputs.items()}
        part = {k: x.contiguous() for k, x in part.items()}
        ours = forward_and_backward(host, "lstm", operand, part)
        assert all(torch.equal(ours[name], whole[name][..., rows, :]) for name in whole)
    host.planned = host.device(multiprocessors=2)
    one_group = host.plan("lstm", 50, 20, 4, False)
    assert many_groups.groups == 4 and one_group.groups == 1 and one_group.row_tiles == 4
    ours = forward_and_backward(host, "lstm", operand, inputs)
    assert host.library.cooperative_launches() == 3
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


PERSISTENT_FORMS = FORMS[:2] + FORMS[3:4]


@pytest.mark.parametrize("operand", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("cell, form", PERSISTENT_FORMS, ids=form_name)
@pytest.mark.parametrize("sizes", [(2, 1, 1), (3, 17, 33), (2, 65, 20), (4, 5, 61)], ids=str)
def test_two_directions_in_one_grid(host, cell, form, operand, sizes):
    inputs = random_recurrences(cell, sizes, sizes)
    together = run_together(host, cell, operand, inputs, **form)
    assert host.library.cooperative_launches() == 3  # forward, inference, backward
    assert_as_if_alone(host, cell, form, operand, inputs, together)


@pytest.mark.parametrize("cell, form", PERSISTENT_FORMS, ids=form_name)
def test_two_directions_one_after_the_other(host, cell, form):
    host.planned = host.device(multiprocessors=1)
    inputs = random_recurrences(cell, (3, 17, 13), (3, 17, 13))
    together = run_together(host, cell, "float32", inputs, **form)
    assert host.library.cooperative_launches() == 2 * 3
    assert_as_if_alone(host, cell, form, "float32", inputs, together)


@pytest.mark.parametrize("cell, form", FORMS, ids=form_name)
@pytest.mark.parametrize("current, grids", [((8, 232448), 2 * 3), ((1, 4096), 0)], ids=str)
def test_two_directions_on_a_device_that_holds_one_or_none(host, cell, form, current, grids):
    assert host.plan(cell, 17, 61, 4, False, 2).at_once == 2
    host.device(*current)  # smaller than the one that was planned for
    inputs = random_recurrences(cell, (3, 17, 61), (3, 17, 61))
    together = run_together(host, cell, "float32", inputs, **form)
    assert host.library.cooperative_launches() == (grids if form.get("reset_after", True) else 0)
    host.planned = host.device(*current)
    assert_as_if_alone(host, cell, form, "float32", inputs, together)


@pytest.mark.parametrize("cell, form", PERSISTENT_FORMS, ids=form_name)
@pytest.mark.parametrize("multiprocessors, grids", [(3, 1), (2, 2), (1, 3)], ids=str)
def test_three_recurrences_of_other_lengths(host, cell, form, multiprocessors, grids):
    host.planned = host.device(multiprocessors)
    inputs = random_recurrences(cell, (3, 17, 13), (1, 17, 13), (4, 17, 13))
    together = run_together(host, cell, "float32", inputs, **form)
    assert host.library.cooperative_launches() == grids * 3
    assert_as_if_alone(host, cell, form, "float32", inputs, together)


def test_one_of_three_recurrences_without_steps(host):
    inputs = random_recurrences("lstm", (3, 2, 5), (0, 2, 5), (1, 2, 5))
    together = run_together(host, "lstm", "float64", [
        {name: x.double() for name, x in given.items()} for given in inputs
    ])  # fmt: skip
    assert torch.equal(together[1]["h_n"], inputs[1]["h_0"].double())
    together = run_together(host, "lstm", "float32", inputs)
    assert torch.equal(together[1]["h_n"], inputs[1]["h_0"])
    assert host.library.cooperative_launches() == 0


@pytest.mark.parametrize("multiprocessors", [1, 16], ids=["steps", "persistent"])
def test_in_place(host, multiprocessors):
    host.device(multiprocessors)
    sizes = {"seq_len": 3, "batch": 17, "hidden_size": 33}
    x = random_inputs("lstm", torch.float32, *sizes.values())
    given = {name: x[name] for name in ("gates_x", "h_0", "c_0", "weight_hh")}
    states = {"h_n": torch.empty(17, 33), "c_n": torch.empty(17, 33)}
    outputs = torch.empty(2, 3, 17, 33)
    gates, in_place = torch.empty(3, 17, 4 * 33), x["gates_x"].clone()
    for gates_x, kept, out in zip(
        (x["gates_x"], in_place), (gates, in_place), outputs, strict=True
    ):
        given["gates_x"] = gates_x
        results = states | {"output": out, "gates": kept}
        assert not host.launch("lstm_sequence", "float32", sizes | given | results)
    assert torch.equal(gates, in_place) and torch.equal(*outputs)

    x = random_inputs("rnn", torch.float32, *sizes.values())
    given = {name: x[name] for name in ("h_0", "weight_hh")}
    output, in_place, h_n = torch.empty(3, 17, 33), x["gates_x"].clone(), torch.empty(17, 33)
    for gates_x, out in ((x["gates_x"], output), (in_place, in_place)):
        values = sizes | given | {"gates_x": gates_x, "output": out, "h_n": h_n}
        assert not host.launch("rnn_sequence", "float32", values)
    assert torch.equal(output, in_place)


def test_nan_stays_in_its_row(host):
    inputs = random_inputs("gru", torch.float32, 3, 20, 9)
    clean = forward_and_backward(host, "gru", "bfloat16", inputs, reset_after=True)
    inputs["h_0"][17, 5] = torch.nan
    output = torch.empty(3, 20, 9)
    names = ("gates_x", "h_0", "weight_hh", "bias_hh")
    sizes = {"seq_len": 3, "batch": 20, "hidden_size": 9, "reset_after": 1}
    given = {name: inputs[name] for name in names}
    results = {"output": output, "h_n": torch.empty(20, 9)}
    assert not host.launch("gru_sequence", "bfloat16", sizes | given | results)
    others = [row for row in range(20) if row != 17]
    assert output[:, 17].isnan().all() and torch.equal(
        output[:, others], clean["output"][:, others]
    )


def test_the_barrier_between_blocks_is_needed(host):
    host.device(grid_barrier=0)
    assert_cell_like_torch(host, "rnn", {"relu": False}, "float32", (3, 3, 1))  # one block
    with pytest.raises(AssertionError, match="error"):
        assert_cell_like_torch(host, "rnn", {"relu": False}, "float32", (3, 3, 33))


def test_a_small_plan_leaves_room_for_a_large_one_of_another_thread(host):
    for hidden in (200, 1):
        inputs = random_inputs("rnn", torch.float32, 1, 1, hidden)
        forward_and_backward(host, "rnn", "float32", inputs, relu=False)
        assert host.library.shared_allowed() == host.planned.shared_bytes


@pytest.mark.parametrize("launcher", STRUCTS)
def test_sizes_that_launch_nothing(host, launcher):
    def status(plan, *directions):
        values = [{"seq_len": 0, "batch": n, "hidden_size": hidden} for n, hidden in directions]
        return host.launch(launcher, "float32", *values, plan=plan)

    steps = Plan()
    assert status(steps, (0, 5)) == status(steps, (5, 0)) == SUCCESS
    assert status(steps, (0, 5), (0, 5)) == SUCCESS
    assert status(steps, *[(0, 5)] * 9) == SUCCESS
    for wrong in ([(-1, 5)], [(5, -1)], [(0, 5), (0, 6)], [(0, 5), (0, 5), (1, 5)]):
        assert status(steps, *wrong) == INVALID_VALUE
    cell, backward = launcher.split("_")[0], launcher.endswith("backward")
    # Plans for another batch, hidden_size, operand, and for two recurrences.
    for wrong in ((17, 5, 4), (1, 50, 4), (1, 5, 2), (1, 37, 4, 2)):
        other = host.plan(cell, *wrong[:3], backward, *wrong[3:])
        assert other.persistent
        assert status(other, (1, 37)) == INVALID_VALUE


# ---- plans


def plan_on(host, device: dict, *problem) -> Plan:
    host.planned = Device(**({"registers": 65536, "cooperative": 1} | device))
    return host.plan(*problem)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("operand_bytes", [4, 2])
@pytest.mark.parametrize("cell", GATES)
def test_a_plan_covers_everything_once_and_fits(host, cell, operand_bytes, backward):
    for hidden in (1, 37, 61, 128, 256, 512, 650, 768, 1024, 1500, 2048, 4096):
        ways = set()
        for batch, count in itertools.product((1, 16, 17, 64, 256, 1000), (1, 2, 3, 9)):
            plan = plan_on(host, H100, cell, batch, hidden, operand_bytes, backward, count)
            ways.add(plan.persistent)
            if not plan.persistent:
                assert bytes(plan) == bytes(Plan())
                continue
            assert 1 <= plan.units <= MOST_UNITS
            assert plan.blocks_per_group * plan.units >= hidden
            assert (plan.blocks_per_group - 1) * plan.units < hidden
            assert 1 <= plan.at_once <= min(count, 8)
            blocks = plan.at_once * plan.groups * plan.blocks_per_group
            assert 1 <= blocks <= H100["multiprocessors"]
            assert plan.row_tiles * ROWS >= batch > (plan.row_tiles - 1) * ROWS
            assert plan.groups <= plan.row_tiles
            slice_bytes = plan.units * GATES[cell] * hidden * operand_bytes
            assert slice_bytes < plan.shared_bytes <= H100["shared_bytes"]
            exchanged = batch * hidden * operand_bytes * (GATES[cell] if backward else 1)
            needed = plan.at_once * (2 * exchanged + 4 * plan.groups)
            assert plan.workspace_bytes >= needed
        assert len(ways) == 1, "the way must not depend on the batch or the number of recurrences"


@pytest.mark.parametrize(
    "cell, hidden, operand_bytes, persistent",
    [
        ("lstm", 1024, 4, True), ("lstm", 1500, 4, False), ("lstm", 1500, 2, True),
        ("lstm", 2048, 2, False), ("gru", 2048, 2, True), ("rnn", 2048, 4, True),
        ("rnn", 2113, 2, False), ("lstm", 8, 8, False),
    ],
)  # fmt: skip
def test_what_fits_an_h100(host, cell, hidden, operand_bytes, persistent):
    for backward in (False, True):
        plan = plan_on(host, H100, cell, 16, hidden, operand_bytes, backward)
        assert plan.persistent == persistent


def test_the_plans_of_the_stated_prediction(host):
    for directions, blocks, units in ((1, 128, 6), (2, 64, 12)):
        plan = plan_on(host, H100, "lstm", 16, 768, 2, False, directions)
        assert (plan.at_once, plan.groups) == (directions, 1)
        assert (plan.blocks_per_group, plan.units) == (blocks, units)


@pytest.mark.parametrize(
    "cell, hidden, operand_bytes, at_once",
    [("lstm", 512, 4, 2), ("lstm", 1024, 4, 1), ("lstm", 1024, 2, 2), ("gru", 1024, 4, 2),
     ("lstm", 1500, 2, 1), ("rnn", 1024, 4, 2), ("rnn", 1200, 4, 1)],
)  # fmt: skip
def test_two_at_once_on_an_h100(host, cell, hidden, operand_bytes, at_once):
    for backward in (False, True):
        plan = plan_on(host, H100, cell, 16, hidden, operand_bytes, backward, 2)
        assert plan.at_once == at_once


@pytest.mark.parametrize(
    "change",
    [{"shared_bytes": 33 * 1024}, {"multiprocessors": 7}, {"registers": 32768}, {"cooperative": 0}],
    ids=str,
)
def test_a_device_that_is_too_small_goes_step_by_step(host, change):
    assert plan_on(host, H100, "lstm", 16, 128, 4, False).persistent
    assert not plan_on(host, H100 | change, "lstm", 16, 128, 4, False).persistent
