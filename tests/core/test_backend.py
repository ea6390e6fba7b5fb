"""Which implementation serves a call, and that torch's own gives torch's results."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from rnnfast import _C, _extension, backend

LAYERS = ["LSTM", "GRU", "RNN"]
MODULES = [*LAYERS, "LSTMCell", "GRUCell", "RNNCell"]
every_module = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = rnnfast.get_backend()
    yield
    rnnfast.set_backend(before)


def kernel_calls() -> int:
    return sum(_C.kernel_calls().values())


def pair(name: str, **options) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = getattr(nn, name)(4, 8, **options)
    ours = getattr(rnnfast, name)(4, 8, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def example(name: str) -> torch.Tensor:
    return torch.randn(5, 3, 4) if name in LAYERS else torch.randn(3, 4)


def assert_torchs_own(ours: nn.Module, theirs: nn.Module, *args) -> None:
    """The same bits as torch's module, and no kernel of ours behind them."""
    before = kernel_calls()
    results = torch.utils._pytree.tree_leaves(ours(*args))
    assert kernel_calls() == before
    expected = torch.utils._pytree.tree_leaves(theirs(*args))
    assert len(results) == len(expected)
    for result, value in zip(results, expected, strict=True):
        if value is None:  # the indices of a PackedSequence that was sorted
            assert result is None
            continue
        assert result.dtype == value.dtype
        assert torch.equal(result, value)


@every_module
def test_by_default_the_kernels_serve_float32_and_float64(name):
    assert rnnfast.get_backend() == "auto"
    _, ours = pair(name)
    for dtype in (torch.float32, torch.float64):
        before = kernel_calls()
        with torch.no_grad():
            ours.to(dtype)(example(name).to(dtype))
        assert kernel_calls() > before


@every_module
def test_torch_by_name(name):
    rnnfast.set_backend("torch")
    theirs, ours = pair(name)
    assert_torchs_own(ours, theirs, example(name))


