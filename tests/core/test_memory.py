"""What a call allocates: nothing for backward where there is none, little with recomputation."""

import ctypes
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast

pytestmark = pytest.mark.usefixtures("kernels")

# So large that what has no sequence's size, states and weights included, hardly counts.
SEQ_LEN, BATCH, SIZE = 1000, 8, 16
OUTPUT_BYTES = SEQ_LEN * BATCH * SIZE * 4
SMALL = 0.05 * OUTPUT_BYTES

# Of each layer, how many tensors of the output's size it keeps for backward beside its output.
KEPT = {"LSTM": 5, "GRU": 4, "RNN": 0}
every_layer = pytest.mark.parametrize("name", KEPT)
both_memories = pytest.mark.parametrize("memory", ["full", "recompute"])


@pytest.fixture
def allocations(tmp_path: Path) -> Callable[[Callable[[], object]], list[int]]:
    """Runs a function; of each tensor that it allocates, the bytes; as a negative number when it is
    given back. In the order of time."""

    def record(function: Callable[[], object]) -> list[int]:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            results = function()
        del results
        path = tmp_path / "trace.json"
        profile.export_chrome_trace(str(path))
        events = [
            event
            for event in json.loads(path.read_text())["traceEvents"]
            if event["name"] == "[memory]"
        ]
        return [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]

    return record


def peak(allocations: list[int]) -> int:
    highest = now = 0
    for size in allocations:
        now += size
        highest = max(highest, now)
    return highest


