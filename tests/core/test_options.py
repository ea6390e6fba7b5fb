"""What the layers have beyond torch.nn's: the constructor's options, and `lengths`."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast
from rnnfast import reference

pytestmark = pytest.mark.usefixtures("kernels")

INPUT_SIZE, HIDDEN_SIZE, SEQ_LEN, BATCH = 3, 5, 6, 4
# Unsorted, one of no step, one of all.
LENGTHS = [3, 0, SEQ_LEN, 1]

KINDS = {
    "LSTM": ("LSTM", {}),
    "LSTM projected": ("LSTM", {"proj_size": 4}),
    "GRU": ("GRU", {}),
    "GRU reset before": ("GRU", {"reset_after": False}),
    "RNN": ("RNN", {}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_layer = pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
both_layouts = pytest.mark.parametrize("batch_first", [False, True], ids=["time", "batch"])

# Deviations in float64 of sums as short as those here.
close = functools.partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)


def build(kind: str, *, dtype: torch.dtype = torch.float64, **options) -> nn.Module:
    name, form = KINDS[kind]
    torch.manual_seed(0)
    return getattr(rnnfast, name)(INPUT_SIZE, HIDDEN_SIZE, dtype=dtype, **form, **options)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def random_input(module: nn.Module, seq_len: int = SEQ_LEN) -> Tensor:
    torch.manual_seed(1)
    sizes = (BATCH, seq_len) if module.batch_first else (seq_len, BATCH)
    return random(*sizes, INPUT_SIZE)


def random_states(module: nn.Module, *batch: int) -> Tensor | tuple[Tensor, Tensor]:
    """A random hx."""
    torch.manual_seed(2)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h_0 = random(rows, *batch, module.proj_size or HIDDEN_SIZE)
    return (h_0, random(rows, *batch, HIDDEN_SIZE)) if module.mode == "LSTM" else h_0


def flat(result) -> list[Tensor]:
    """The tensors of a result or hx, however nested; of a PackedSequence its data."""
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


def each(function, hx):
    """The hx with the function applied to each of its tensors."""
    return tuple(map(function, hx)) if isinstance(hx, tuple) else function(hx)


def assert_same_bits(results, expected) -> None:
    for a, b in zip(flat(results), flat(expected), strict=True):
        assert torch.equal(a, b)


def loss(results: list[Tensor]) -> Tensor:
    """A number on which every element of every result has its own influence."""
    return sum(
        (torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view(x.shape) * x).sum()
        for x in results
    )


def gradients(module: nn.Module, total: Tensor, *more: Tensor) -> list[Tensor]:
    leaves = [*module.parameters(), *more]
    return list(torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True))


def reference_states(module: nn.Module, x: Tensor, hx) -> list[tuple[Tensor, ...]]:
    """h_t, and c_t of an LSTM, of every layer and step by the plain-torch specification; `x` is
    time-major."""
    cell = module.mode.split("_")[0].lower()
    form = {} if module.mode != "GRU" else {"reset_after": module.reset_after}
    directions = 2 if module.bidirectional else 1
    states = hx if isinstance(hx, tuple) else (hx,)
    layers = []
    for layer in range(module.num_layers):
        results = []
        for direction in range(directions):
            index = layer * directions + direction
            initial = [state[index] for state in states]
            output, *rest = getattr(reference, cell)(
                x, *initial, *module.all_weights[index], **form, reverse=direction == 1
            )
            results.append((output, rest[2]) if cell == "lstm" else (output,))
        layers.append(tuple(torch.cat(pair, dim=-1) for pair in zip(*results, strict=True)))
        x = layers[-1][0]
    return layers


class TestReturnStates:
    @pytest.mark.parametrize("layout", ["time", "batch", "unbatched"])
    @every_kind
    def test_they_are_those_of_single_steps(self, kind, layout):
        module = build(kind, num_layers=2, return_states=True, batch_first=layout == "batch")
        x = random_input(module)
        if layout == "unbatched":
            x = x[:, 0]
        hx = random_states(module, *([] if layout == "unbatched" else [BATCH]))
        time = 1 if layout == "batch" else 0
        output, _, states = module(x, hx)
        assert isinstance(states, tuple) and len(states) == 2
        assert torch.equal(flat(states[-1])[0], output)
        for step in range(SEQ_LEN):
            _, hx, _ = module(x.narrow(time, step, 1), hx)
            for layer in range(2):
                for sequence, state in zip(flat(states[layer]), flat(hx), strict=True):
                    close(sequence.select(time, step), state[layer])

    @both_layouts
    @every_kind
    def test_of_a_bidirectional_stack(self, kind, batch_first):
        """Values and gradients, one state of one step in the middle at a time."""
        module = build(
            kind, num_layers=2, bidirectional=True, return_states=True, batch_first=batch_first
        )
        x = random_input(module).requires_grad_()
        hx = each(Tensor.requires_grad_, random_states(module, BATCH))
        time_major = x.transpose(0, 1) if batch_first else x
        states = flat(module(x, hx)[2])
        expected = flat(reference_states(module, time_major, hx))
        for ours, theirs in zip(states, expected, strict=True):
            if batch_first:
                ours = ours.transpose(0, 1)
            close(ours, theirs)
            middle = [loss([sequence[SEQ_LEN // 2]]) for sequence in (ours, theirs)]
            close(*(gradients(module, total, x, *flat(hx)) for total in middle))

    def test_a_cell_state_depends_on_nothing_later(self):
        module = build("LSTM", return_states=True)
        x = random_input(module).requires_grad_()
        ((_, cells),) = module(x)[2]
        (gradient,) = torch.autograd.grad(cells[3].sum(), x)
        assert gradient[:4].ne(0).all() and gradient[4:].eq(0).all()

    @every_kind
    def test_without_recording(self, kind):
        module = build(kind, num_layers=2, bidirectional=True, return_states=True)
        x = random_input(module)
        expected = module(x)
        with torch.no_grad():
            results = module(x)
        assert_same_bits(results, expected)
        assert not any(tensor.requires_grad for tensor in flat(results))
        # The other results are those of a module without the option.
        assert_same_bits(results[:2], build(kind, num_layers=2, bidirectional=True)(x))

    @every_kind
    def test_packed_and_with_lengths(self, kind):
        module = build(kind, num_layers=2, bidirectional=True, return_states=True)
        lengths = [3, 5, SEQ_LEN, 1]
        x = random_input(module)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        _, _, states = module(packed)
        _, _, padded = module(x, lengths=lengths)
        flat_states = [sequence for layer in states for sequence in self.sequences(layer)]
        for sequence, with_lengths in zip(flat_states, flat(padded), strict=True):
            assert isinstance(sequence, PackedSequence)
            for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
                assert torch.equal(getattr(sequence, field), getattr(packed, field))
            assert torch.equal(nn.utils.rnn.pad_packed_sequence(sequence)[0], with_lengths)

    @staticmethod
    def sequences(layer) -> tuple[PackedSequence, ...]:
        """A PackedSequence is a tuple itself."""
        return (layer,) if isinstance(layer, PackedSequence) else layer

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @every_layer
    def test_their_dtype_is_that_of_the_input(self, name, dtype):
        module = build(name, dtype=dtype, return_states=True)
        states = flat(module(random_input(module).to(dtype))[2])
        assert [state.dtype for state in states] == [dtype] * len(states)


class TestLearntInitialState:
    OPTIONS = {"num_layers": 2, "bidirectional": True, "learn_initial_state": True}

    def randomized(self, kind: str, **options) -> nn.Module:
        module = build(kind, **self.OPTIONS, **options)
        with torch.no_grad():
            for name, value in zip(module._state_names, flat(random_states(module)), strict=True):
                getattr(module, name).copy_(value)
        return module

    @every_kind
    def test_parameters(self, kind):
        module = build(kind, **self.OPTIONS)
        plain = build(kind, num_layers=2, bidirectional=True)
        sizes = {"h_0": module.proj_size or HIDDEN_SIZE}
        if module.mode == "LSTM":
            sizes["c_0"] = HIDDEN_SIZE
        state = module.state_dict()
        assert list(state) == [*plain.state_dict(), *sizes]
        for name, size in sizes.items():
            assert isinstance(getattr(module, name), nn.Parameter)
            assert torch.equal(state[name], torch.zeros(4, size, dtype=torch.float64))
        for name, value in plain.state_dict().items():
            assert torch.equal(value, state[name])
        # Zero at first: nothing changes.
        x = random_input(module)
        assert_same_bits(module(x), plain(x))

        changed = self.randomized(kind)
        module.load_state_dict(changed.state_dict())
        assert_same_bits(module(x), changed(x))
        torch.manual_seed(0)
        module.reset_parameters()
        assert_same_bits(list(module.parameters()), list(state.values()))

    @pytest.mark.parametrize("layout", ["time", "batch", "unbatched", "packed", "lengths"])
    @every_kind
    def test_used_and_learnt_where_no_state_is_given(self, kind, layout):
        module = self.randomized(kind, batch_first=layout == "batch")
        x = random_input(module)
        more = {}
        batch = [BATCH]
        if layout == "unbatched":
            x, batch = x[:, 0], []
        elif layout == "packed":
            x = pack_padded_sequence(x, [2, 6, 1, 3], enforce_sorted=False)
        elif layout == "lengths":
            more["lengths"] = LENGTHS
        names = module._state_names
        given = tuple(getattr(module, name).detach() for name in names)
        if batch:
            given = tuple(state.unsqueeze(1).repeat(1, BATCH, 1) for state in given)
        given = tuple(state.requires_grad_() for state in given)
        results = flat(module(x, **more))
        expected = flat(module(x, given if len(given) == 2 else given[0], **more))
        assert_same_bits(results, expected)

        learnt = torch.autograd.grad(loss(results), [getattr(module, name) for name in names])
        of_rows = torch.autograd.grad(loss(expected), given)
        close(learnt, tuple(row.sum(1) if batch else row for row in of_rows))
        # It had no part where hx was given.
        loss(flat(module(x, each(Tensor.detach, random_states(module, *batch))))).backward()
        assert module.h_0.grad is None


class TestInitialization:
    @every_layer
    def test_defaults_are_torchs_to_the_bit(self, name):
        """Options that say nothing about initialisation draw nothing either."""
        torch.manual_seed(0)
        theirs = getattr(nn, name)(3, 5, 2, bidirectional=True)
        drawn = torch.rand(1)
        defaults = {"learn_initial_state": False, "recurrent_init": "uniform"}
        if name == "LSTM":
            defaults["forget_bias"] = None
        for options in (
            defaults | {"memory": "full", "return_states": False},
            {"memory": "recompute", "learn_initial_state": True},
            {"return_states": True},
        ):
            torch.manual_seed(0)
            ours = getattr(rnnfast, name)(3, 5, 2, bidirectional=True, **options)
            assert torch.equal(torch.rand(1), drawn)
            for key, value in theirs.named_parameters():
                assert torch.equal(getattr(ours, key), value)

    @every_kind
    def test_orthogonal(self, kind):
        options = {"num_layers": 2, "bidirectional": True}
        module = build(kind, recurrent_init="orthogonal", **options)
        built = [value.clone() for value in module.parameters()]
        for name, value in build(kind, **options).named_parameters():
            ours = getattr(module, name)
            if not name.startswith("weight_hh"):
                assert torch.equal(ours, value)
                continue
            assert ours.shape == value.shape
            gates = ours.detach().split(HIDDEN_SIZE)
            for gate in gates:
                # As many orthonormal columns as there are; with a projection fewer than rows.
                close(gate.T @ gate, torch.eye(gate.size(1), dtype=gate.dtype))
            assert len({gate[0, 0].item() for gate in gates}) == len(gates)
        torch.manual_seed(0)
        module.reset_parameters()
        assert_same_bits(list(module.parameters()), built)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_orthogonal_in_half_types(self, dtype):
        module = build("GRU", dtype=dtype, recurrent_init="orthogonal")
        for gate in module.weight_hh_l0.detach().float().split(HIDDEN_SIZE):
            error = (gate @ gate.T - torch.eye(HIDDEN_SIZE)).abs().max()
            # Of the rounding of entries up to 1, a few times.
            assert error < 4 * torch.finfo(dtype).eps

    @pytest.mark.parametrize("projection", [{}, {"proj_size": 4}], ids=["plain", "projected"])
    def test_forget_bias(self, projection):
        options = {"num_layers": 2, "bidirectional": True, **projection}
        module = build("LSTM", forget_bias=1.0, **options)
        forget = slice(HIDDEN_SIZE, 2 * HIDDEN_SIZE)
        for _ in range(2):
            for _, _, bias_ih, bias_hh, *_ in module.all_weights:
                assert (bias_ih + bias_hh)[forget].eq(1).all()
            torch.manual_seed(0)
            module.reset_parameters()
        for name, value in build("LSTM", **options).named_parameters():
            same = getattr(module, name) == value
            if name.startswith("bias"):
                assert not same[forget].any()
                same[forget] = True
            assert same.all()


class TestLengths:
    @pytest.mark.parametrize("given", [False, True], ids=["zero_states", "given_states"])
    @both_layouts
    @every_kind
    def test_each_sequence_is_as_if_alone(self, kind, batch_first, given):
        """To the bit; a direction that runs backwards starts at the sequence's own end."""
        module = build(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
        x = random_input(module).requires_grad_()
        hx = random_states(module, BATCH) if given else None
        leaves = [x]
        if given:
            hx = each(Tensor.requires_grad_, hx)
            leaves += flat(hx)
        rows, time = (0, 1) if batch_first else (1, 0)

        output, final = module(x, hx, lengths=LENGTHS)
        assert output.shape[:2] == x.shape[:2]
        outputs, finals = [], []
        for row, length in enumerate(LENGTHS):
            own = None if hx is None else each(lambda state: state[:, row : row + 1], hx)  # noqa: B023
            whole = output.new_zeros(output.select(rows, row).unsqueeze(rows).shape)
            if length:
                alone, last = module(x.narrow(rows, row, 1).narrow(time, 0, length), own)
                beyond = whole.narrow(time, length, SEQ_LEN - length)
                whole = torch.cat((alone, beyond), time)
            else:
                zeros = each(torch.zeros_like, random_states(module, 1))
                last = zeros if own is None else own
            outputs.append(whole)
            finals.append(flat(last))
        expected = [torch.cat(outputs, rows)]
        expected += [torch.cat(states, 1) for states in zip(*finals, strict=True)]
        results = [output, *flat(final)]
        assert_same_bits(results, expected)
        close(gradients(module, loss(results), *leaves), gradients(module, loss(expected), *leaves))

    @every_layer
    def test_forms_in_which_they_may_come(self, name):
        module = build(name)
        x = random_input(module)
        expected = module(x, lengths=LENGTHS)
        for dtype in (torch.uint8, torch.int32, torch.int64):
            assert_same_bits(module(x, lengths=torch.tensor(LENGTHS, dtype=dtype)), expected)
        assert_same_bits(module(x, lengths=tuple(LENGTHS)), expected)
        assert_same_bits(module(x, lengths=torch.tensor(LENGTHS).numpy()), expected)
        assert_same_bits(module(x, lengths=[SEQ_LEN] * BATCH), module(x))

    @pytest.mark.parametrize("batch", [0, BATCH])
    @every_layer
    def test_no_step_at_all(self, name, batch):
        module = build(name, num_layers=2, bidirectional=True)
        hx = random_states(module, batch)
        output, final = module(random(SEQ_LEN, batch, INPUT_SIZE), hx, lengths=[0] * batch)
        assert torch.equal(output, output.new_zeros(SEQ_LEN, batch, 2 * HIDDEN_SIZE))
        assert_same_bits(final, hx)

    @both_layouts
    @every_kind
    def test_what_is_beyond_an_end_is_never_read(self, kind, batch_first):
        module = build(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
        x = random_input(module)
        expected = module(x, lengths=LENGTHS)
        for row, length in enumerate(LENGTHS):
            (x[row, length:] if batch_first else x[length:, row]).fill_(float("nan"))
        x.requires_grad_()
        results = module(x, lengths=LENGTHS)
        assert_same_bits(results, expected)
        (gradient,) = torch.autograd.grad(loss(flat(results)), x)
        assert torch.equal(gradient, gradient.where(~x.isnan(), 0.0))

    def test_dropout_between_layers(self):
        """A share of what there is; at 1 the second layer hears nothing."""
        module = build("GRU", num_layers=2, dropout=1.0)
        x = random_input(module)
        output, h_n = module(x, lengths=LENGTHS)
        assert_same_bits(output, module(2 * x, lengths=LENGTHS)[0])
        assert_same_bits(h_n[0], module.eval()(x, lengths=LENGTHS)[1][0])

    @pytest.mark.parametrize(
        ("lengths", "message"),
        [
            ([1, 2, 3], r"lengths must be 4 integers, got 3"),
            ([1, 2, 3, 4, 5], r"lengths must be 4 integers, got 5"),
            ([1, 2, 3, SEQ_LEN + 1], r"lengths must be from 0 to seq_len \(6\), got 1 to 7"),
            ([1, -1, 3, 2], r"lengths must be from 0 to seq_len \(6\), got -1 to 3"),
            ([1.0, 2.0, 3.0, 4.0], r"lengths must be 4 integers, got a torch.float32 tensor"),
            (torch.ones(4, dtype=torch.bool), r"lengths must be 4 integers, got a torch.bool"),
            (torch.ones(4, 1, dtype=torch.int64), r"lengths must be 4 integers, got .* \(4, 1\)"),
            (3, r"lengths must be 4 integers, got .* \(\)"),
            ([1, None, 2, 3], r"lengths must be 4 integers, got \[1, None, 2, 3\]"),
        ],
    )
    @every_layer
    def test_wrong_ones(self, name, lengths, message):
        module = build(name)
        with pytest.raises(ValueError, match=message):
            module(random_input(module), lengths=lengths)

    @every_layer
    def test_only_for_padded_batches(self, name):
        module = build(name)
        x = random_input(module)
        packed = pack_padded_sequence(x, [6, 5, 4, 1])
        for input, described in ((packed, "PackedSequence"), (x[:, 0], r"shape \(6, 3\)")):
            with pytest.raises(ValueError, match=f"lengths go with a padded batch.*{described}"):
                module(input, lengths=[6, 5, 4, 1])

    def test_of_a_sequence_there_is_no_limit(self):
        torch.manual_seed(0)
        module = rnnfast.LSTM(1, 2, dtype=torch.float64)
        x = torch.randn(100_000, 1, 1, dtype=torch.float64, requires_grad=True)
        output, final = module(x)
        pieces, carried = [], None
        for piece in x.split(10_000):
            part, carried = module(piece, carried)
            pieces.append(part)
        joined = torch.cat(pieces)
        assert torch.equal(output[-1], joined[-1])
        assert_same_bits([output, final], [joined, carried])
        ours, expected = (gradients(module, loss([result]), x) for result in (output, joined))
        assert expected[-1][-1].ne(0).all() and expected[-1][0].ne(0).all()
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


class TestRecompute:
    """memory="recompute" changes no bit of the results and no gradient beyond rounding."""

    # Several segments, the last of them shorter.
    SEQ_LEN = 200
    LENGTHS = [150, 1, SEQ_LEN, 33]

    def pair(self, kind: str, **options) -> list[nn.Module]:
        return [build(kind, memory=memory, **options) for memory in ("full", "recompute")]

    @pytest.mark.parametrize("form", ["time", "batch", "unbatched", "packed", "lengths"])
    @every_kind
    def test_same_results_and_gradients(self, kind, form):
        outcomes = []
        for module in self.pair(
            kind, num_layers=2, bidirectional=True, dropout=0.3, batch_first=form == "batch"
        ):
            x = random_input(module, self.SEQ_LEN)
            more, batch = {}, [BATCH]
            if form == "unbatched":
                x, batch = x[:, 0].contiguous(), []
            elif form == "lengths":
                more["lengths"] = [0, *self.LENGTHS[1:]]
            x.requires_grad_()
            hx = each(Tensor.requires_grad_, random_states(module, *batch))
            given = x
            if form == "packed":
                given = pack_padded_sequence(x, self.LENGTHS, enforce_sorted=False)
            torch.manual_seed(3)  # for dropout
            results = flat(module(given, hx, **more))
            total = loss([result.square() for result in results])
            outcomes.append((results, gradients(module, total, x, *flat(hx))))
        (expected, expected_gradients), (results, own_gradients) = outcomes
        assert_same_bits(results, expected)
        close(own_gradients, expected_gradients, rtol=1e-9)

    @pytest.mark.parametrize("seq_len", [1, 32, 33, 65])
    @every_layer
    def test_same_bits_however_it_is_cut(self, name, seq_len):
        """Kernels sum in another order where a segment has a single step, if sums are long."""
        torch.manual_seed(0)
        full = getattr(rnnfast, name)(150, 150)
        recompute = getattr(rnnfast, name)(150, 150, memory="recompute")
        recompute.load_state_dict(full.state_dict())
        x = torch.randn(seq_len, 2, 150)
        assert_same_bits(recompute(x), full(x))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @every_layer
    def test_same_bits_in_other_dtypes(self, name, dtype):
        full, recompute = self.pair(name, dtype=dtype, learn_initial_state=True)
        x = random_input(full, self.SEQ_LEN).to(dtype)
        assert_same_bits(recompute(x), full(x))
        with torch.no_grad():
            assert_same_bits(recompute(x), full(x))

    @pytest.mark.parametrize("lengths", [None, [70, 0, 40, 33]], ids=["padded", "lengths"])
    @every_kind
    def test_gradients_of_gradients(self, kind, lengths):
        outcomes = []
        for module in self.pair(kind):
            x = random_input(module, 70).requires_grad_()
            output = module(x, lengths=lengths)[0]
            (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
            outcomes.append([first, *gradients(module, first.square().sum(), x)])
        close(outcomes[1], outcomes[0], rtol=1e-9)

    @every_layer
    def test_backward_twice_through_one_graph(self, name):
        _, module = self.pair(name)
        x = random_input(module, 70).requires_grad_()
        total = module(x)[0].square().sum()
        first = torch.autograd.grad(total, [x, *module.parameters()], retain_graph=True)
        second = torch.autograd.grad(total, [x, *module.parameters()])
        assert_same_bits(second, first)

    @every_layer
    def test_some_weights_frozen(self, name):
        full, recompute = self.pair(name)
        x = random_input(full, 70)
        for module in (full, recompute):
            for frozen in (module.weight_ih_l0, module.bias_hh_l0):
                frozen.requires_grad_(False)
            module(x)[0].square().sum().backward()
        for own, expected in zip(recompute.parameters(), full.parameters(), strict=True):
            assert (own.grad is None) == (expected.grad is None)
            if own.grad is not None:
                close(own.grad, expected.grad, rtol=1e-9)

    def test_nothing_to_differentiate(self):
        """A frozen module takes tensors of inference mode, as without the option."""
        full, recompute = (module.requires_grad_(False) for module in self.pair("LSTM"))
        with torch.inference_mode():
            x = random_input(full, 70)
        assert_same_bits(recompute(x), full(x))

    @every_layer
    def test_weights_changed_before_backward(self, name):
        """The forward that runs again would be another one."""
        _, module = self.pair(name)
        total = module(random_input(module))[0].sum()
        with torch.no_grad():
            module.weight_hh_l0.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


class TestConstructor:
    @pytest.mark.parametrize(
        ("options", "shown"),
        [
            ({}, ""),
            ({"memory": "full", "return_states": False, "forget_bias": None}, ""),
            ({"memory": "recompute"}, ", memory='recompute'"),
            (
                {
                    "forget_bias": 1.0,
                    "learn_initial_state": True,
                    "recurrent_init": "orthogonal",
                    "return_states": True,
                },
                ", return_states=True, learn_initial_state=True, recurrent_init='orthogonal', "
                "forget_bias=1.0",
            ),
        ],
    )
    def test_repr_shows_options_not_at_default(self, options, shown):
        plain = repr(nn.LSTM(3, 5, num_layers=2))
        assert repr(rnnfast.LSTM(3, 5, num_layers=2, **options)) == f"{plain[:-1]}{shown})"

    def test_repr_of_the_others(self):
        assert repr(rnnfast.GRU(3, 5, reset_after=False)) == "GRU(3, 5, reset_after=False)"
        assert repr(rnnfast.RNN(3, 5, return_states=True)) == "RNN(3, 5, return_states=True)"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"memory": "half"}, "memory must be one of 'full', 'recompute', got 'half'"),
            ({"memory": None}, "memory must be one of 'full', 'recompute', got None"),
            (
                {"recurrent_init": "normal"},
                "recurrent_init must be one of 'uniform', 'orthogonal', got 'normal'",
            ),
            ({"return_states": True, "memory": "recompute"}, "return_states=True .* memory="),
        ],
    )
    @every_layer
    def test_wrong_options(self, name, options, message):
        with pytest.raises(ValueError, match=message):
            getattr(rnnfast, name)(3, 5, **options)

    def test_forget_bias_without_bias(self):
        with pytest.raises(ValueError, match="forget_bias=1.0 needs bias=True"):
            rnnfast.LSTM(3, 5, bias=False, forget_bias=1.0)

    @pytest.mark.parametrize("name", ["GRU", "RNN"])
    def test_forget_bias_is_for_lstm(self, name):
        with pytest.raises(TypeError, match="forget_bias"):
            getattr(rnnfast, name)(3, 5, forget_bias=1.0)

    @pytest.mark.parametrize("options", [{"return_states": True}, {"learn_initial_state": True}])
    @every_layer
    def test_what_torch_lacks_runs_on_the_kernels_or_not_at_all(self, name, options):
        module = getattr(rnnfast, name)(3, 5, **options)
        x = torch.randn(4, 2, 3)
        expected = module(x)
        rnnfast.set_backend("torch")
        assert_same_bits(module(x), expected)
        rnnfast.set_backend("rnnfast")
        with pytest.raises(RuntimeError, match=f"{name} has to run on rnnfast's kernels"):
            module.to("meta")(x.to("meta"))
