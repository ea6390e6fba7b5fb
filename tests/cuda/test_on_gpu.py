"""CUDA tensors: where torch has the operator its results to the bit, elsewhere the CPU's."""

import contextlib
import copy
import dataclasses
import os

# So that cuBLAS, and with it cuDNN, gives the same bits each time; read when it is loaded.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from rnnfast import concurrent, reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch"
    ),
]

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
every_layer = pytest.mark.parametrize("name", LAYERS)
every_cell = pytest.mark.parametrize("name", CELLS)
every_module = pytest.mark.parametrize("name", [*LAYERS, *CELLS])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])

leaves = torch.utils._pytree.tree_leaves


@pytest.fixture(autouse=True)
def exact_products():
    """No TF32, and the default backend."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value
    rnnfast.set_backend("auto")
    rnnfast.set_precision("fp32")


def pair(name: str, dtype: torch.dtype = torch.float32, **options) -> tuple[nn.Module, nn.Module]:
    """Torch's module and ours on the GPU, with the same weights."""
    torch.manual_seed(0)
    factory = {"device": "cuda", "dtype": dtype}
    theirs = getattr(nn, name)(5, 8, **options, **factory)
    ours = getattr(rnnfast, name)(5, 8, **options, **factory)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def sequences(kind: str, dtype: torch.dtype = torch.float32):
    generator = torch.Generator("cuda").manual_seed(1)
    padded = torch.randn(7, 3, 5, device="cuda", dtype=torch.float32, generator=generator).to(dtype)
    if kind == "packed":
        return pack_sequence([padded[:n, 0] for n in (4, 7, 1)], enforce_sorted=False)
    return {"padded": padded, "unbatched": padded[:, 0], "step": padded[0]}[kind]


def results_of(module: nn.Module, *inputs, **keywords) -> list[Tensor]:
    return [
        value
        for value in leaves(module(*inputs, **keywords))
        if isinstance(value, Tensor) and value.is_floating_point()
    ]


def gradients_of(module: nn.Module, results: list[Tensor]) -> list[Tensor]:
    loss = sum((value.double() ** 2).sum() for value in results)
    return list(torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad]))


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype and one.is_cuda
        assert torch.equal(one, other)


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """The largest error, as a part of the largest element."""
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        one, other = one.double().cpu(), other.double().cpu()
        assert (one - other).abs().max() <= tolerance * other.abs().max(), tolerance


# Where torch has the operator.

OPTIONS = [
    {},
    {"num_layers": 2},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
    {"batch_first": True},
]


