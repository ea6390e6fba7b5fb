"""Properties that hold for every shape, flag and dtype, on examples that hypothesis draws.

The draws are the same in every run. Shapes lie around the vector widths of every ISA.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves

import rnnfast
from rnnfast import ops, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def examples(count: int, *, shrink: bool = True) -> settings:
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])]
    return settings(
        max_examples=count, phases=phases, derandomize=True, deadline=None, database=None
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Quicker on shapes this small; test_threads.py shows that threads change no bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def served_by(backend: str, isa: str | None = None) -> Iterator[None]:
    before = rnnfast.get_backend(), rnnfast.cpu_isa()
    rnnfast.set_backend(backend)
    rnnfast.set_cpu_isa(isa or before[1])
    yield
    rnnfast.set_backend(before[0])
    rnnfast.set_cpu_isa(before[1])


sizes = st.integers(1, 40)
lengths = st.integers(1, 12)
batches = st.integers(0, 9)
seeds = st.integers(0, 2**16)
backends = st.sampled_from(["auto", "rnnfast", "torch"])
isas = st.sampled_from(rnnfast.cpu_isas())


@dataclass(frozen=True)
class Layers:
    """What a module is built with."""

    name: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    dropout: float
    proj_size: int
    nonlinearity: str
    reset_after: bool

    def arguments(self) -> dict:
        arguments = {
            name: getattr(self, name)
            for name in ("num_layers", "bias", "batch_first", "bidirectional", "dropout")
        }
        if self.name == "LSTM":
            arguments["proj_size"] = self.proj_size
        if self.name == "RNN":
            arguments["nonlinearity"] = self.nonlinearity
        return arguments

    def ours(self, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
        # The draw is float32 whatever the dtype, so that all see the same numbers.
        torch.manual_seed(seed)
        form = {"reset_after": self.reset_after} if self.name == "GRU" else {}
        build = getattr(rnnfast, self.name)
        return build(self.input_size, self.hidden_size, **self.arguments(), **form).to(dtype)

    def torchs(self, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(seed)
        build = getattr(nn, self.name)
        return build(self.input_size, self.hidden_size, **self.arguments()).to(dtype)

    def states(self, batch: int) -> tuple[Tensor, ...]:
        """Initial states, in float32."""
        rows = self.num_layers * (2 if self.bidirectional else 1)
        h_0 = torch.randn(rows, batch, self.proj_size or self.hidden_size)
        return (h_0, torch.randn(rows, batch, self.hidden_size)) if self.name == "LSTM" else (h_0,)

    def sequence(self, seq_len: int, batch: int) -> Tensor:
        shape = (batch, seq_len) if self.batch_first else (seq_len, batch)
        return torch.randn(*shape, self.input_size)


@st.composite
def layers(draw: st.DrawFn, *, torch_has_it: bool = True, directions: bool = True) -> Layers:
    name = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    hidden_size = draw(sizes)
    num_layers = draw(st.integers(1, 3))
    projected = name == "LSTM" and hidden_size > 1 and draw(st.booleans())
    return Layers(
        name=name,
        input_size=draw(sizes),
        hidden_size=hidden_size,
        num_layers=num_layers,
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        bidirectional=directions and draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.3])) if num_layers > 1 else 0.0,
        proj_size=draw(st.integers(1, hidden_size - 1)) if projected else 0,
        nonlinearity=draw(st.sampled_from(["tanh", "relu"])),
        reset_after=torch_has_it or name != "GRU" or draw(st.booleans()),
    )


def hx(states: tuple[Tensor, ...] | None):
    return states if states is None or len(states) > 1 else states[0]


def floats(results) -> list[Tensor]:
    """The tensors that numbers are in: a PackedSequence also holds indices and None."""
    return [
        leaf
        for leaf in tree_leaves(results)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def results_and_gradients(
    module: nn.Module, input: Tensor | PackedSequence, states: tuple[Tensor, ...] | None
) -> list[Tensor]:
    """Output, final states and the gradients of input, initial states and parameters."""
    dtype = next(module.parameters()).dtype
    data = input.data if isinstance(input, PackedSequence) else input
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in (data, *(states or ()))]
    given = leaves[0]
    if isinstance(input, PackedSequence):
        given = input._replace(data=given)
    torch.manual_seed(1)  # of dropout
    results = floats(module(given, hx(tuple(leaves[1:]) or None)))
    torch.manual_seed(2)
    cotangents = [torch.randn(result.shape).to(dtype) for result in results]
    leaves += module.parameters()
    return [*results, *torch.autograd.grad(results, leaves, cotangents)]


def assert_close_float64(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Sums of at most a few hundred terms, three layers deep."""
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def largest(tensor: Tensor) -> Tensor:
    return tensor.detach().double().abs().max()


