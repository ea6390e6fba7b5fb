"""What runs where there are no kernels, as on a GPU: here on the CPU, as if it had none."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from rnnfast import backend, elsewhere, ops

CELLS = {"LSTM": 2, "GRU": 1, "RNN": 1}  # with how many states
every_cell = pytest.mark.parametrize("name", CELLS)
leaves = torch.utils._pytree.tree_leaves
OPTIONS = [
    {"learn_initial_state": True},
    {"return_states": True},
    {"memory": "recompute"},
    {"learn_initial_state": True, "memory": "recompute", "batch_first": True},
]
LSTM_ONLY = [{"proj_size": 3, "return_states": True}, {"proj_size": 3, "memory": "recompute"}]
GRU_ONLY = [{"reset_after": False}, {"reset_after": False, "memory": "recompute"}]
CASES = [(name, options) for name in CELLS for options in OPTIONS]
CASES += [("LSTM", options) for options in LSTM_ONLY] + [("GRU", options) for options in GRU_ONLY]


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_kernels", lambda tensor: False)
    monkeypatch.setattr(backend, "may_be_eager", lambda: False)

    def fail(*args, **options):
        raise AssertionError("a kernel was called")

    for op in ("lstm", "lstm_inference", "lstm_cells", "gru", "gru_inference", "rnn"):
        monkeypatch.setattr(ops._ops, op, type("Op", (), {"default": staticmethod(fail)}))


def module_of(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64, **options}
    module = getattr(rnnfast, name)(4, 5, **options)
    for parameter in module.parameters():  # learnt initial states are zero at first
        nn.init.uniform_(parameter, -0.5, 0.5)
    return module


def results_and_gradients(module: nn.Module, *inputs, **keywords) -> list[torch.Tensor]:
    results = leaves(module(*inputs, **keywords))
    results = [value for value in results if value.is_floating_point()]
    loss = sum((value * torch.arange(value.numel()).view_as(value)).sum() for value in results)
    return [*results, *torch.autograd.grad(loss, list(module.parameters()))]


def assert_close(actual, expected) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("kind", ["padded", "unbatched", "packed", "lengths"])
def test_every_option_gives_what_the_kernels_give(name, options, kind, request):
    module = module_of(name, **options)
    input = torch.randn(40, 3, 4, dtype=torch.float64)
    keywords = {}
    if kind == "unbatched":
        input = input[:, 0]
    elif kind == "packed":
        input = pack_sequence([input[:n, 0] for n in (7, 40, 1)], enforce_sorted=False)
    elif options.get("batch_first"):
        input = input.transpose(0, 1).contiguous()
    if kind == "lengths":
        keywords = {"lengths": [7, 40, 0]}
    expected = results_and_gradients(module, input, **keywords)
    request.getfixturevalue("no_kernels")
    assert_close(results_and_gradients(module, input, **keywords), expected)


@every_cell
def test_all_sequences_may_be_empty(name, no_kernels):
    module = module_of(name, dtype=torch.float32)
    output, *_ = module(torch.randn(3, 2, 4), lengths=[0, 0])
    assert not output.any()


@every_cell
def test_without_options_torchs_module_runs(name, no_kernels):
    ours, theirs = module_of(name), getattr(nn, name)(4, 5, 2, bidirectional=True).double()
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(6, 3, 4, dtype=torch.float64)
    for one, other in zip(leaves(ours(input)), leaves(theirs(input)), strict=True):
        assert torch.equal(one, other)


@every_cell
@pytest.mark.parametrize("packed", [False, True])
def test_more_steps_than_torch_takes_at_once(name, packed, monkeypatch, request):
    module = module_of(name)
    input = torch.randn(12, 3, 4, dtype=torch.float64)
    if packed:
        input = pack_sequence([input[:n, 0] for n in (12, 7, 3)], enforce_sorted=False)
    expected = results_and_gradients(module, input)
    request.getfixturevalue("no_kernels")
    monkeypatch.setattr(elsewhere, "MOST_STEPS", 5)
    seen = []
    run = getattr(torch, "rnn_tanh" if name == "RNN" else name.lower())

    def counted(input, second, *rest):
        packed_steps = second.numel() if isinstance(second, torch.Tensor) and packed else None
        seen.append(packed_steps or input.size(0))
        return run(input, second, *rest)

    monkeypatch.setattr(torch, run.__name__, counted)
    assert_close(results_and_gradients(module, input), expected)
    assert max(seen) <= 5 and len(seen) == 3 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "options"), [("LSTM", {"return_states": True}), ("GRU", {"reset_after": False})]
)
def test_half_types_are_summed_in_float32(name, options, dtype, no_kernels):
    module = module_of(name, dtype=torch.float32, **options).to(dtype)
    input = torch.randn(9, 3, 4).to(dtype)
    results = leaves(module(input))
    truths = leaves(module.double()(input.double()))
    for result, truth in zip(results, truths, strict=True):
        assert result.dtype == dtype
        # Two layers, each rounded once.
        assert (result - truth).abs().max() < 3 * torch.finfo(dtype).eps * truth.abs().max()


@every_cell
def test_one_bias_without_the_other(name, no_kernels):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[name]
    weights = [torch.randn(gates * 5, 4), torch.randn(gates * 5, 5)]
    bias, zero = torch.randn(gates * 5), torch.zeros(gates * 5)
    input, states = torch.randn(3, 2, 4), [torch.randn(2, 5)] * CELLS[name]
    run = getattr(ops, name.lower())
    assert_close(
        run(input, *states, *weights, None, bias), run(input, *states, *weights, zero, bias)
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_clipped_steps_do_not_wait_for_the_norm(sparse, monkeypatch):
    """As on a GPU: the same update, though nobody asks what the norm is."""

    def update(as_elsewhere: bool) -> torch.Tensor:
        torch.manual_seed(0)
        embedding = nn.Embedding(7, 3, sparse=sparse)
        optimizer = rnnfast.optim.ClippedSGD(embedding.parameters(), 0.5, 0.1)
        embedding(torch.tensor([1, 5, 5])).square().sum().backward()
        with monkeypatch.context() as patched:
            if as_elsewhere:
                patched.setattr(torch.Tensor, "is_cpu", False)
                patched.setattr(torch.Tensor, "item", None)
            optimizer.step()
        return embedding.weight.detach()

    torch.testing.assert_close(update(True), update(False))


def test_quantized_modules_stay_on_the_cpu():
    module = rnnfast.quantize_dynamic(nn.LSTM(4, 5)).to("meta")
    with pytest.raises(TypeError, match="the module must be on the CPU, got weights on meta"):
        module(torch.randn(3, 2, 4))
