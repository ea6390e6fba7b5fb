"""The CUDA sequence kernels on a GPU, compiled by nvcc: the checks of test_sequence_on_host.py, and
sizes that a CPU takes too long for."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from on_host_checks import assert_like_torch
from test_sequence_on_host import (
    FORMS,
    OPERAND_BYTES,
    OPERANDS,
    ROUNDINGS,
    SIZES,
    Device,
    Host,
    assert_as_if_alone,
    assert_cell_like_torch,
    assert_operands_rounded,
    form_name,
    forward_and_backward,
    random_inputs,
    random_recurrences,
    reference,
    run_together,
)

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip("no GPU, or torch without CUDA", allow_module_level=True)
if shutil.which("nvcc") is None:
    pytest.skip("no nvcc on PATH", allow_module_level=True)

CSRC = Path(__file__).parents[2] / "csrc"
# Tens of steps, several tiles a group, and weights that fit in half types alone or not at all.
LARGE = [(60, 16, 768), (20, 65, 256), (5, 300, 512), (4, 8, 1500), (2, 20, 2500)]


def size_name(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


class Gpu(Host):
    """The launchers on the current device; tensors stay the caller's, on the CPU."""

    memory = "cuda"

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.planned = Device()
        assert not library.current_device(ctypes.byref(self.planned))

    def addresses(self, tensors):
        bases = {name: x if x._base is None else x._base for name, x in tensors.items()}
        self.copies = {id(base): (base, base.cuda()) for base in bases.values()}
        return {
            name: self.copies[id(bases[name])][1].data_ptr() + x.data_ptr() - bases[name].data_ptr()
            for name, x in tensors.items()
        }

    def fetch(self, tensors):
        for base, copy in self.copies.values():
            base.copy_(copy)


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    library = tmp_path_factory.mktemp("sequences") / "sequences.so"
    source = Path(__file__).parent / "on_host" / "sequences.cpp"
    major, minor = torch.cuda.get_device_capability()
    command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{major}{minor}", f"-I{CSRC}", "-shared"]
    command += ["-Xcompiler", "-fPIC", "-x", "cu", str(source), "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return Gpu(ctypes.CDLL(str(library)))


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("cell, form", FORMS, ids=form_name)
@pytest.mark.parametrize("sizes", SIZES + LARGE, ids=size_name)
def test_like_torch(gpu, cell, form, operand, sizes):
    if not form.get("reset_after", True) and operand != "float32":
        pytest.skip("step by step, this form computes in float32 whatever the operand")
    assert_cell_like_torch(gpu, cell, form, operand, sizes)


@pytest.mark.parametrize("cell, form", FORMS, ids=form_name)
@pytest.mark.parametrize("batch_first", [False, True])
def test_reverse_and_layouts(gpu, cell, form, batch_first):
    assert_cell_like_torch(gpu, cell, form, "float32", (3, 17, 9), 1, batch_first)


@pytest.mark.parametrize("cell, form", FORMS, ids=form_name)
def test_double(gpu, cell, form):
    inputs = random_inputs(cell, torch.float64, 3, 5, 7)
    ours = forward_and_backward(gpu, cell, "float64", inputs, **form)
    rounded = OPERANDS["float32"]
    assert_like_torch(ours, lambda **x: reference(cell, x, rounded, 0, **form), inputs)


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=str)
def test_operands_are_rounded_to_nearest(gpu, rounding):
    assert_operands_rounded(gpu, *rounding)


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("cell, form", FORMS, ids=form_name)
@pytest.mark.parametrize("sizes", [(3, 17, 33), *LARGE[:4]], ids=str)
def test_two_directions(gpu, cell, form, operand, sizes):
    if not form.get("reset_after", True) and operand != "float32":
        pytest.skip("step by step, this form computes in float32 whatever the operand")
    inputs = random_recurrences(cell, sizes, sizes)
    together = run_together(gpu, cell, operand, inputs, **form)
    assert_as_if_alone(gpu, cell, form, operand, inputs, together)


@pytest.mark.parametrize("operand", OPERANDS)
def test_the_same_bits_every_time(gpu, operand):
    assert gpu.plan("lstm", 40, 512, OPERAND_BYTES[operand], True).persistent
    inputs = random_inputs("lstm", torch.float32, 200, 40, 512)
    first = forward_and_backward(gpu, "lstm", operand, inputs)
    for _ in range(10):
        again = forward_and_backward(gpu, "lstm", operand, inputs)
        assert all(torch.equal(again[name], first[name]) for name in first)
