"""Bits do not depend on threads, on the rest of the batch or on the run; nothing hangs."""

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnfast

pytestmark = pytest.mark.usefixtures("kernels")

FORMS = {
    "LSTM": rnnfast.LSTM,
    "LSTM projected": lambda *args, **kwargs: rnnfast.LSTM(
        *args, proj_size=(args[1] + 1) // 2, **kwargs
    ),
    "GRU": rnnfast.GRU,
    "GRU reset before": lambda *args, **kwargs: rnnfast.GRU(*args, reset_after=False, **kwargs),
    "RNN": rnnfast.RNN,
}
every_form = pytest.mark.parametrize("build", FORMS.values(), ids=FORMS)
# input_size, hidden_size, batch, seq_len: shared among threads by rows, by units, with the input
# projection in the step and apart from it; smaller and larger than a block of the sums.
SHAPES = [
    (3, 5, 1, 4),
    (70, 130, 1, 50),
    (9, 33, 7, 11),
    (64, 64, 40, 5),
    (300, 40, 70, 3),
    (300, 200, 20, 3),
    (40, 600, 12, 3),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def problem(build, shape, batch_first: bool = False) -> tuple[nn.Module, Tensor]:
    input_size, hidden_size, batch, seq_len = shape
    torch.manual_seed(0)
    module = build(input_size, hidden_size, batch_first=batch_first)
    sizes = (batch, seq_len) if batch_first else (seq_len, batch)
    return module, torch.randn(*sizes, input_size)


def outputs(module: nn.Module, x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
    """With lengths, of the rows packed; in the layout of `x` all the same."""
    if lengths is not None:
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, final = module(x)
    if isinstance(output, PackedSequence):
        output, _ = pad_packed_sequence(output)
    return [output, *(final if isinstance(final, tuple) else (final,))]


def outputs_and_gradients(
    module: nn.Module, x: Tensor, lengths: Tensor | None = None
) -> list[Tensor]:
    x = x.detach().requires_grad_()
    results = outputs(module, x, lengths)
    leaves = [x, *module.parameters()]
    total = sum((result * result).sum() for result in results)
    return [*results, *torch.autograd.grad(total, leaves)]


def assert_same_bits(results: list[Tensor], expected: list[Tensor]) -> None:
    assert len(results) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@every_shape
@every_form
def test_same_bits_run_to_run_and_for_any_number_of_threads(build, shape, isa):
    module, x = problem(build, shape)
    torch.set_num_threads(1)
    expected = outputs_and_gradients(module, x)
    for count in (1, 2, 2, 3, 7):
        torch.set_num_threads(count)
        assert_same_bits(outputs_and_gradients(module, x), expected)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_major", "batch_first"])
@every_shape
@every_form
def test_a_row_does_not_depend_on_its_batch(build, shape, batch_first, isa):
    input_size, hidden_size, _, seq_len = shape
    module, x = problem(build, (input_size, hidden_size, 71, seq_len), batch_first)
    batch_dim = 0 if batch_first else 1
    for count in (1, 2):
        torch.set_num_threads(count)
        with torch.no_grad():
            expected = outputs(module, x)
            for begin, rows in [(0, 1), (70, 1), (3, 2), (1, 7), (5, 8), (4, 13), (9, 40)]:
                part = outputs(module, x.narrow(batch_dim, begin, rows))
                whole = [expected[0].narrow(batch_dim, begin, rows)]
                whole += [state.narrow(1, begin, rows) for state in expected[1:]]
                assert_same_bits(part, whole)


@every_shape
@every_form
def test_packed_rows(build, shape, isa):
    """The same bits for any number of threads, and those of each row alone."""
    module, x = problem(build, shape)
    # Of one step alone the weights may be read, and so summed, in another order.
    lengths = torch.randint(2, x.size(0) + 1, (x.size(1),))
    torch.set_num_threads(1)
    expected = outputs_and_gradients(module, x, lengths)
    for count in (1, 2, 2, 3, 7):
        torch.set_num_threads(count)
        assert_same_bits(outputs_and_gradients(module, x, lengths), expected)
    output, *final = expected[: 3 if module.mode == "LSTM" else 2]
    for row in (0, len(lengths) // 2, len(lengths) - 1):
        length = int(lengths[row])
        with torch.no_grad():
            alone = outputs(module, x[:length, row : row + 1])
        whole = [output[:length, row : row + 1], *(state[:, row : row + 1] for state in final)]
        assert_same_bits(alone, whole)


@every_form
def test_recording_changes_no_bit(build, isa):
    module, x = problem(build, (20, 33, 7, 6))
    with torch.no_grad():
        expected = outputs(module, x)
    assert_same_bits(outputs(module, x), expected)


@every_form
def test_many_python_threads_at_once(build):
    torch.set_num_threads(2)
    module, x = problem(build, (33, 40, 16, 9))
    expected = outputs_and_gradients(module, x)
    with ThreadPoolExecutor(6) as pool:
        runs = [pool.submit(outputs_and_gradients, module, x) for _ in range(24)]
        for run in runs:
            assert_same_bits(run.result(timeout=60), expected)


# How programs begin that run in a process of their own.
ON_KERNELS = """
import torch, rnnfast
rnnfast.set_backend("rnnfast")
"""


@pytest.mark.parametrize("batch", [5, 16], ids=["units_shared", "rows_shared"])
def test_inside_a_parallel_region(batch, run_python):
    """Each thread of an OpenMP team, of the runtime that torch uses, calls a kernel."""
    run_python(
        ON_KERNELS
        + """
import ctypes, sys
from pathlib import Path

torch.set_num_threads(2)
module = rnnfast.LSTM(16, 64)
x = torch.randn(20, int(sys.argv[1]), 16)
expected = module(x)[0]

libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
runtime = next((name for name in libraries if "libgomp" in Path(name).name), None)
if runtime is None:
    sys.exit("no libgomp")
openmp = ctypes.CDLL(runtime)
teams, same = [], []

@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def body(_):
    teams.append(openmp.omp_get_num_threads())
    same.append(torch.equal(module(x)[0], expected))

for _ in range(20):
    openmp.GOMP_parallel(body, None, 2, 0)
assert teams == [2] * 40, teams
assert same == [True] * 40, same
""",
        str(batch),
        skip_if="no libgomp",
    )


@pytest.mark.parametrize("sanitizer", ["", "thread"], ids=["plain", "thread_sanitizer"])
def test_phases(sanitizer, tmp_path):
    """In order, each share once, whenever threads come and whoever of them does not."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the program with")
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-pthread"]
    flags += [f"-fsanitize={sanitizer}"] if sanitizer else []
    source, program = Path(__file__).with_name("phases.cpp"), tmp_path / "phases"
    headers = Path(__file__).parents[2] / "csrc"
    command = [compiler, *flags, f"-I{headers}", str(source), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    if sanitizer and "libtsan" in built.stderr:
        pytest.skip("no ThreadSanitizer to link")
    assert built.returncode == 0, built.stderr
    result = subprocess.run([program], capture_output=True, text=True, timeout=60)
    if sanitizer and "unexpected memory mapping" in result.stderr:
        pytest.skip("this system's memory layout is none that ThreadSanitizer knows")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "288 passed\n"


def test_after_fork(run_python):
    """A child has none of its parent's threads, and still computes."""
    run_python(
        ON_KERNELS
        + """
import os, signal
torch.set_num_threads(2)
module = rnnfast.GRU(16, 64)
x = torch.randn(20, 16, 16)

def run():
    output = module(x)[0]
    return [output, *torch.autograd.grad(output.sum(), list(module.parameters()))]

expected = run()
child = os.fork()
if child == 0:
    signal.alarm(60)
    same = all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
# The parent goes on.
assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
"""
    )


def test_with_one_thread(run_python):
    run_python(
        ON_KERNELS
        + """
torch.set_num_threads(1)
module = rnnfast.RNN(16, 64)
module(torch.randn(20, 16, 16))[0].sum().backward()
assert torch.get_num_threads() == 1
"""
    )