def build(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return getattr(rnnfast, name)(SIZE, SIZE, **options)


def random_input(layout: str) -> Tensor | PackedSequence:
    x = torch.randn(*((BATCH, SEQ_LEN) if layout == "batch" else (SEQ_LEN, BATCH)), SIZE)
    return pack_padded_sequence(x, [SEQ_LEN] * BATCH) if layout == "packed" else x


class TestWithoutBackward:
    """Whatever the reason, output and states are all that is allocated."""

    @pytest.mark.parametrize("reason", ["no_grad", "inference_mode", "frozen"])
    @pytest.mark.parametrize("layout", ["time", "batch", "packed"])
    @both_memories
    @every_layer
    def test_one_layer(self, name, memory, layout, reason, allocations):
        module = build(name, memory=memory, batch_first=layout == "batch")
        x = random_input(layout)
        if reason == "frozen":
            module.requires_grad_(False)
        with {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(
            reason, torch.enable_grad
        )():
            sizes = allocations(lambda: module(x))
        total = sum(size for size in sizes if size > 0)
        assert OUTPUT_BYTES <= total <= OUTPUT_BYTES + SMALL

    @every_layer
    def test_all_states(self, name, allocations):
        """Those that output does not tell, and no gates."""
        module, x = build(name, return_states=True), random_input("time")
        with torch.no_grad():
            sizes = allocations(lambda: module(x))
        sequences = 2 if name == "LSTM" else 1
        assert sum(size for size in sizes if size > 0) <= sequences * OUTPUT_BYTES + SMALL

    @both_memories
    @every_layer
    def test_a_bidirectional_stack(self, name, memory, allocations):
        """Every direction's output of every layer, and both joined; those of two layers at most are
        there at once."""
        module = build(name, memory=memory, num_layers=3, bidirectional=True)
        x = random_input("time")
        with torch.no_grad():
            sizes = allocations(lambda: module(x))
        assert sum(size for size in sizes if size > 0) <= 3 * 4 * OUTPUT_BYTES + SMALL
        assert peak(sizes) <= (4 + 2) * OUTPUT_BYTES + SMALL

    @pytest.mark.parametrize("name", ["LSTM", "GRU"])
    def test_recording_allocates_far_more(self, name, allocations):
        """The count sees what backward needs."""
        module, x = build(name), random_input("time")
        total = sum(size for size in allocations(lambda: module(x)) if size > 0)
        expected = (1 + KEPT[name]) * OUTPUT_BYTES
        assert expected <= total <= expected + SMALL


class TestRecompute:
    @pytest.mark.parametrize("name", ["LSTM", "GRU"])
    def test_tensors_alive_at_once_in_training(self, name, allocations):
        highest = {}
        for memory in ("full", "recompute"):
            module, x = build(name, memory=memory), random_input("time")
            module(x)[0].sum().backward()  # gradients are there already
            highest[memory] = peak(allocations(lambda: module(x)[0].sum().backward()))  # noqa: B023
        # Output, its gradient and what is kept.
        assert highest["full"] >= (2 + KEPT[name]) * OUTPUT_BYTES
        # Output in segments and as a whole, and all of one segment.
        segment = 0.032 * (2 + KEPT[name])
        assert highest["recompute"] <= (2 + 2 * segment) * OUTPUT_BYTES + SMALL

    def test_peak_of_the_process(self, run_python):
        """At most half of torch.nn's, for whatever allocates, scratch memory included."""
        status = Path("/proc/self/status")
        if not status.exists() or "VmHWM:" not in status.read_text():
            pytest.skip("the system does not say how much memory a process has had")
        torchs, ours = (float(run_python(TRAINING_STEP, name)) for name in ("torch", "recompute"))
        assert 2 * ours <= torchs, f"{ours:.0f} MiB, torch.nn {torchs:.0f} MiB"


# How many MiB the largest part of memory that was resident exceeds that before the step.
TRAINING_STEP = """
import sys
from pathlib import Path

import torch
import rnnfast

SIZE = 128
rnnfast.set_backend("rnnfast")
torch.set_num_threads(1)


def build():
    if sys.argv[1] == "torch":
        return torch.nn.LSTM(SIZE, SIZE)
    return rnnfast.LSTM(SIZE, SIZE, memory=sys.argv[1])


def train(module, x):
    module(x)[0].sum().backward()


def resident(field):
    status = Path("/proc/self/status").read_text()
    return int(status.partition(field + ":")[2].split()[0]) / 1024


train(build(), torch.randn(70, 2, SIZE))  # loads what the first step loads
module, x = build(), torch.randn(1000, 32, SIZE, requires_grad=True)
before = resident("VmRSS")
train(module, x)
print(resident("VmHWM") - before)
"""


class Heap(ctypes.Structure):
    """What glibc's mallinfo2 tells of the heap."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        )
    ]


def bytes_in_use() -> int:
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("the C library does not say how much of the heap is in use")
    mallinfo.restype = Heap
    return mallinfo().uordblks


def calls() -> dict[str, Callable[[], Tensor]]:
    """Calls of every op, by way of what a program calls."""
    x, target = torch.randn(2, 5, 3), torch.tensor([0, 1, 2, 3, 0])
    loss = rnnfast.LinearCrossEntropyLoss(3, 4)
    found: dict[str, Callable[[], Tensor]] = {"loss": lambda: loss(x[0], target)}
    for name in KEPT:
        layer, cell = getattr(rnnfast, name)(3, 4), getattr(rnnfast, f"{name}Cell")(3, 4)
        quantized = rnnfast.quantize_dynamic(layer)
        found[name] = lambda layer=layer: layer(x)[0]
        found[f"{name}Cell"] = lambda cell=cell: torch.stack([*cell(x[0])])
        found[f"{name} in int8"] = lambda quantized=quantized: quantized(x)[0]
    return found


@pytest.mark.parametrize("name", calls())
def test_calls_leave_nothing_behind(name):
    """On the heap, of hundreds of calls with their backward; a string among an op's arguments once
    left 48 bytes."""
    call, times = calls()[name], 300

    def run() -> None:
        for _ in range(times):
            result = call()
            if result.requires_grad:
                result.sum().backward()
            with torch.no_grad():
                call()

    run()
    before = bytes_in_use()
    run()
    assert bytes_in_use() - before < 8 * times