@every_dtype
@pytest.mark.parametrize("kind", ["padded", "unbatched", "packed"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@every_layer
def test_layers_are_torchs_to_the_bit(name, options, kind, dtype):
    theirs, ours = pair(name, dtype, **options)
    input = sequences(kind, dtype)
    expected, results = results_of(theirs, input), results_of(ours, input)
    assert_same(results, expected)
    assert_same(gradients_of(ours, results), gradients_of(theirs, expected))
    with torch.inference_mode():
        assert_same(results_of(ours.eval(), input), results_of(theirs.eval(), input))


@every_dtype
def test_projections_are_torchs_to_the_bit(dtype):
    theirs, ours = pair("LSTM", dtype, proj_size=4, num_layers=2)
    input = sequences("padded", dtype)
    expected, results = results_of(theirs, input), results_of(ours, input)
    assert_same(results, expected)
    assert_same(gradients_of(ours, results), gradients_of(theirs, expected))


@every_layer
def test_dropout_draws_torchs_masks(name):
    """Without cuDNN, which draws on from where its last call left, whatever the seed."""
    theirs, ours = pair(name, num_layers=3, dropout=0.5)
    input = sequences("padded")
    with torch.backends.cudnn.flags(enabled=False):
        torch.manual_seed(3)
        expected = results_of(theirs, input)
        torch.manual_seed(3)
        assert_same(results_of(ours, input), expected)


@every_dtype
@every_cell
def test_cells_are_torchs_to_the_bit(name, dtype):
    theirs, ours = pair(name, dtype)
    input = sequences("step", dtype)
    expected, results = results_of(theirs, input), results_of(ours, input)
    assert_same(results, expected)
    assert_same(gradients_of(ours, results), gradients_of(theirs, expected))


@every_module
def test_states_that_are_given(name):
    theirs, ours = pair(name)
    step = name in CELLS
    shape = (3, 8) if step else (1, 3, 8)
    h_0, c_0 = torch.randn(2, *shape, device="cuda")
    hx = (h_0, c_0) if name.startswith("LSTM") else h_0
    input = sequences("step" if step else "padded")
    assert_same(results_of(ours, input, hx), results_of(theirs, input, hx))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_module
def test_autocast_is_torchs(name, dtype):
    theirs, ours = pair(name)
    input = sequences("step" if name in CELLS else "padded")
    with torch.autocast("cuda", dtype):
        expected, results = results_of(theirs, input), results_of(ours, input)
    assert_same(results, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_layer
def test_autocast_reaches_what_torch_lacks(name, dtype):
    theirs, _ = pair(name)
    ours = getattr(rnnfast, name)(5, 8, return_states=True, device="cuda")
    ours.load_state_dict(theirs.state_dict())
    input = sequences("padded")
    with torch.autocast("cuda", dtype):
        expected, results = results_of(theirs, input), results_of(ours, input)
    assert {value.dtype for value in results} == {dtype}
    assert_close(results[: len(expected)], expected, 8 * torch.finfo(dtype).eps)


@every_layer
def test_precision_is_the_cpus_matter(name):
    theirs, ours = pair(name)
    rnnfast.set_precision("bf16")
    assert_same(results_of(ours, sequences("padded")), results_of(theirs, sequences("padded")))


@every_module
def test_tensors_on_both_devices_are_refused(name):
    _, ours = pair(name)
    input = sequences("step" if name in CELLS else "padded")
    with pytest.raises(RuntimeError):
        ours(input.cpu())
    with pytest.raises(RuntimeError):
        ours.cpu()(input)


# What torch lacks: the CPU's kernels tell what is right.

BEYOND = [
    ("LSTM", {"learn_initial_state": True, "return_states": True}),
    ("LSTM", {"proj_size": 4, "return_states": True}),
    ("LSTM", {"memory": "recompute", "proj_size": 4}),
    ("GRU", {"learn_initial_state": True, "memory": "recompute"}),
    ("GRU", {"reset_after": False, "return_states": True}),
    ("RNN", {"learn_initial_state": True, "return_states": True, "nonlinearity": "relu"}),
    ("RNN", {"memory": "recompute", "batch_first": True}),
]


@pytest.mark.parametrize("kind", ["padded", "unbatched", "packed", "lengths"])
@pytest.mark.parametrize(("name", "options"), BEYOND, ids=str)
def test_options_that_torch_lacks(name, options, kind):
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    on_cpu = getattr(rnnfast, name)(5, 8, **sizes, **options)
    on_gpu = copy.deepcopy(on_cpu).cuda()
    input, keywords = sequences("padded" if kind == "lengths" else kind, torch.float64), {}
    if kind == "lengths":
        rows = input.size(0 if options.get("batch_first") else 1)
        keywords = {"lengths": [2, 0, 3, 1, 3, 3, 2][:rows]}
    expected = results_of(on_cpu, input.to("cpu"), **keywords)
    results = results_of(on_gpu, input, **keywords)
    assert_close(results, expected, 1e-10)
    assert_close(gradients_of(on_gpu, results), gradients_of(on_cpu, expected), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "options"), BEYOND, ids=str)
def test_options_that_torch_lacks_in_half_types(name, options, dtype):
    torch.manual_seed(0)
    ours = getattr(rnnfast, name)(5, 8, **options, device="cuda", dtype=dtype)
    exact = copy.deepcopy(ours).double()
    input = sequences("padded", dtype)
    results = results_of(ours, input)
    assert {value.dtype for value in results} == {dtype}
    assert_close(results, results_of(exact, input.double()), 16 * torch.finfo(dtype).eps)


def test_a_gru_cell_that_resets_before():
    torch.manual_seed(0)
    on_cpu = rnnfast.GRUCell(5, 8, reset_after=False, dtype=torch.float64)
    on_gpu = copy.deepcopy(on_cpu).cuda()
    input = sequences("step", torch.float64)
    expected, results = results_of(on_cpu, input.cpu()), results_of(on_gpu, input)
    assert_close(results, expected, 1e-12)
    assert_close(gradients_of(on_gpu, results), gradients_of(on_cpu, expected), 1e-12)


def test_recomputing_takes_less_memory():
    input = torch.randn(2000, 16, 64, device="cuda")
    peaks = {}
    for memory in ("full", "recompute"):
        module = rnnfast.LSTM(64, 64, memory=memory, device="cuda")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        module(input)[0].sum().backward()
        peaks[memory] = torch.cuda.max_memory_allocated() - before
    assert peaks["recompute"] < 0.75 * peaks["full"]


@pytest.mark.parametrize("kind", ["padded", "packed"])
@every_layer
def test_100_000_steps(name, kind):
    """cuDNN takes 65,535 at once."""
    torch.manual_seed(0)
    on_cpu = getattr(rnnfast, name)(3, 4, bidirectional=True, dtype=torch.float64)
    on_gpu = copy.deepcopy(on_cpu).cuda()
    input = torch.randn(100_000, 2, 3, dtype=torch.float64)
    if kind == "packed":
        input = pack_sequence([input[:, 0], input[:70_000, 1]])
    expected, results = results_of(on_cpu, input), results_of(on_gpu, input.to("cuda"))
    assert_close(results, expected, 1e-10)
    assert_close(gradients_of(on_gpu, results), gradients_of(on_cpu, expected), 1e-7)


@every_layer
def test_the_reference_is_differentiable_twice(name):
    torch.manual_seed(0)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[name]
    factory = {"device": "cuda", "dtype": torch.float64, "requires_grad": True}
    shapes = [(3, 2, 3), *[(2, 2)] * (2 if name == "LSTM" else 1)]
    shapes += [(gates * 2, 3), (gates * 2, 2), (gates * 2,), (gates * 2,)]
    inputs = [torch.randn(*shape, **factory) for shape in shapes]
    function = getattr(reference, name.lower())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_streams_and_int8_say_that_they_are_the_cpus():
    _, ours = pair("LSTM")
    with pytest.raises(ValueError, match="on the CPU, got .* on cuda"):
        rnnfast.stream(ours)
    with pytest.raises(ValueError, match="on the CPU, got .* on cuda"):
        rnnfast.quantize_dynamic(ours)
    quantized = rnnfast.quantize_dynamic(ours.cpu())
    with pytest.raises(TypeError, match="on the CPU, got .* on cuda"):
        quantized(sequences("padded"))
    with pytest.raises(TypeError, match="the module must be on the CPU, got weights on cuda"):
        quantized.cuda()(sequences("padded").cpu())


# How torch runs it.


@every_module
def test_compiles_into_one_graph(name):
    theirs, ours = pair(name)
    input = sequences("step" if name in CELLS else "padded")
    compiled = torch.compile(ours, fullgraph=True)
    expected, results = results_of(theirs, input), results_of(compiled, input)
    assert_close(results, expected, 1e-5)
    assert_close(gradients_of(ours, results), gradients_of(theirs, expected), 1e-4)


@every_module
def test_inference_as_a_cuda_graph(name):
    _, ours = pair(name)
    input = sequences("step" if name in CELLS else "padded")
    static = torch.empty_like(input)
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                ours(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results_of(ours, static)
        for scale in (1.0, -2.0):
            static.copy_(input * scale)
            graph.replay()
            assert_same(captured, results_of(ours, input * scale))


@every_layer
def test_two_streams_at_once(name):
    modules = [getattr(rnnfast, name)(64, 64, device="cuda") for _ in range(2)]
    inputs = [torch.randn(200, 8, 64, device="cuda") for _ in range(2)]
    alone = [results_of(module, input) for module, input in zip(modules, inputs, strict=True)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(5):
        together: list[list[Tensor]] = [[], []]
        for index, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                together[index] = results_of(modules[index], inputs[index])
        torch.cuda.synchronize()
        for results, expected in zip(together, alone, strict=True):
            assert_same(results, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("options", [{}, {"return_states": True}], ids=str)
@every_layer
def test_the_device_that_is_not_the_current_one(name, options):
    torch.manual_seed(0)
    on_cpu = getattr(rnnfast, name)(5, 8, **options)
    on_second = copy.deepcopy(on_cpu).to("cuda:1")
    input = sequences("padded")
    results = results_of(on_second, input.to("cuda:1"), lengths=[7, 0, 2])
    assert {value.device.index for value in results} == {1}
    assert_close(results, results_of(on_cpu, input.cpu(), lengths=[7, 0, 2]), 1e-5)


# Our kernels, which are asked for by name.


@pytest.fixture
def kernels():
    rnnfast.set_backend("rnnfast")


def assert_near_as_torch(name, dtype, sizes, steps=20, batch=5, rounding=None, **options):
    """Errors are at most twice those of torch's module, or some roundings of the largest element.

    In float64 torch's module is the truth itself, as far off as ours: there its own error is none,
    and the roundings are those of sums over the whole sequence.
    """
    torch.manual_seed(0)
    factory = {"device": "cuda", "dtype": dtype}
    theirs = getattr(nn, name)(*sizes, **options, **factory)
    ours = getattr(rnnfast, name)(*sizes, **options, **factory)
    ours.load_state_dict(theirs.state_dict())
    exact = copy.deepcopy(theirs).double()
    shape = (batch, steps) if options.get("batch_first") else (steps, batch)
    input = torch.randn(*shape, sizes[0], **factory)
    roundings = 64 if dtype == torch.float64 else 4
    rounding = rounding or torch.finfo(dtype).eps
    found = []
    for module, given in ((exact, input.double()), (theirs, input), (ours, input)):
        results = results_of(module, given)
        found.append([*results, *gradients_of(module, results)])
    for index, (truth, peer, value) in enumerate(zip(*found, strict=True)):
        assert value.dtype == peer.dtype == dtype
        error, own = (((x.double() - truth).abs().max()) for x in (value, peer))
        floor = roundings * rounding * truth.abs().max()
        assert error <= 2 * own + floor, f"{index}: error {error:.3g}, torch's own {own:.3g}"


KERNEL_OPTIONS = [
    {},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
    {"batch_first": True},
]


@every_dtype
@pytest.mark.parametrize("options", KERNEL_OPTIONS, ids=str)
@every_layer
def test_kernels_are_as_near_as_torchs(kernels, name, options, dtype):
    assert_near_as_torch(name, dtype, (5, 8), **options)


@every_dtype
@pytest.mark.parametrize("hidden, batch", [(61, 1), (256, 33), (1024, 16), (1500, 20)])
@every_layer
def test_large_kernels_are_as_near_as_torchs(kernels, name, hidden, batch, dtype):
    assert_near_as_torch(name, dtype, (37, hidden), steps=35, batch=batch)


@every_layer
def test_kernels_in_tf32_are_as_near_as_torchs(kernels, name):
    """cuDNN may then take TF32, or not."""
    for switch in (torch.backends.cuda.matmul, torch.backends.cudnn):
        switch.allow_tf32 = True
    assert_near_as_torch(name, torch.float32, (37, 256), steps=35, batch=20, rounding=2**-10)


@every_cell
@every_dtype
def test_kernels_of_cells(kernels, name, dtype):
    theirs, ours = pair(name, dtype)
    input = sequences("step", dtype)
    exact = results_of(copy.deepcopy(theirs).double(), input.double())
    assert_close(results_of(ours, input), exact, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("reset_after", [True, False])
def test_kernels_of_both_forms_of_gru(kernels, reset_after):
    torch.manual_seed(0)
    on_cpu = rnnfast.GRU(5, 8, 2, bidirectional=True, reset_after=reset_after, dtype=torch.float64)
    on_gpu = copy.deepcopy(on_cpu).cuda()
    input = sequences("padded", torch.float64)
    expected, results = results_of(on_cpu, input.cpu()), results_of(on_gpu, input)
    assert_close(results, expected, 1e-12)
    assert_close(gradients_of(on_gpu, results), gradients_of(on_cpu, expected), 1e-11)


@every_layer
def test_kernels_gradcheck(kernels, name):
    torch.manual_seed(0)
    module = getattr(rnnfast, name)(3, 2, 2, device="cuda", dtype=torch.float64)
    input = torch.randn(4, 2, 3, device="cuda", dtype=torch.float64, requires_grad=True)

    def run(input, *parameters):
        named = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        return tuple(leaves(torch.func.functional_call(module, named, (input,))))

    assert torch.autograd.gradcheck(run, (input, *module.parameters()))


@every_layer
def test_kernels_train_in_eval_mode_and_beyond_cudnns_length(kernels, name):
    torch.manual_seed(0)
    on_cpu = getattr(rnnfast, name)(3, 4).eval()
    on_gpu = copy.deepcopy(on_cpu).cuda()
    input = torch.randn(100_000, 2, 3)
    expected, results = results_of(on_cpu, input), results_of(on_gpu, input.cuda())
    assert_close(results, expected, 1e-3)
    assert_close(gradients_of(on_gpu, results), gradients_of(on_cpu, expected), 1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_layer
def test_kernels_under_autocast(kernels, name, dtype):
    theirs, ours = pair(name)
    input = sequences("padded")
    with torch.autocast("cuda", dtype):
        results, expected = results_of(ours, input), results_of(theirs, input)
    assert [value.dtype for value in results] == [value.dtype for value in expected]
    assert_close(results, results_of(theirs.double(), input.double()), 8 * torch.finfo(dtype).eps)


@every_layer
def test_kernels_refuse_what_they_do_not_serve(kernels, name):
    _, ours = pair(name)
    with pytest.raises(RuntimeError, match="batch_sizes must be None on CUDA"):
        ours(sequences("packed"))
    if name == "LSTM":
        _, projected = pair(name, proj_size=4)
        with pytest.raises(RuntimeError, match="weight_hr must be None on CUDA"):
            projected(sequences("padded"))


@every_layer
def test_kernels_give_the_same_bits_again_and_beside_other_rows(kernels, name):
    module = getattr(rnnfast, name)(64, 256, device="cuda")
    input = torch.randn(50, 40, 64, device="cuda")
    first = results_of(module, input)
    assert_same(results_of(module, input), first)
    gradients = gradients_of(module, first)
    assert_same(gradients_of(module, results_of(module, input)), gradients)
    (output, *_) = results_of(module, input[:, :3].contiguous())
    assert_close([output], [first[0][:, :3]], 1e-5)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
@every_layer
def test_kernels_as_a_cuda_graph(kernels, name, options):
    module = getattr(rnnfast, name)(32, 128, device="cuda", **options)
    static = torch.randn(20, 4, 32, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradients_of(module, results_of(module, static))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = results_of(module, static)
        gradients = gradients_of(module, results)
    static.copy_(torch.randn_like(static))
    graph.replay()
    expected = results_of(module, static)
    assert_same(results, expected)
    assert_same(gradients, gradients_of(module, expected))


@pytest.mark.parametrize(
    "options", [{"num_layers": 3, "dropout": 0.3}, {"bidirectional": True}], ids=str
)
@every_layer
def test_layers_at_once_give_what_they_give_in_turn(kernels, name, options, monkeypatch):
    module = getattr(rnnfast, name)(32, 128, device="cuda", **options)
    input = torch.randn(300, 4, 32, device="cuda")
    found = []
    for at_once in (True, False):
        if not at_once:
            monkeypatch.setattr(concurrent, "serves", lambda *_, **__: False)
        torch.manual_seed(0)
        results = results_of(module, input)
        found.append([*results, *gradients_of(module, results)])
    assert_close(*found, 1e-4)


@every_layer
def test_kernels_on_two_streams_at_once(kernels, name):
    test_two_streams_at_once(name)


@every_layer
def test_kernels_compile_into_one_graph(kernels, name):
    theirs, ours = pair(name)
    input = sequences("padded")
    compiled = torch.compile(ours, fullgraph=True)
    expected, results = results_of(theirs, input), results_of(compiled, input)
    assert_close(results, expected, 1e-5)
    assert_close(gradients_of(ours, results), gradients_of(theirs, expected), 1e-4)


# The loss, the optimizer, the language model.


@every_dtype
def test_the_loss_is_torchs_to_the_bit(dtype):
    torch.manual_seed(0)
    ours = rnnfast.LinearCrossEntropyLoss(8, 50, bias=True, device="cuda", dtype=dtype)
    input = torch.randn(4, 6, 8, device="cuda", dtype=dtype)
    target = torch.randint(50, (4, 6), device="cuda")
    logits = nn.functional.linear(input.flatten(0, 1), ours.linear.weight, ours.linear.bias)
    assert_same([ours(input, target)], [nn.functional.cross_entropy(logits, target.flatten())])


@contextlib.contextmanager
def no_waiting():
    """Whatever makes the host wait for the GPU raises an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_clipped_step_does_not_wait():
    torch.manual_seed(0)
    models = [nn.Linear(4, 3, device="cuda") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    input = torch.randn(5, 4, device="cuda")
    for model in models:
        model(input).square().sum().backward()
    clipped = rnnfast.optim.ClippedSGD(models[0].parameters(), 0.5, 0.1)
    with no_waiting():
        clipped.step()
    nn.utils.clip_grad_norm_(models[1].parameters(), 0.1)
    torch.optim.SGD(models[1].parameters(), 0.5).step()
    assert_close(list(models[0].parameters()), list(models[1].parameters()), 1e-6)


@pytest.fixture
def task(tmp_path):
    """Settings of a small model and its text."""
    language_model = pytest.importorskip("rnnfast.language_model", exc_type=ImportError)
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog ran to the cat\nso it is\n" * 40)
    config = language_model.preset("test").replace(
        data=language_model.DataConfig("text", str(path)),
        hidden_size=16,
        num_steps=5,
        batch_size=4,
        epochs=2,
        dropout=0.0,
        max_grad_norm=5.0,
        backend="rnnfast",
    )
    return language_model, config, config.data.load()


def new_model(task, device: str = "cuda") -> nn.Module:
    language_model, config, corpus = task
    return language_model.LanguageModel(len(corpus.vocabulary), config.model).to(device)


@pytest.mark.parametrize("init", ["uniform", "torch", "normal", "embeddings"])
def test_weights_do_not_depend_on_the_device(task, init):
    language_model, config, corpus = task
    model = new_model((language_model, config.replace(init=init), corpus))
    before = {name: value.cpu() for name, value in model.state_dict().items()}
    state = torch.cuda.get_rng_state()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.reset_parameters()
    assert torch.equal(torch.cuda.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), before[name])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("boundary", [None, "<eos>"])
def test_training_gives_what_the_cpu_gives(task, cell, boundary):
    language_model, config, corpus = task
    config = config.replace(cell=cell, boundary=boundary)
    results, texts, losses = [], [], []
    for device in ("cpu", "cuda"):
        model = new_model((language_model, config, corpus), device)
        results.append(
            language_model.fit(model, corpus, config.training, accuracy=True, show_progress=False)
        )
        losses.append(language_model.evaluate_text(model, corpus.valid).mean_loss)
        texts.append(language_model.sample(model, corpus.vocabulary, length=20, temperature=0))
        texts.append(language_model.sample(model, corpus.vocabulary, length=20, beam=3))
        language_model.sample(model, corpus.vocabulary, length=20, top_p=0.9, num_samples=3)
    on_cpu, on_gpu = results
    for one, other in zip(on_gpu.epochs, on_cpu.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
        assert one.valid_loss == pytest.approx(other.valid_loss, rel=1e-3)
    assert on_gpu.test.mean_loss == pytest.approx(on_cpu.test.mean_loss, rel=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert texts[:2] == texts[2:]


SETTINGS = [
    {"dropout": 0.3},
    {"optimizer": "adam", "learning_rate": 0.01, "dropout": 0.3, "cell": "gru"},
    {"weight_dropout": 0.3, "locked_dropout": True, "dropout": 0.2, "tied": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_training_that_was_left_goes_on_bit_for_bit(task, settings, tmp_path):
    language_model, config, corpus = task
    config = config.replace(**settings)
    corpus = dataclasses.replace(corpus, train=corpus.train[:132])
    task = (language_model, config, corpus)

    class Left(Exception):
        """What ends a training after some updates."""

    class Leaving(language_model.Run):
        saves = 0

        def save(self, checkpoint, *, is_best):
            super().save(checkpoint, is_best=is_best)
            self.saves += 1
            if self.saves == 5:
                raise Left

    def train(run, start=None):
        options = {"recorder": run, "start": start, "checkpoint_seconds": 0}
        language_model.fit(new_model(task), corpus, config.training, show_progress=False, **options)
        return run

    whole = train(language_model.Run.create(tmp_path / "whole", config, corpus.vocabulary))
    with pytest.raises(Left):
        train(Leaving.create(tmp_path / "left", config, corpus.vocabulary))
    again = language_model.Run.open(tmp_path / "left")
    train(again, again.checkpoint())
    one, other = (language_model.Run.open(run.path).checkpoint() for run in (again, whole))
    assert len(one.results) == config.training.epochs
    for field in ("weights", "best_weights", "generators"):
        values, expected = getattr(one, field), getattr(other, field)
        assert values.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in values.items()), field
    assert "cuda" in one.generators
    assert [r.valid_loss for r in one.results] == [r.valid_loss for r in other.results]


def test_a_whole_training_step_as_a_cuda_graph(task):
    """It never waits for the GPU, and replayed it is the same step."""
    language_model, config, corpus = task
    torch.manual_seed(0)
    input, target = torch.randint(len(corpus.vocabulary), (2, 5, 4), device="cuda")
    losses = {}
    for way in ("eager", "graph"):
        model = new_model(task)
        optimizer = language_model.new_optimizer(model, config.training)
        arguments = (model, list(model.parameters()), optimizer, input, target, None, 5.0)

        def step(arguments=arguments) -> Tensor:
            return language_model.train_step(*arguments)[0]

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = [step().item() for _ in range(3)]
        torch.cuda.current_stream().wait_stream(stream)
        if way == "eager":
            with no_waiting():
                pending = [step() for _ in range(4)]
            found += [loss.item() for loss in pending]
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loss = step()
            for _ in range(4):
                graph.replay()
                found.append(loss.item())
        losses[way] = found
    assert losses["graph"] == pytest.approx(losses["eager"], rel=1e-6)
    assert losses["graph"][-1] < losses["graph"][0]