def assert_same_bits(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@given(layers(), lengths, batches, st.booleans(), backends, isas, seeds)
@examples(200)
def test_float64_is_torchs(layers, seq_len, batch, with_states, backend, isa, seed):
    """Results and every gradient."""
    theirs, ours = layers.torchs(seed), layers.ours(seed)
    input = layers.sequence(seq_len, batch)
    states = layers.states(batch) if with_states else None
    expected = results_and_gradients(theirs, input, states)
    with served_by(backend, isa):
        assert_close_float64(results_and_gradients(ours, input, states), expected)


@given(layers(), lengths, st.booleans(), backends, isas, seeds)
@examples(100)
def test_float64_without_a_batch_is_torchs(layers, seq_len, with_states, backend, isa, seed):
    theirs, ours = layers.torchs(seed), layers.ours(seed)
    input = layers.sequence(seq_len, 1).reshape(seq_len, layers.input_size)
    states = tuple(s.squeeze(1) for s in layers.states(1)) if with_states else None
    expected = results_and_gradients(theirs, input, states)
    with served_by(backend, isa):
        assert_close_float64(results_and_gradients(ours, input, states), expected)


@given(
    layers(),
    st.lists(lengths, min_size=1, max_size=9),
    st.booleans(),
    st.booleans(),
    backends,
    isas,
    seeds,
)
@examples(200)
def test_float64_packed_is_torchs(layers, rows, in_order, with_states, backend, isa, seed):
    theirs, ours = layers.torchs(seed), layers.ours(seed)
    if in_order:
        rows = sorted(rows, reverse=True)
    padded = layers.sequence(max(rows), len(rows))
    packed = pack_padded_sequence(padded, rows, layers.batch_first, enforce_sorted=in_order)
    states = layers.states(len(rows)) if with_states else None
    expected = results_and_gradients(theirs, packed, states)
    with served_by(backend, isa):
        assert_close_float64(results_and_gradients(ours, packed, states), expected)


@given(
    layers(),
    lengths,
    st.integers(1, 9),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    isas,
    seeds,
)
# Each is dear, and to make a failing one small takes hundreds more.
@examples(90, shrink=False)
def test_error_is_at_most_twice_torchs(layers, seq_len, batch, dtype, isa, seed):
    """With the same module in float64 as truth, and four ULP to spare.

    The error of a tensor is its largest deviation from the truth relative to the truth's largest
    magnitude, both averaged over draws: a single one may be unlucky for one of the two.
    """
    layers = replace(layers, dropout=0.0)
    measured = []
    for draw in range(seed, seed + 16):
        theirs = layers.torchs(draw, dtype)
        ours = layers.ours(draw, dtype)
        double = layers.torchs(draw, dtype).double()
        inputs = [layers.sequence(seq_len, batch), *layers.states(batch)]
        input, *states = (tensor.to(dtype) for tensor in inputs)
        truth = results_and_gradients(double, input, states)
        with served_by("rnnfast", isa):
            pair = [results_and_gradients(module, input, states) for module in (theirs, ours)]
        measured.append(
            [
                torch.stack([largest(expected), largest(torchs - expected), largest(us - expected)])
                for torchs, us, expected in zip(*pair, truth, strict=True)
            ]
        )
        assert [tensor.dtype for tensor in pair[1]] == [tensor.dtype for tensor in pair[0]]
    spare = 4 * torch.finfo(dtype).eps
    for draws in zip(*measured, strict=True):
        magnitude, torchs_error, our_error = torch.stack(draws).mean(0)
        # Not `not >`, which NaN would pass.
        assert our_error <= 2 * torchs_error + spare * magnitude


@given(
    layers(torch_has_it=False),
    lengths,
    st.integers(1, 9),
    st.data(),
    st.sampled_from(DTYPES),
    st.booleans(),
    isas,
    seeds,
)
@examples(200)
def test_a_row_does_not_depend_on_the_rest_of_the_batch(
    layers, seq_len, batch, data, dtype, recording, isa, seed
):
    layers = replace(layers, dropout=0.0)
    module = layers.ours(seed, dtype)
    input = layers.sequence(seq_len, batch).to(dtype)
    states = tuple(state.to(dtype) for state in layers.states(batch))
    rows = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=12))
    dim = 0 if layers.batch_first else 1
    with served_by("rnnfast", isa), torch.set_grad_enabled(recording):
        output, final = module(input, hx(states))
        some = input.index_select(dim, torch.tensor(rows))
        some_output, some_final = module(some, hx(tuple(state[:, rows] for state in states)))
    assert_same_bits(some_output, output.index_select(dim, torch.tensor(rows)))
    assert_same_bits(floats(some_final), [state[:, rows] for state in floats(final)])


