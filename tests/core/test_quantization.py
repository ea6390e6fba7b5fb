"""int8 weights: sums exact on every ISA, errors that rounding explains, calls as in float32."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnfast
from rnnfast import QuantizedRecurrent, quantize_dynamic, reference

MODULES = {
    "LSTM": rnnfast.LSTM,
    "GRU": rnnfast.GRU,
    "GRU before": lambda *args, **kwargs: rnnfast.GRU(*args, reset_after=False, **kwargs),
    "RNN_TANH": rnnfast.RNN,
    "RNN_RELU": lambda *args, **kwargs: rnnfast.RNN(*args, nonlinearity="relu", **kwargs),
}
# Around the widths of vectors and tiles.
SIZES = [(1, 1), (15, 17), (16, 16), (17, 15), (31, 33), (33, 100), (100, 31)]


def quantized(kind: str, *args, **kwargs) -> QuantizedRecurrent:
    torch.manual_seed(0)
    return quantize_dynamic(MODULES[kind](*args, **kwargs))


def limit_of(depth: int) -> int:
    return min(32767, (2**31 - 1) // (127 * depth))


def states_of(kind: str, *shape: int):
    h, c = torch.randn(*shape), torch.randn(*shape)
    return (h, c) if kind == "LSTM" else h


def assert_same_bits(actual, expected) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
        return
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert_same_bits(one, other)


def operator_and_reference(module: QuantizedRecurrent, *inputs: torch.Tensor | None, **layout):
    """What both make of input, h_0, c_0 and the weights of the first layer."""
    arguments = *inputs, *(module._buffers[name] for name in module._layers[0])
    options = {"mode": module.mode, "reset_after": module.reset_after, **layout}
    return [
        function(*arguments, **options)
        for function in (torch.ops.rnnfast.quantized, reference.quantized)
    ]


@pytest.mark.parametrize("input_size, hidden_size", [*SIZES, (4000, 5)])
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_sums_are_exact_on_every_isa(isa, input_size, hidden_size, batch):
    """With ReLU all else is single float32 operations, so bits are those of the reference."""
    module = quantized("RNN_RELU", input_size, hidden_size)
    input, h = torch.randn(4, batch, input_size), torch.randn(batch, hidden_size)
    calls = rnnfast._C.kernel_calls()[isa]
    assert_same_bits(*operator_and_reference(module, input, h, None))
    assert rnnfast._C.kernel_calls()[isa] == calls + 1
    assert_same_bits(*operator_and_reference(module, input, h, None, reverse=True))
    sizes = torch.tensor([batch, batch, (batch + 1) // 2, batch // 3])
    packed = torch.randn(int(sizes.sum()), input_size)
    for reverse in (False, True):
        layout = {"batch_sizes": sizes, "reverse": reverse}
        assert_same_bits(*operator_and_reference(module, packed, h, None, **layout))


def test_largest_sums_fit(isa):
    """All weights and activations at the end of their ranges."""
    for depth in (517, 5000, 20000):
        float_module = rnnfast.RNN(depth, 3, nonlinearity="relu")
        with torch.no_grad():
            for parameter in float_module.parameters():
                parameter.fill_(1)
        module = quantize_dynamic(float_module)
        results = operator_and_reference(module, torch.ones(1, 4, depth), torch.zeros(4, 3), None)
        assert_same_bits(*results)
        expected = torch.full((1, 4, 3), depth + 2.0)
        torch.testing.assert_close(results[0][0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("input_size, hidden_size", SIZES)
@pytest.mark.parametrize("kind", MODULES)
def test_one_step_is_the_references(isa, kind, input_size, hidden_size):
    module = quantized(kind, input_size, hidden_size)
    h, c = torch.randn(2, 5, hidden_size)
    actual, expected = operator_and_reference(
        module, torch.randn(1, 5, input_size), h, c if kind == "LSTM" else None
    )
    # A few float32 roundings of gates below 8 in magnitude. (r * h is rounded to whole numbers
    # once more, where a last bit of r may decide between two neighbours, 1 / limit of h apart.)
    tolerance = 4e-6 + (3.0 / limit_of(hidden_size) if kind == "GRU before" else 0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rounded_weights", [True, False])
def test_error_is_what_rounding_explains(rounded_weights):
    """Against float64, with the rounded weights and with those of the float32 module: within the
    sum of all half steps, propagated element by element (tanh never enlarges an error)."""
    input_size, hidden_size, seq_len, batch = 100, 24, 4, 5
    torch.manual_seed(1)
    source = rnnfast.RNN(input_size, hidden_size)
    module = quantize_dynamic(source)
    state = module.dequantize() if rounded_weights else source.state_dict()
    truth = nn.RNN(input_size, hidden_size)
    truth.load_state_dict(state)
    truth.double()
    input = torch.randn(seq_len, batch, input_size)
    with torch.no_grad():
        expected, _ = truth(input.double())
    output, _ = module(input)

    weight_ih, weight_hh = (state[f"weight_{which}_l0"].double().abs() for which in ("ih", "hh"))
    bound = expected.new_zeros(batch, hidden_size)
    h = torch.zeros(batch, hidden_size).double()
    for t in range(seq_len):
        x = input[t].double()
        half_x = x.abs().amax(1, keepdim=True) / limit_of(input_size) / 2
        half_h = (h.abs() + bound).amax(1, keepdim=True) / limit_of(hidden_size) / 2
        error = half_x * weight_ih.sum(1) + (half_h + bound) @ weight_hh.T
        if not rounded_weights:
            half_ih, half_hh = (module.state_dict()[f"scale_{w}_l0"] / 2 for w in ("ih", "hh"))
            error += (x.abs() + half_x).sum(1, keepdim=True) * half_ih
            error += (h.abs() + bound + half_h).sum(1, keepdim=True) * half_hh
        bound = error + 1e-6
        h = expected[t]
        difference = (output[t] - h).abs()
        assert (difference <= bound).all()
        # The bound says something: before it adds up, a part of what it allows for does happen.
        assert t > 0 or difference.max() > bound.max() / 30


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("sizes", [(64, 64, 1), (100, 61, 2), (512, 256, 1)])
def test_error_is_below_torch_ao(cell, sizes):
    torch.manual_seed(0)
    source = getattr(nn, cell)(*sizes)
    theirs = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(source), {getattr(nn, cell)}, dtype=torch.qint8
    )[0]
    input = torch.randn(30, 4, sizes[0])
    with torch.no_grad():
        expected, _ = copy.deepcopy(source).double()(input.double())
        errors = [
            (module(input)[0] - expected).abs().max().item()
            for module in (quantize_dynamic(source), theirs)
        ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("kind", MODULES)
def test_threads_keep_bits(kind):
    module = quantized(kind, 150, 130)
    input = torch.randn(7, 9, 150)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(module(input))
    torch.set_num_threads(before)
    assert_same_bits(*results)


@pytest.mark.parametrize("kind", MODULES)
def test_rows_and_layouts_keep_bits(isa, kind):
    """A row alone, unbatched, batch_first, strided or among others; one step at a time."""
    module = quantized(kind, 19, 21)
    input = torch.randn(6, 5, 19)
    hx = states_of(kind, 1, 5, 21)
    output, final = module(input, hx)

    def pick(states, rows):
        return tuple(s[:, rows] for s in states) if kind == "LSTM" else states[:, rows]

    assert_same_bits(module(input[:, 2:3], pick(hx, slice(2, 3)))[0], output[:, 2:3])
    assert_same_bits(module(input[:, 3], pick(hx, 3)), (output[:, 3], pick(final, 3)))
    strided = torch.randn(6, 19, 10).transpose(1, 2)[:, ::2].copy_(input)
    assert_same_bits(module(strided, hx), (output, final))

    module.batch_first = True
    by_batch = module(input.transpose(0, 1).contiguous(), hx)
    assert_same_bits((by_batch[0].transpose(0, 1), by_batch[1]), (output, final))
    module.batch_first = False

    state, steps = hx, []
    for x in input:
        step, state = module(x.unsqueeze(0), state)
        steps.append(step)
    assert_same_bits((torch.cat(steps), state), (output, final))


@pytest.mark.parametrize("kind", ["LSTM", "GRU before", "RNN_TANH"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_unequal_lengths_keep_bits(kind, bidirectional):
    """Packed and with `lengths`: each sequence as if it were alone."""
    module = quantized(kind, 19, 21, bidirectional=bidirectional, num_layers=2)
    input, lengths = torch.randn(6, 4, 19), [3, 6, 1, 4]
    layers = 4 if bidirectional else 2
    hx = states_of(kind, layers, 4, 21)
    packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
    packed_output, packed_final = module(packed, hx)
    assert isinstance(packed_output, PackedSequence)
    padded_output, padded_final = module(input, hx, lengths=lengths)
    assert_same_bits((padded_output, padded_final),
                     (pad_packed_sequence(packed_output)[0], packed_final))  # fmt: skip
    for row, length in enumerate(lengths):
        alone = tuple(s[:, row] for s in hx) if kind == "LSTM" else hx[:, row]
        output, final = module(input[:length, row], alone)
        assert torch.equal(padded_output[:length, row], output)
        assert not padded_output[length:, row].any()
        row_final = padded_final if kind == "LSTM" else (padded_final,)
        for actual, expected in zip(row_final, final if kind == "LSTM" else (final,), strict=True):
            assert torch.equal(actual[:, row], expected)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("bias", [True, False])
def test_stacks_both_directions(kind, bias):
    """Each layer and direction in its place: the float32 module of the rounded weights agrees, from
    which only the rounding of activations tells it apart; a wrong wire makes errors near 1."""
    options = {"num_layers": 2, "bidirectional": True, "bias": bias}
    module = quantized(kind, 19, 21, **options)
    same = MODULES[kind](19, 21, **options)
    same.load_state_dict(module.dequantize())
    input, hx = torch.randn(8, 3, 19), states_of(kind, 4, 3, 21)
    with torch.no_grad():
        torch.testing.assert_close(module(input, hx), same(input, hx), rtol=0, atol=3e-4)


def test_learnt_initial_states_and_training_mode():
    source = rnnfast.LSTM(9, 8, 2, dropout=0.5, learn_initial_state=True)
    with torch.no_grad():
        source.h_0.normal_(), source.c_0.normal_()
    module = quantize_dynamic(source)
    assert module.training
    input = torch.randn(4, 3, 9)
    states = tuple(s.detach().unsqueeze(1).expand(-1, 3, -1) for s in (source.h_0, source.c_0))
    assert_same_bits(module(input), module(input, states))
    assert_same_bits(module(input), module.eval()(input))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", MODULES)
def test_what_is_not_finite_stays_in_its_row(isa, kind, bad):
    module = quantized(kind, 17, 18)
    input = torch.randn(5, 6, 17)
    expected, _ = module(input)
    input[2, 1, 16] = bad
    output, _ = module(input)
    assert output[2:, 1].isnan().all()
    output[2:, 1] = expected[2:, 1]
    assert torch.equal(output, expected)


def test_rows_of_zeros_and_extremes(isa):
    source = rnnfast.RNN(20, 18, nonlinearity="relu")
    with torch.no_grad():
        source.weight_ih_l0[3] = 0
        source.weight_hh_l0[3] = 0
        source.weight_ih_l0[4] *= 1e-38
        source.weight_ih_l0[5] *= 1e36
    module = quantize_dynamic(source)
    assert module.scale_ih_l0[3] == 0
    for scale in (0, 1e-40, 1e-30, 1.0, 1e30):
        x = scale * torch.randn(1, 4, 20)
        actual, expected = operator_and_reference(module, x, torch.zeros(4, 18), None)
        assert_same_bits(actual, expected)
        bias = source.bias_ih_l0[3] + source.bias_hh_l0[3]
        assert torch.equal(actual[0][0, :, 3], bias.detach().relu().expand(4))


def test_empty_calls():
    module = quantized("LSTM", 5, 6)
    output, (h_n, c_n) = module(torch.randn(3, 0, 5))
    assert output.shape == (3, 0, 6) and h_n.shape == c_n.shape == (1, 0, 6)
    hx = states_of("LSTM", 1, 2, 6)
    output, final = module(torch.randn(0, 2, 5), hx)
    assert output.shape == (0, 2, 6)
    assert_same_bits(final, hx)

    module = quantized("RNN_RELU", 5, 6)
    module.weight_ih_l0 = module.weight_ih_l0[:, :0]
    results = operator_and_reference(module, torch.randn(3, 2, 0), torch.randn(2, 6), None)
    assert_same_bits(*results)
    assert results[0][0].any()


def test_state_survives_a_file():
    source = quantized("LSTM", 19, 21, num_layers=2, bidirectional=True)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    module = QuantizedRecurrent("LSTM", 19, 21, num_layers=2, bidirectional=True)
    module.load_state_dict(torch.load(file, weights_only=True))
    input = torch.randn(4, 3, 19)
    assert_same_bits(module(input), source(input))
    assert not list(module.parameters())
    stored = sum(buffer.numel() for buffer in module.buffers() if buffer.dtype == torch.int8)
    assert stored == 4 * 32 * 2 * (32 + 32 + 48 + 32)
    assert "num_layers=2, bidirectional=True" in repr(module)


def test_a_float_state_is_refused():
    module = quantized("RNN_TANH", 16, 16)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="weight_ih_l0 must have dtype torch.int8, got torch.f"):
        module.load_state_dict(rnnfast.RNN(16, 16).state_dict(), strict=False)
    assert_same_bits(list(module.state_dict().values()), list(before.values()))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.rnn = nn.GRU(8, 9)
        self.again = self.rnn
        self.inner = nn.ModuleDict({"lstm": rnnfast.LSTM(9, 6, bidirectional=True)})
        self.head = nn.Linear(12, 3)

    def forward(self, tokens):
        output, _ = self.rnn(self.embedding(tokens))
        return self.head(self.inner["lstm"](output)[0])


def test_a_model_is_copied():
    torch.manual_seed(0)
    model = Model().eval()
    result = quantize_dynamic(model)
    assert isinstance(model.rnn, nn.GRU) and isinstance(model.inner["lstm"], rnnfast.LSTM)
    assert isinstance(result.rnn, QuantizedRecurrent) and result.again is result.rnn
    assert isinstance(result.inner["lstm"], QuantizedRecurrent)
    assert not result.rnn.training
    assert result.head.weight is not model.head.weight
    tokens = torch.randint(11, (5, 2))
    expected = model(tokens)
    output = result(tokens)  # with gradients on, of the head alone
    output.sum().backward()
    assert result.head.weight.grad is not None and result.embedding.weight.grad is None
    torch.testing.assert_close(output, expected, rtol=0, atol=0.02)
    assert not torch.equal(output, expected)


def test_parametrized_and_subclassed_modules():
    torch.manual_seed(0)
    normed = parametrizations.weight_norm(nn.LSTM(8, 9), "weight_hh_l0")
    assert_same_bits(
        quantize_dynamic(normed).state_dict()["weight_hh_l0"],
        quantize_dynamic(copy.deepcopy(normed)).weight_hh_l0,
    )

    class Own(nn.LSTM):
        pass

    model = nn.ModuleList([Own(3, 4), nn.LSTMCell(3, 4), normed])
    result = quantize_dynamic(model)
    assert [type(module) for module in result] == [Own, nn.LSTMCell, QuantizedRecurrent]


def not_finite() -> nn.Module:
    module = nn.GRU(3, 4)
    with torch.no_grad():
        module.weight_hh_l0[2, 1] = float("inf")
    return module


@pytest.mark.parametrize(
    "module, error, message",
    [
        (None, TypeError, "must be a torch.nn.Module, got NoneType"),
        (nn.Linear(2, 2), ValueError, "or contain an LSTM, GRU or RNN .*, got Linear"),
        (nn.LSTM(3, 4, proj_size=2), ValueError, "proj_size=2 is not supported"),
        (rnnfast.GRU(3, 4, return_states=True), ValueError, "return_states=True is not"),
        (nn.LSTM(3, 4).double(), ValueError, "weight_ih_l0 must be float32 .*torch.float64"),
        (nn.Sequential(nn.RNN(3, 4).half()), ValueError, "quantise 0, a RNN: .*torch.float16"),
        (nn.LSTM(3, 4, device="meta"), ValueError, "on the CPU, got .* on meta"),
        (not_finite(), ValueError, "weight_hh_l0 must be finite"),
    ],
)
def test_what_cannot_be_quantised(module, error, message):
    with pytest.raises(error, match=message):
        quantize_dynamic(module)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="mode must be one of 'LSTM', .* got 'LSTMCell'"):
        QuantizedRecurrent("LSTMCell", 3, 4)
    for sizes, name in [((0, 1), "input_size"), ((1, 0), "hidden_size"), ((1, 1, 0), "num_layers")]:
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            QuantizedRecurrent("GRU", *sizes)
    lstm, gru = quantized("LSTM", 3, 4), quantized("GRU", 3, 4)
    x = torch.randn(5, 2, 3)
    h = torch.zeros(1, 2, 4)
    for module, args, error, message in [
        (gru, (x.double(),), TypeError, "input must be a float32 .* got a torch.float64"),
        (gru, (None,), TypeError, "input must be a float32 tensor on the CPU, got None"),
        (gru, (x.to("meta"),), TypeError, "input must be a float32 tensor on the CPU"),
        (gru, (x[..., :2],), ValueError, r"input_size=3 features, got shape \(5, 2, 2\)"),
        (gru, (x[None],), ValueError, "input must be 2 or 3-D"),
        (gru, (x, h[:, :1]), ValueError, r"h_0 must have shape \(1, 2, 4\), got .*\(1, 1, 4\)"),
        (gru, (x[:, 0], h), ValueError, r"h_0 must have shape \(1, 4\)"),
        (gru, (x, h.double()), TypeError, "h_0 must be float32 on the CPU"),
        (lstm, (x, h), ValueError, "hx must be h_0 and c_0, got 1 of them"),
        (lstm, (x, (h, h[..., :3])), ValueError, "c_0 must have shape"),
        (gru, (x, 5), ValueError, "h_0 must have shape .* got a int"),
    ]:
        with pytest.raises(error, match=message):
            module(*args)
    with pytest.raises(ValueError, match="lengths go with a padded batch"):
        gru(x[:, 0], lengths=[1])
    with pytest.raises(ValueError, match="lengths must be from 0 to seq_len"):
        gru(x, lengths=[6, 1])


def op_arguments() -> tuple[list, dict]:
    module = quantized("LSTM", 5, 6)
    weights = [module.get_buffer(name) for name in module._layers[0]]
    return [torch.randn(3, 2, 5), torch.zeros(2, 6), torch.zeros(2, 6), *weights], {"mode": "LSTM"}


@pytest.mark.parametrize(
    "index, wrong, message",
    [
        (0, torch.randn(2, 5), r"input must be 3-D \[seq_len, batch, input_size\]"),
        (0, torch.randn(3, 2, 5).double(), "input must have dtype Float, but got Double"),
        (1, torch.zeros(2), "h_0 must be 2-D"),
        (1, torch.zeros(3, 6), r"h_0 must have shape \[2, 6\], but got \[3, 6\]"),
        (2, None, "c_0 must be given with mode 'LSTM'"),
        (3, torch.zeros(24, 5, dtype=torch.int8), r"weight_ih must have shape \[1, 8, 4, 16, 2\]"),
        (4, torch.zeros(1, 8, 4, 16, 2), "weight_hh must have dtype Char, but got Float"),
        (5, torch.zeros(23), r"scale_ih must have shape \[24\]"),
        (8, torch.zeros(24).double(), "bias_hh must have dtype Float"),
    ],
)
def test_the_operator_checks(index, wrong, message):
    args, options = op_arguments()
    args[index] = wrong
    with pytest.raises(RuntimeError, match=f"rnnfast::quantized: {message}"):
        torch.ops.rnnfast.quantized(*args, **options)


def test_the_operator_checks_options():
    args, _ = op_arguments()
    call = torch.ops.rnnfast.quantized
    with pytest.raises(RuntimeError, match="mode must be 'LSTM', .* but got 'lstm'"):
        call(*args, mode="lstm")
    args[0] = torch.randn(5, 5)
    for sizes, message in [
        ([2, 1, 1], "add up to, 4, but has 5"),
        ([3, 2], "must not increase, from at most batch .2. .* is 3 after 2"),
        ([1, 2, 2], "is 2 after 1"),
        ([2, -1, 4], "is -1 after 2"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call(*args, mode="LSTM", batch_sizes=torch.tensor(sizes))
    with pytest.raises(RuntimeError, match="batch_sizes must have dtype Long"):
        call(*args, mode="LSTM", batch_sizes=torch.tensor([2.0, 3.0]))
    with pytest.raises(RuntimeError, match="batch_first must be False"):
        call(*args, mode="LSTM", batch_sizes=torch.tensor([2, 2, 1]), batch_first=True)


def test_opcheck():
    args, options = op_arguments()
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.rnnfast.quantized.default, args, options, test_utils=checks)
    packed = [torch.randn(5, 5), *args[1:]]
    options["batch_sizes"] = torch.tensor([2, 2, 1])
    torch.library.opcheck(torch.ops.rnnfast.quantized.default, packed, options, test_utils=checks)


def test_no_gradient_is_recorded():
    module = quantized("LSTM", 5, 6)
    output, (h_n, c_n) = module(
        torch.randn(3, 2, 5, requires_grad=True), tuple(torch.zeros(2, 1, 2, 6, requires_grad=True))
    )
    assert not (output.requires_grad or h_n.requires_grad or c_n.requires_grad)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_compile_and_export(kind):
    module = quantized(kind, 5, 6, num_layers=2, bidirectional=True).eval()
    input = torch.randn(4, 3, 5)
    expected = module(input)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(input), expected)
    dim = torch.export.Dim
    program = torch.export.export(
        module, (input,), dynamic_shapes=({0: dim("seq_len"), 1: dim("batch")},)
    )
    assert_same_bits(program.module()(input), expected)
    longer = torch.randn(7, 2, 5)
    assert_same_bits(program.module()(longer), module(longer))
