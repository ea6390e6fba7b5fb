"""What the tests of kernels compiled for the CPU share: structs, inputs, the tolerance."""

import ctypes
import re
from pathlib import Path

import torch

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"


def read_struct(header: str, name: str) -> type[ctypes.Structure]:
    """The struct `name` as csrc/cuda/`header` declares it."""
    text = (CUDA / header).read_text()
    body = re.search(rf"^struct {name} {{\n(.*?)^}};", text, re.M | re.S).group(1)
    kinds = {"int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32, "void*": ctypes.c_void_p}
    fields = [
        (field, kinds[kind])
        for kind, fields in re.findall(
            r"^  (?:const )?(int64_t|int32_t|void\*) ([\w, ]+);", body, re.M
        )
        for field in fields.split(", ")
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def random(dtype: torch.dtype, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Standard normal tensors by name; weight_hh is scaled so that states stay of its order."""
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(s, generator=generator, dtype=dtype) for name, s in shapes.items()}
    inputs["weight_hh"] /= inputs["weight_hh"].shape[1] ** 0.5
    return inputs


def assert_like_torch(ours: dict, reference, inputs: dict, roundings: int = 1) -> None:
    """Errors are at most twice those of torch, by name.

    reference(**inputs) returns a dict of tensors; in float64 it is the truth, in our dtype the
    peer. Where that happens to be exact, float32 results may be off by `roundings`.
    """
    truth = reference(**{name: x.double() for name, x in inputs.items()})
    peer = reference(**inputs)
    assert ours.keys() == truth.keys()
    for name, x in ours.items():
        error = (x.double() - truth[name]).abs().max()
        own = (peer[name].double() - truth[name]).abs().max()
        # torch has nothing wider than float64, so there both are off by the roundings of a sum of
        # hidden_size products.
        allowed = roundings if x.dtype == torch.float32 else 16
        floor = allowed * torch.finfo(x.dtype).eps * truth[name].abs().max()
        assert error <= 2 * own + floor, f"{name}: error {error:.3g}, torch's own {own:.3g}"