@given(
    layers(torch_has_it=False),
    st.lists(lengths, min_size=1, max_size=9),
    st.sampled_from(DTYPES),
    st.booleans(),
    isas,
    seeds,
)
@examples(150)
def test_packed_is_each_sequence_by_itself(layers, rows, dtype, recording, isa, seed):
    """In either direction, and its final state too."""
    if dtype == torch.bfloat16:  # a single step, when it is by itself, multiplies in float32
        rows = [max(length, 2) for length in rows]
    layers = replace(layers, dropout=0.0, batch_first=False)
    module = layers.ours(seed, dtype)
    padded = layers.sequence(max(rows), len(rows)).to(dtype)
    states = tuple(state.to(dtype) for state in layers.states(len(rows)))
    packed = pack_padded_sequence(padded, rows, enforce_sorted=False)
    with served_by("rnnfast", isa), torch.set_grad_enabled(recording):
        output, final = module(packed, hx(states))
        output, _ = nn.utils.rnn.pad_packed_sequence(output)
        for row, length in enumerate(rows):
            alone, alone_final = module(
                padded[:length, row : row + 1],
                hx(tuple(state[:, row : row + 1] for state in states)),
            )
            assert_same_bits(output[:length, row : row + 1], alone)
            for state, expected in zip(floats(final), floats(alone_final), strict=True):
                assert_same_bits(state[:, row : row + 1], expected)


@given(
    layers(directions=False, torch_has_it=False),
    st.lists(lengths, min_size=1, max_size=9),
    st.sampled_from(DTYPES),
    isas,
    seeds,
)
@examples(150)
def test_packed_is_padded_where_there_are_steps(layers, rows, dtype, isa, seed):
    layers = replace(layers, dropout=0.0)
    module = layers.ours(seed, dtype)
    padded = layers.sequence(max(rows), len(rows)).to(dtype)
    packed = pack_padded_sequence(padded, rows, layers.batch_first, enforce_sorted=False)
    with served_by("rnnfast", isa), torch.no_grad():
        whole, _ = module(padded)
        output, _ = module(packed)
    expected = pack_padded_sequence(whole, rows, layers.batch_first, enforce_sorted=False)
    assert_same_bits(output.data, expected.data)


