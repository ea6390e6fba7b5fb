"""What the benchmarks on a GPU share: timing by the GPU's own events, and where it ran."""

import contextlib
import dataclasses
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Protocol

import torch

from rnnfast.benchmark import measure

WARM_UP_CALLS = 3
# How far results may be apart, see `disagreement`.
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
OUT_OF_MEMORY = "out of memory"
NO_GPU = "no GPU here (torch.cuda.is_available() is False): nothing was measured"


class Mark(Protocol):
    """A point in the GPU's work, as torch.cuda.Event."""

    def elapsed_time(self, end: "Mark") -> float:
        """Milliseconds from this mark to a later one, once both are passed."""


class Clock:
    """What timing asks of the current GPU; the tests have one without a GPU."""

    def __init__(self) -> None:
        size = torch.cuda.get_device_properties().L2_cache_size
        self._larger_than_cache = torch.empty(4 * size, dtype=torch.int8, device="cuda")

    def now(self) -> float:
        """Seconds of the host's clock."""
        return time.perf_counter()

    def flush(self) -> None:
        """Leaves the cache holding nothing of a contender's."""
        self._larger_than_cache.zero_()

    def mark(self) -> Mark:
        """A mark after all work that was given to the GPU so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Returns when the GPU has done all its work."""
        torch.cuda.synchronize()


def interleave(
    contenders: dict[str, measure.Call], seconds: float, clock: Clock, min_rounds: int = 5
) -> dict[str, list[float]]:
    """Times the contenders in turn, A B A B, until the budget is used up.

    Each sample is one call, from an idle GPU and a flushed cache. The GPU is still flushing while
    the host begins to launch the call: of the time that launching takes, what the GPU has to wait
    for counts, and no more.

    Args:
        contenders: by name, what to call. Results are dropped.
        seconds: budget for the rounds; warm-up comes on top.
        clock: whose marks are taken.
        min_rounds: rounds to take however long they last.

    Returns:
        By name, the milliseconds of each round.
    """
    for call in contenders.values():
        for _ in range(WARM_UP_CALLS):
            call()
    times = {name: [] for name in contenders}
    with measure.no_garbage_collection():
        clock.wait()
        end = clock.now() + seconds
        rounds = 0
        while rounds < min_rounds or clock.now() < end:
            for name, call in contenders.items():
                clock.flush()
                start = clock.mark()
                call()
                stop = clock.mark()
                clock.wait()
                times[name].append(start.elapsed_time(stop))
            rounds += 1
    return times


def verdict(ratio: measure.Spread) -> str:
    """Whether ours was faster or slower in three of four rounds; else the two are equal."""
    if ratio.q25 > 1:
        return "faster"
    return "slower" if ratio.q75 < 1 else "equal"


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products of float32 matrices may round their operands to TF32, for a while."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = allowed
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuEnvironment(measure.Environment):
    """When and on what a row was measured: the GPU, its driver, CUDA and cuDNN as torch has them.

    `isa` is that of the CPU.
    """

    device: str
    driver: str
    cuda: str
    cudnn: str

    @classmethod
    def here(cls) -> "GpuEnvironment":
        return cls(
            **dataclasses.asdict(measure.Environment.here()),
            device=torch.cuda.get_device_name(),
            driver=_driver(),
            cuda=str(torch.version.cuda),
            cudnn=str(torch.backends.cudnn.version()),
        )


def _driver() -> str:
    """Its version as nvidia-smi tells it; torch does not know."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return lines[0] if lines else "unknown"


def disagreement(dtype: str, ours: torch.Tensor, peer: torch.Tensor) -> float:
    """How far results are apart, 1 being as far as they may be: the norm of the difference over
    that of the peer's, over what the dtype allows. NaN where either has one."""
    ours, peer = ours.double(), peer.double()
    norm = torch.linalg.vector_norm
    distance = norm(ours - peer) / norm(peer).clamp(min=1e-30)
    return distance.item() / TOLERANCE[dtype]


def failure(error: Exception) -> str:
    """Why there are no numbers, in one line."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return OUT_OF_MEMORY
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
