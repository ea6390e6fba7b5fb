"""Our error is at most twice torch.nn's, forward and in every gradient, on every ISA.

Truth is torch.nn in float64 with the same (float32) weights and inputs. The error of a tensor is
its largest absolute deviation from the truth relative to the truth's largest magnitude, averaged
over random draws; a torch error below one eps counts as one eps. The GRU that resets before the
product, which torch does not have, is measured against the plain-torch reference in its place.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnfast
from rnnfast import reference

# At and around the widths of vectors (4, 8, 16) and tiles (64), and a block of the rows (256).
SIZES = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
BATCHES = (1, 2, 5, 6, 7, 8, 9, 13, 20)
LENGTHS = (1, 2, 7, 20)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Quicker on shapes this small; test_threads.py shows that threads change no bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    input_size: int
    hidden_size: int
    batch: int
    seq_len: int
    bias: bool = True
    batch_first: bool = False
    bidirectional: bool = False
    packed: bool = False
    proj_size: int = 0

    @property
    def draws(self) -> int:
        """How many random draws to measure over: small tensors need many."""
        return max(3, min(100, 600 // self.hidden_size))

    def __str__(self) -> str:
        flags = [name for name in ("batch_first", "bidirectional", "packed") if getattr(self, name)]
        flags += [] if self.bias else ["no_bias"]
        flags += [f"P{self.proj_size}"] if self.proj_size else []
        sizes = f"I{self.input_size} H{self.hidden_size} N{self.batch} T{self.seq_len}"
        return " ".join([sizes, *flags])


def covering_cases() -> list[Case]:
    """Every size as hidden_size and as input_size twice, every pair of batch and seq_len once."""
    return [
        Case(
            input_size=SIZES[(7 * k + 3) % len(SIZES)],
            hidden_size=SIZES[k // 2],
            batch=BATCHES[k % len(BATCHES)],
            seq_len=LENGTHS[k % len(LENGTHS)],
            bias=k % 5 != 4,
            batch_first=k % 3 == 1,
            bidirectional=k % 7 == 6,
        )
        for k in range(2 * len(SIZES))
    ]


# Shapes that the kernels cut up differently: many rows, weights beyond the cache, long sums.
LARGE_CASES = [
    Case(34, 32, 200, 6),
    Case(200, 200, 20, 12, batch_first=True),
    Case(257, 300, 4, 3, bidirectional=True),
    Case(300, 513, 1, 5),
    Case(650, 650, 20, 2),
    Case(64, 1024, 3, 2, batch_first=True),
]
# Rows of unequal length: few and many, fused and projected ahead, both directions.
PACKED_CASES = [
    Case(5, 17, 3, 7, packed=True),
    Case(64, 64, 16, 20, packed=True, bidirectional=True),
    Case(3, 33, 41, 9, packed=True, bidirectional=True, bias=False),
    Case(700, 128, 13, 5, packed=True, bidirectional=True),
    Case(40, 300, 8, 6, packed=True, bidirectional=True),
]
# Projections of h, for LSTM.
PROJECTED_CASES = [
    Case(5, 17, 3, 7, proj_size=4),
    Case(64, 64, 16, 20, proj_size=16, bidirectional=True, batch_first=True),
    Case(31, 129, 20, 2, proj_size=65, bias=False),
    Case(33, 128, 6, 1, proj_size=33),
    Case(40, 300, 5, 6, proj_size=130, bidirectional=True, packed=True),
]
CASES = covering_cases() + LARGE_CASES + PACKED_CASES


class ReferenceGRU(rnnfast.GRU):
    """The GRU module with the plain-torch loop in place of the kernels."""

    def _run_layer(self, weights, input, *states, **options):
        options |= {"reset_after": self.reset_after}
        return reference.gru(input, *states, *weights, **options)[:2]


# name: (torch's module, ours)
CELLS = {
    "LSTM": (nn.LSTM, rnnfast.LSTM),
    "GRU": (nn.GRU, rnnfast.GRU),
    "GRU reset before": (
        functools.partial(ReferenceGRU, reset_after=False),
        functools.partial(rnnfast.GRU, reset_after=False),
    ),
    "RNN tanh": (nn.RNN, rnnfast.RNN),
    "RNN relu": (
        functools.partial(nn.RNN, nonlinearity="relu"),
        functools.partial(rnnfast.RNN, nonlinearity="relu"),
    ),
}


def forward_and_gradients(build, cell: str, case: Case, draw: int, dtype: torch.dtype):
    """Outputs, final states and all gradients by name, for one random draw made in float32."""
    # The draw is float32 whatever the dtype, so that all see the same numbers.
    torch.manual_seed(draw)
    module = build(
        case.input_size,
        case.hidden_size,
        bias=case.bias,
        batch_first=case.batch_first,
        bidirectional=case.bidirectional,
        **({"proj_size": case.proj_size} if case.proj_size else {}),
    )
    directions = 2 if case.bidirectional else 1
    sequence = (case.batch, case.seq_len) if case.batch_first else (case.seq_len, case.batch)
    state_names = ("h", "c") if cell == "LSTM" else ("h",)

    if case.packed:
        steps = torch.arange(case.seq_len).unsqueeze(1)
        batch_sizes = (steps * case.batch < torch.arange(case.batch, 0, -1) * case.seq_len).sum(1)
        sequence = (int(batch_sizes.sum()),)
    state_sizes = (case.proj_size or case.hidden_size, case.hidden_size)[: len(state_names)]

    def states() -> list[Tensor]:
        return [torch.randn(directions, case.batch, size) for size in state_sizes]

    inputs = [torch.randn(*sequence, case.input_size), *states()]
    cotangents = [torch.randn(*sequence, directions * state_sizes[0]), *states()]

    module.to(dtype)
    inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    input, *initial = inputs
    given = PackedSequence(input, batch_sizes) if case.packed else input
    output, final = module(given, tuple(initial) if cell == "LSTM" else initial[0])
    output = output.data if case.packed else output
    outputs = [output, *(final if cell == "LSTM" else (final,))]
    named = dict(zip(["output", *(f"{name}_n" for name in state_names)], outputs, strict=True))
    leaves = {"input": input}
    leaves |= dict(zip((f"{name}_0" for name in state_names), initial, strict=True))
    leaves |= dict(module.named_parameters())
    gradients = torch.autograd.grad(
        outputs, list(leaves.values()), [tensor.to(dtype) for tensor in cotangents]
    )
    named |= {f"grad {name}": grad for name, grad in zip(leaves, gradients, strict=True)}
    return {name: tensor.detach().double() for name, tensor in named.items()}


def errors(build, cell: str, case: Case, dtype: torch.dtype, draws: int) -> dict[str, float]:
    """The error of every tensor: its largest deviation by its largest magnitude.

    Both are means over the draws. The largest of all draws would compare one unlucky draw of ours
    with one of torch's: a single large initial state makes an error several times the others'.
    """
    deviations: dict[str, list[Tensor]] = {}
    magnitudes: dict[str, list[Tensor]] = {}
    for draw, truth in enumerate(truth_of(cell, case, draws)):
        results = forward_and_gradients(build, cell, case, draw, dtype)
        assert results.keys() == truth.keys()
        for name, expected in truth.items():
            assert results[name].shape == expected.shape
            deviations.setdefault(name, []).append((results[name] - expected).abs().max())
            magnitudes.setdefault(name, []).append(expected.abs().max())
    # torch's mean, since a NaN must not get lost.
    return {
        name: (torch.stack(deviations[name]).mean() / torch.stack(magnitudes[name]).mean()).item()
        for name in deviations
    }


# The ISA varies fastest, so the last case is the one asked for again.
@functools.lru_cache(maxsize=2)
def truth_of(cell: str, case: Case, draws: int) -> list[dict[str, Tensor]]:
    """torch.nn in float64, for each draw."""
    build = CELLS[cell][0]
    return [forward_and_gradients(build, cell, case, draw, torch.float64) for draw in range(draws)]


@functools.lru_cache(maxsize=2)
def torch_errors(cell: str, case: Case, draws: int) -> dict[str, float]:
    return errors(CELLS[cell][0], cell, case, torch.float32, draws)


every_isa = pytest.mark.parametrize("isa", rnnfast.cpu_isas(), indirect=True)
every_case = pytest.mark.parametrize(
    ("cell", "case"),
    [(cell, case) for cell in CELLS for case in CASES]
    + [("LSTM", case) for case in PROJECTED_CASES],
    ids=str,
)


@every_isa
@every_case
def test_float32_error_is_at_most_twice_torchs(cell, case, isa, kernels, parity_table):
    eps = torch.finfo(torch.float32).eps
    theirs = torch_errors(cell, case, case.draws)
    ours = errors(CELLS[cell][1], cell, case, torch.float32, case.draws)
    ratios = {name: ours[name] / max(theirs[name], eps) for name in ours}
    parity_table.record(cell, isa, ratios, str(case))
    # Not `ratio > 2`, which NaN would pass.
    too_large = {name: ratio for name, ratio in ratios.items() if not ratio <= 2}
    assert not too_large


@every_isa
@every_case
def test_float64_agrees_with_torch(cell, case, isa, kernels):
    # Two roundings of the same sums of up to 4096 terms; 23 eps is the largest difference seen.
    bound = 32 * torch.finfo(torch.float64).eps
    ours = errors(CELLS[cell][1], cell, case, torch.float64, draws=3)
    too_large = {name: error for name, error in ours.items() if not error <= bound}
    assert not too_large


@pytest.mark.parametrize(("kind", "hidden_size"), [("LSTM", 1100), ("GRU", 1300)])
def test_weights_beyond_the_shared_cache(kind, hidden_size):
    """Their input is projected ahead, for many steps at a time: the bits are those of few rows,
    for which it always is."""
    torch.manual_seed(0)
    ours = getattr(rnnfast, kind)(hidden_size, hidden_size)
    theirs = getattr(torch.nn, kind)(hidden_size, hidden_size)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(25, 20, hidden_size)
    with torch.no_grad():
        output, expected = ours(input)[0], theirs(input)[0]
        assert torch.equal(output[:, 7:9], ours(input[:, 7:9])[0])
    assert torch.equal(ours(input)[0].detach(), output)  # recorded, which keeps the gates
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