@given(
    layers(torch_has_it=False),
    st.lists(st.integers(0, 12), min_size=1, max_size=9),
    st.sampled_from(DTYPES),
    isas,
    seeds,
)
@examples(150)
def test_lengths_are_packing(layers, rows, dtype, isa, seed):
    """And rows without a step keep their initial state."""
    assume(max(rows) > 0)
    layers = replace(layers, dropout=0.0)
    module = layers.ours(seed, dtype)
    padded = layers.sequence(max(rows), len(rows)).to(dtype)
    states = tuple(state.to(dtype) for state in layers.states(len(rows)))
    some = [row for row, length in enumerate(rows) if length > 0]
    none = [row for row, length in enumerate(rows) if length == 0]
    dim = 0 if layers.batch_first else 1
    packed = pack_padded_sequence(
        padded.index_select(dim, torch.tensor(some)),
        [rows[row] for row in some],
        layers.batch_first,
        enforce_sorted=False,
    )
    with served_by("rnnfast", isa), torch.no_grad():
        output, final = module(padded, hx(states), lengths=torch.tensor(rows))
        by_packing, last = module(packed, hx(tuple(state[:, some] for state in states)))
    expected, _ = nn.utils.rnn.pad_packed_sequence(by_packing, layers.batch_first)
    assert_same_bits(output.index_select(dim, torch.tensor(some)), expected)
    for state, expected, initial in zip(floats(final), floats(last), states, strict=True):
        assert_same_bits(state[:, some], expected)
        assert_same_bits(state[:, none], initial[:, none])


@given(
    layers(directions=False, torch_has_it=False),
    st.integers(2, 12),
    st.integers(1, 9),
    st.data(),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    isas,
    seeds,
)
@examples(200)
def test_two_calls_with_carried_states_are_one(
    layers, seq_len, batch, data, dtype, recording, isa, seed
):
    """To the bit where a state is not rounded on its way from call to call."""
    layers = replace(layers, dropout=0.0)
    module = layers.ours(seed, dtype)
    input = layers.sequence(seq_len, batch).to(dtype)
    cut = data.draw(st.integers(1, seq_len - 1))
    dim = 1 if layers.batch_first else 0
    first, second = input.split([cut, seq_len - cut], dim)
    with served_by("rnnfast", isa), torch.set_grad_enabled(recording):
        whole, final = module(input)
        head, carried = module(first)
        tail, last = module(second, carried)
    assert_same_bits(torch.cat([head, tail], dim), whole)
    assert_same_bits(floats(last), floats(final))


@given(
    st.sampled_from(["LSTM", "GRU", "RNN"]),
    sizes,
    sizes,
    lengths,
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    isas,
    seeds,
)
@examples(150)
def test_a_cell_step_by_step_is_the_layer(
    name, input_size, hidden_size, seq_len, batch, bias, dtype, isa, seed
):
    torch.manual_seed(seed)
    layer = getattr(rnnfast, name)(input_size, hidden_size, bias=bias, dtype=dtype)
    cell = getattr(rnnfast, f"{name}Cell")(input_size, hidden_size, bias=bias, dtype=dtype)
    weights = {key.removesuffix("_l0"): value for key, value in layer.state_dict().items()}
    cell.load_state_dict(weights)
    input = torch.randn(seq_len, batch, input_size, dtype=dtype)
    with served_by("rnnfast", isa):
        output, final = layer(input)
        state = None
        for step, expected in zip(input, output, strict=True):
            state = cell(step, state)
            assert_same_bits(state[0] if name == "LSTM" else state, expected)
        assert_same_bits([s.unsqueeze(0) for s in floats(state)], floats(final))