def assert_served(module: nn.Module, *args) -> list[torch.Tensor]:
    """Runs on the kernels."""
    before = kernel_calls()
    results = torch.utils._pytree.tree_leaves(module(*args))
    assert kernel_calls() > before
    return results


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_module
def test_half_types_are_served_and_less_wrong_than_torchs(name, dtype):
    theirs, ours = pair(name, **({"num_layers": 2} if name in LAYERS else {}))
    input = example(name).to(dtype)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    results = assert_served(ours, input)
    expected = torch.utils._pytree.tree_leaves(theirs(input))
    truths = torch.utils._pytree.tree_leaves(theirs.double()(input.double()))
    for result, value, truth in zip(results, expected, truths, strict=True):
        assert result.dtype == dtype
        assert (result - truth).abs().mean() <= (value - truth).abs().mean()


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@every_module
def test_results_under_autocast_have_torchs_dtype(name, given):
    for options in ({}, {"proj_size": 3}) if name == "LSTM" else ({},):
        theirs, ours = pair(name, **options)
        input = example(name).to(given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results = assert_served(ours, input)
            expected = torch.utils._pytree.tree_leaves(theirs(input))
        truths = torch.utils._pytree.tree_leaves(theirs.double()(input.double()))
        for result, value, truth in zip(results, expected, truths, strict=True):
            assert result.dtype == value.dtype
            assert (result - truth).abs().mean() <= (value - truth).abs().mean()


@pytest.mark.parametrize("name", LAYERS)
def test_packed_sequences_are_served(name):
    _, ours = pair(name, num_layers=2, bidirectional=True)
    assert_served(ours, pack_sequence([torch.randn(n, 4) for n in (3, 5, 1)], False))


def test_projections_are_served():
    _, ours = pair("LSTM", proj_size=3, num_layers=2)
    assert_served(ours, example("LSTM"))


@pytest.mark.parametrize("name", LAYERS)
def test_meta_tensors_are_torchs(name):
    ours = getattr(rnnfast, name)(4, 8, device="meta")
    assert ours(torch.empty(5, 3, 4, device="meta"))[0].shape == (5, 3, 8)


@every_module
def test_the_kernels_by_name_refuse_what_they_cannot_serve(name):
    rnnfast.set_backend("rnnfast")
    _, ours = pair(name)
    assert_served(ours, example(name))
    with pytest.raises(RuntimeError, match=f"{name}.*'rnnfast'.*on the CPU.*; got .*on meta"):
        ours.to("meta")(example(name).to("meta"))


@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
def test_a_gru_that_resets_before_is_always_ours(name):
    rnnfast.set_backend("torch")
    before = kernel_calls()
    getattr(rnnfast, name)(4, 8, reset_after=False)(example(name))
    assert kernel_calls() > before


def test_unknown_backend():
    with pytest.raises(ValueError, match="auto, rnnfast, torch, got 'cudnn'"):
        rnnfast.set_backend("cudnn")
    assert rnnfast.get_backend() == "auto"


# Tensors on a GPU: the choice alone, which needs none.


def on_gpu(dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """What the choice asks of a CUDA tensor."""
    return SimpleNamespace(dtype=dtype, is_cpu=False, is_cuda=True, device=torch.device("cuda"))


@pytest.mark.parametrize("built", [False, True])
def test_kernels_for_cuda_are_asked_for_by_name(monkeypatch, built):
    monkeypatch.setattr(backend, "_cuda_kernels", False)
    monkeypatch.setattr(backend, "load_cuda_kernels", lambda: built)
    for name in ("auto", "torch", "rnnfast", "auto"):
        rnnfast.set_backend(name)
        assert backend.has_kernels(on_gpu()) == (built and name == "rnnfast")
        assert backend.has_kernels(torch.zeros(1))


@pytest.mark.parametrize(
    ("dtype", "tf32", "precision", "expected"),
    [
        (torch.float32, False, "fp32", "fp32"),
        (torch.float32, True, "fp32", "tf32"),
        (torch.float32, True, "bf16", "bf16"),
        (torch.float16, True, "bf16", "fp16"),
        (torch.bfloat16, True, "fp32", "bf16"),
        (torch.float64, True, "bf16", "fp32"),
    ],
)
def test_precision_of_products_on_cuda(monkeypatch, dtype, tf32, precision, expected):
    monkeypatch.setattr(backend, "_cudnn_allows_tf32", lambda: tf32)
    with backend.precision(precision):
        assert backend.product_precision(on_gpu(dtype)) == expected


# What is allowed after each of torch's switches: by the names of operators, and by the old one,
# which raises an error where it is read and these differ.
SWITCHES = """
import torch
from rnnfast import backend

cudnn = torch.backends.cudnn
for operators, value in (("rnn", "ieee"), ("rnn", "tf32"), ("conv", "ieee")):
    switch = getattr(cudnn, operators)
    before, switch.fp32_precision = switch.fp32_precision, value
    print(backend._cudnn_allows_tf32())
    switch.fp32_precision = before
cudnn.allow_tf32 = False
print(backend._cudnn_allows_tf32())
"""


def test_tf32_is_what_cudnn_takes_for_recurrent_layers(run_python):
    """In a process of its own: torch's testing tools forbid to set these switches."""
    assert run_python(SWITCHES).split() == ["False", "True", "True", "False"]


@pytest.mark.slow
def test_torch_compile_may_ask_for_tf32():
    compiled = torch.compile(lambda x: x + backend._cudnn_allows_tf32(), fullgraph=True)
    assert compiled(torch.zeros(1)).item() == torch.backends.cudnn.allow_tf32


def test_a_cpu_build_of_torch_has_no_kernels_for_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not _extension.load_cuda_kernels()


def test_kernels_for_cuda_that_cannot_be_loaded_say_so(monkeypatch, tmp_path):
    broken = tmp_path / "_cuda.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = SimpleNamespace(origin=str(broken))
    monkeypatch.setattr(_extension.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(ImportError, match="CUDA kernels cannot be loaded.*pip install"):
        rnnfast.set_backend("rnnfast")
    assert rnnfast.get_backend() == "auto"
