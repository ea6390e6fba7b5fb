"""Products in bfloat16: how wrong they are, who takes them, and that they keep the bits' promises.

Truth is torch.nn in float64. The measure is torch.nn in bfloat16: our error is at most twice its
error, in every output and gradient. The GRU that resets before the product, which torch does not
have, is measured against the plain-torch reference in bfloat16.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast
from rnnfast import _C, backend, ops, reference

TABLE = "avx512bf16"
needs_products = pytest.mark.skipif(
    TABLE not in _C.kernel_calls(), reason="this CPU has no products of bfloat16"
)
pytestmark = pytest.mark.usefixtures("kernels")

LAYERS = {
    "LSTM": ("LSTM", {}),
    "LSTM packed, bidirectional": ("LSTM", {"bidirectional": True}),
    "LSTM projected": ("LSTM", {"proj_size": 5}),
    "GRU": ("GRU", {"bidirectional": True}),
    "RNN": ("RNN", {}),
    "RNN relu packed": ("RNN", {"nonlinearity": "relu"}),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)
# input_size, hidden_size, batch, seq_len: around vectors, odd depths, rows and units shared, more
# rows than a block of the weight gradients takes.
SHAPES = [(1, 7, 2, 3), (15, 17, 5, 6), (32, 16, 1, 9), (33, 63, 40, 15), (129, 65, 20, 3)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
STATES = {"lstm": 2, "gru": 1, "rnn": 1}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    precision, threads = rnnfast.get_precision(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    rnnfast.set_precision(precision)
    torch.set_num_threads(threads)


def outputs_and_gradients(module: nn.Module, x: Tensor, lengths: list[int] | None) -> list[Tensor]:
    """In float64. The loss has a gradient of its own for each element."""
    x = x.detach().requires_grad_()
    given = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, final = module(given)
    output = output.data if isinstance(output, PackedSequence) else output
    results = [output, *(final if isinstance(final, tuple) else (final,))]
    total = sum((result.double() * (1 + result.double().detach())).sum() for result in results)
    gradients = torch.autograd.grad(total, [x, *module.parameters()])
    return [tensor.detach().double() for tensor in (*results, *gradients)]


def error(tensor: Tensor, truth: Tensor) -> float:
    deviation = (tensor - truth).abs().max()
    return 0.0 if deviation == 0 else (deviation / truth.abs().max()).item()


def assert_at_most_twice(ours: list[list[Tensor]], theirs: list[list[Tensor]], truths) -> None:
    """Of errors averaged over draws; one below the rounding of bfloat16 counts as that."""
    for of_ours, of_theirs, of_truth in zip(
        *(zip(*draws, strict=True) for draws in (ours, theirs, truths)), strict=True
    ):
        own = [error(a, truth) for a, truth in zip(of_ours, of_truth, strict=True)]
        torchs = [error(a, truth) for a, truth in zip(of_theirs, of_truth, strict=True)]
        least = torch.finfo(torch.bfloat16).eps / 2
        assert sum(own) <= 2 * max(sum(torchs), least * len(torchs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@every_shape
@every_layer
def test_error_at_most_twice_that_of_torch_in_bfloat16(layer, shape, dtype):
    """A module in bfloat16; and one in float32 whose precision is set, the same weights."""
    name, options = LAYERS[layer]
    input_size, hidden_size, batch, seq_len = shape
    rnnfast.set_precision("bf16" if dtype == torch.float32 else "fp32")
    ours, theirs, truths = [], [], []
    for draw in range(4):
        torch.manual_seed(draw)
        module = getattr(rnnfast, name)(input_size, hidden_size, **options).to(dtype)
        low = getattr(nn, name)(input_size, hidden_size, **options)
        low.load_state_dict(module.state_dict())
        truth = getattr(nn, name)(input_size, hidden_size, **options).double()
        truth.load_state_dict(module.state_dict())
        x = torch.randn(seq_len, batch, input_size).to(dtype)
        lengths = None
        if "packed" in layer:
            lengths = torch.randint(1, seq_len + 1, (batch,)).tolist()
        ours.append(outputs_and_gradients(module, x, lengths))
        theirs.append(outputs_and_gradients(low.bfloat16(), x.bfloat16(), lengths))
        truths.append(outputs_and_gradients(truth, x.double(), lengths))
    assert_at_most_twice(ours, theirs, truths)


@every_shape
def test_gru_that_resets_before(shape):
    input_size, hidden_size, batch, seq_len = shape

    def run(cell, draw: int, dtype: torch.dtype, **options) -> list[Tensor]:
        torch.manual_seed(draw)
        bound = hidden_size**-0.5
        sizes = [(3 * hidden_size, input_size), (3 * hidden_size, hidden_size)]
        weights = [torch.empty(size).uniform_(-bound, bound).bfloat16() for size in sizes]
        x, h_0 = torch.randn(seq_len, batch, input_size), torch.randn(batch, hidden_size)
        leaves = [t.bfloat16().to(dtype).requires_grad_() for t in (x, h_0, *weights)]
        output, h_n, *_ = cell(*leaves, reset_after=False, **options)
        total = (output.double() ** 2).sum() + h_n.double().sum()
        results = [output, h_n, *torch.autograd.grad(total, leaves)]
        return [tensor.detach().double() for tensor in results]

    def reference_gru(x, h_0, w_ih, w_hh, **options):
        return reference.gru(x, h_0, w_ih, w_hh, **options)

    ours = [run(ops.gru, draw, torch.float32, precision="bf16") for draw in range(4)]
    theirs = [run(reference_gru, draw, torch.bfloat16) for draw in range(4)]
    truths = [run(reference_gru, draw, torch.float64) for draw in range(4)]
    assert_at_most_twice(ours, theirs, truths)


class TestExactWhereNothingIsRounded:
    """Small whole numbers are exact in bfloat16, and so are their sums in float32: the bits are
    those of float32, wherever an element stands in lanes, pairs, panels and tiles."""

    @pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65])
    @pytest.mark.parametrize("packed", [False, True])
    def test_rnn(self, size, packed):
        torch.manual_seed(size)
        input_size, batch = 66 - size, 1 + size % 9
        sizes = [(2, batch, input_size), (batch, size), (size, input_size), (size, size)]
        tensors = [torch.randint(-1, 2, shape).float() for shape in sizes]
        biases = [torch.randint(-9, 9, (size,)).float() for _ in range(2)]
        batch_sizes = None
        if packed:
            batch_sizes = torch.tensor([batch, (batch + 1) // 2])
            tensors[0] = tensors[0].flatten(0, 1)[: int(batch_sizes.sum())]
        grad = torch.randint(-2, 3, (*tensors[0].shape[:-1], size)).float()
        results = []
        for precision in ("fp32", "bf16"):
            leaves = [tensor.clone().requires_grad_() for tensor in (*tensors, *biases)]
            output, h_n = ops.rnn(
                *leaves,
                nonlinearity="relu",
                batch_sizes=batch_sizes,
                reverse=packed,
                precision=precision,
            )
            gradients = torch.autograd.grad([output, h_n], leaves, [grad, torch.ones_like(h_n)])
            results.append([output, h_n, *gradients])
        assert output.abs().max() < 256  # else it would be rounded
        for exact, rounded in zip(*results, strict=True):
            assert torch.equal(exact, rounded)


@needs_products
class TestWhoTakesThem:
    def calls(self) -> int:
        return _C.kernel_calls()[TABLE]

    @pytest.mark.parametrize("cell", GATES)
    def test_the_flag_reaches_the_kernels_and_backward_keeps_it(self, cell):
        weights = [torch.randn(GATES[cell] * 5, n, requires_grad=True) for n in (3, 5)]
        states = [torch.randn(2, 5) for _ in range(STATES[cell])]
        before = self.calls()
        output = getattr(ops, cell)(torch.randn(4, 2, 3), *states, *weights, precision="bf16")[0]
        assert self.calls() == before + 1
        output.sum().backward()
        assert self.calls() == before + 2

    def test_backward_uses_the_precision_of_its_forward(self):
        module, x = rnnfast.GRU(3, 5), torch.randn(4, 2, 3)
        rnnfast.set_precision("bf16")
        output, _ = module(x)
        rnnfast.set_precision("fp32")
        before = self.calls()
        output.sum().backward()
        assert self.calls() == before + 1

    @pytest.mark.parametrize(
        ("dtype", "precision", "taken"),
        [
            (torch.float32, "fp32", False),
            (torch.float32, "bf16", True),
            (torch.bfloat16, "fp32", True),
            (torch.float16, "bf16", False),
            (torch.float64, "bf16", False),
        ],
    )
    @pytest.mark.parametrize("memory", ["full", "recompute"])
    def test_modules(self, dtype, precision, taken, memory):
        module = rnnfast.LSTM(3, 5, memory=memory, dtype=dtype)
        rnnfast.set_precision(precision)
        before = self.calls()
        module(torch.randn(4, 2, 3, dtype=dtype))[0].sum().backward()
        assert (self.calls() > before) == taken

    @pytest.mark.parametrize(("dtype", "taken"), [(torch.bfloat16, True), (torch.float16, False)])
    def test_autocast(self, dtype, taken):
        module = rnnfast.RNN(3, 5)
        before = self.calls()
        with torch.autocast("cpu", dtype):
            module(torch.randn(4, 2, 3))
        assert (self.calls() > before) == taken

    def test_a_single_step_is_in_float32(self):
        module, x = rnnfast.LSTM(3, 5), torch.randn(1, 2, 3)
        expected = module(x)[0]
        rnnfast.set_precision("bf16")
        assert torch.equal(module(x)[0], expected)

    def test_compiled(self):
        module, x = rnnfast.LSTM(9, 20), torch.randn(4, 2, 9)
        rnnfast.set_precision("bf16")
        with torch.no_grad():
            compiled = torch.compile(module, backend="eager", fullgraph=True)
            assert torch.equal(compiled(x)[0], module(x)[0])
            rnnfast.set_precision("fp32")
            assert torch.equal(compiled(x)[0], module(x)[0])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_an_isa_without_them_computes_in_float32(name, isa):
    module, x = getattr(rnnfast, name)(20, 30), torch.randn(4, 3, 20)
    expected = outputs_and_gradients(module, x, None)
    rnnfast.set_precision("bf16")
    same = all(map(torch.equal, outputs_and_gradients(module, x, None), expected))
    assert same == (isa + "bf16" not in _C.kernel_calls())


@pytest.mark.parametrize("options", [{}, {"proj_size": 33}])
@pytest.mark.parametrize("shape", [(9, 65, 40, 5), (300, 200, 7, 3)], ids=str)
class TestBits:
    def problem(self, shape, options) -> tuple[nn.Module, Tensor]:
        input_size, hidden_size, batch, seq_len = shape
        torch.manual_seed(0)
        rnnfast.set_precision("bf16")
        return rnnfast.LSTM(input_size, hidden_size, **options), torch.randn(
            seq_len, batch, input_size
        )

    def test_threads_and_runs(self, shape, options):
        module, x = self.problem(shape, options)
        expected = outputs_and_gradients(module, x, None)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, outputs_and_gradients(module, x, None), expected))

    def test_a_row_alone_and_packed(self, shape, options):
        module, x = self.problem(shape, options)
        with torch.no_grad():
            output = module(x)[0]
            assert torch.equal(module(x[:, 3:4])[0], output[:, 3:4])
            lengths = torch.arange(x.size(1)) % (x.size(0) - 1) + 2
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            padded, _ = nn.utils.rnn.pad_packed_sequence(module(packed)[0])
            for n, length in enumerate(lengths):
                assert torch.equal(padded[:length, n], output[:length, n])

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_nan_and_inf_stay_in_their_row(self, shape, options, bad):
        module, x = self.problem(shape, options)
        with torch.no_grad():
            expected = module(x)[0]
            x[1, 2, -1] = bad
            output = module(x)[0]
        # An infinite input drives gates to their ends; whether that gives NaN is float32's to say.
        rnnfast.set_precision("fp32")
        with torch.no_grad():
            in_float32 = module(x)[0]
        assert torch.equal(output[1:, 2].isnan(), in_float32[1:, 2].isnan())
        output[1:, 2] = expected[1:, 2]
        assert torch.equal(output, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_the_short_way_gives_half_types_what_the_long_one_does(name, dtype, monkeypatch):
    """The same bits, recorded or not."""
    torch.manual_seed(0)
    options = {} if name.endswith("Cell") else {"num_layers": 2, "bidirectional": True}
    module = getattr(rnnfast, name)(9, 17, dtype=dtype, **options)
    x = torch.randn(*(4, 3, 9)[len(options) == 0 :], dtype=dtype)

    def flat(results) -> list[Tensor]:
        return [results] if isinstance(results, Tensor) else [t for r in results for t in flat(r)]

    def run() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        results = flat(module(leaf))
        total = sum(result.float().square().sum() for result in results)
        with torch.no_grad():
            inferred = flat(module(x))
        return [*results, *inferred, *torch.autograd.grad(total, [leaf, *module.parameters()])]

    short = run()
    monkeypatch.setattr(backend, "may_be_eager", lambda: False)
    long = run()
    assert all(tensor.dtype == dtype for tensor in short)
    assert all(map(torch.equal, short, long))


def test_names_of_precisions():
    assert rnnfast.get_precision() == "fp32"
    rnnfast.set_precision("bf16")
    assert rnnfast.get_precision() == "bf16"
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'tf32'"):
        rnnfast.set_precision("tf32")
    assert rnnfast.get_precision() == "bf16"


def test_precision_of_a_block_ends_with_it():
    with backend.precision("bf16"):
        assert rnnfast.get_precision() == "bf16"
        with backend.precision("fp32"):
            assert rnnfast.get_precision() == "fp32"
        assert rnnfast.get_precision() == "bf16"
    assert rnnfast.get_precision() == "fp32"
    with pytest.raises(KeyError), backend.precision("bf16"):
        raise KeyError
    assert rnnfast.get_precision() == "fp32"


def test_float64_has_no_such_products():
    tensors = [torch.randn(2, 2, 3), torch.randn(2, 5), torch.randn(5, 3), torch.randn(5, 5)]
    with pytest.raises(RuntimeError, match="precision must be 'fp32' where input has dtype Double"):
        ops.rnn(*(tensor.double() for tensor in tensors), precision="bf16")