@dataclass(frozen=True)
class Call:
    """A call of an operator by its function in rnnfast.ops."""

    cell: str
    input_size: int
    hidden_size: int
    seq_len: int
    batch: int
    proj_size: int
    batch_sizes: tuple[int, ...] | None
    bias_ih: bool
    bias_hh: bool
    options: tuple[tuple[str, bool | str], ...]

    def arguments(self) -> dict[str, Tensor | None]:
        gates = {"lstm": 4, "gru": 3, "rnn": 1}[self.cell] * self.hidden_size
        features = self.proj_size or self.hidden_size
        batch_first = dict(self.options).get("batch_first")
        if self.batch_sizes is not None:
            rows = (sum(self.batch_sizes),)
        else:
            rows = (self.batch, self.seq_len) if batch_first else (self.seq_len, self.batch)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64)

        arguments = {"input": normal(*rows, self.input_size), "h_0": normal(self.batch, features)}
        if self.cell == "lstm":
            arguments["c_0"] = normal(self.batch, self.hidden_size)
        arguments["weight_ih"] = normal(gates, self.input_size) / self.input_size
        arguments["weight_hh"] = normal(gates, features) / features
        arguments["bias_ih"] = normal(gates) if self.bias_ih else None
        arguments["bias_hh"] = normal(gates) if self.bias_hh else None
        if self.cell == "lstm":
            projection = normal(self.proj_size, self.hidden_size) if self.proj_size else None
            arguments["weight_hr"] = projection
        return arguments


@st.composite
def calls(draw: st.DrawFn) -> Call:
    cell = draw(st.sampled_from(["lstm", "gru", "rnn"]))
    hidden_size, seq_len, batch = draw(sizes), draw(st.integers(0, 12)), draw(batches)
    options = {"reverse": draw(st.booleans())}
    batch_sizes = None
    if draw(st.booleans()):
        steps = st.lists(st.integers(0, batch), min_size=seq_len, max_size=seq_len)
        batch_sizes = tuple(sorted(draw(steps), reverse=True))
    else:
        options["batch_first"] = draw(st.booleans())
    if cell == "gru":
        options["reset_after"] = draw(st.booleans())
    if cell == "rnn":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    return Call(
        cell=cell,
        input_size=draw(sizes),
        hidden_size=hidden_size,
        seq_len=seq_len,
        batch=batch,
        proj_size=draw(st.integers(0, hidden_size)) if cell == "lstm" else 0,
        batch_sizes=batch_sizes,
        bias_ih=draw(st.booleans()),
        bias_hh=draw(st.booleans()),
        options=tuple(options.items()),
    )


@given(calls(), isas, seeds)
@examples(300)
def test_operators_are_their_references(call, isa, seed):
    """In float64, gradients included, also where there is no step, no row or one bias."""
    torch.manual_seed(seed)
    arguments = call.arguments()
    options = dict(call.options)
    if call.batch_sizes is not None:
        options["batch_sizes"] = torch.tensor(call.batch_sizes, dtype=torch.int64)
    num_results = 3 if call.cell == "lstm" else 2
    cotangents: list[Tensor] = []

    def run(function: Callable) -> list[Tensor | None]:
        leaves = {
            key: None if tensor is None else tensor.clone().requires_grad_()
            for key, tensor in arguments.items()
        }
        results = function(*leaves.values(), **options)[:num_results]
        if not cotangents:
            cotangents.extend(torch.randn_like(result) for result in results)
        # Without a step, the twin's output comes from nothing.
        differentiable = [
            (result, cotangent)
            for result, cotangent in zip(results, cotangents, strict=True)
            if result.requires_grad
        ]
        gradients = torch.autograd.grad(
            [result for result, _ in differentiable],
            [leaf for leaf in leaves.values() if leaf is not None],
            [cotangent for _, cotangent in differentiable],
            allow_unused=True,
            materialize_grads=True,
        )
        return [*results, *gradients]

    with served_by("auto", isa):
        expected = run(getattr(reference, call.cell))
        actual = run(getattr(ops, call.cell))
    assert_close_float64(actual, expected)
    if call.seq_len == 0:
        assert_same_bits(actual[1], arguments["h_0"])
