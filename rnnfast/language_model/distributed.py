"""Several processes that train one model together, as ``torchrun`` starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """The processes of a training, and which of them this one is.

    What they exchange goes through torch's default process group; a single process needs none.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        local_rank: number of this process among those of its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def launched(cls) -> "Processes":
        """As ``torchrun`` tells it in the environment; one process where it does not."""
        if not dist.is_torchelastic_launched():
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def own_device(self, device: torch.device) -> torch.device:
        """The device of that kind that is this process's: of GPUs, one each."""
        if device.type != "cuda" or device.index is not None or self.world_size == 1:
            return device
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def replicated(self, module: nn.Module, *, find_unused: bool = False) -> nn.Module:
        """The module in this process, whose gradients become the mean over all processes.

        Its weights become those of rank 0.

        Args:
            module: the same in each process.
            find_unused: whether a forward pass may leave parameters out.
        """
        if self.world_size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=find_unused)

    def sum(self, *values: float) -> list[float]:
        """The sum over all processes of each value, in double precision."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def agreed(self, value: bool) -> bool:
        """What rank 0 says."""
        if self.world_size == 1:
            return value
        said = torch.tensor(value)
        dist.broadcast(said, src=0)
        return bool(said)

    def gathered(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The tensors of all processes side by side, the same shape each, on the CPU."""
        tensor = tensor.cpu().contiguous()
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts, dim)

    def own_part(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """A copy of this process's part of what :meth:`gathered` gave."""
        return tensor.chunk(self.world_size, dim)[self.rank].clone()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that :meth:`Processes.launched` tells of, able to exchange while this lasts.

    By gloo for tensors on the CPU and NCCL for those on a GPU. A process group that is there
    already is used and left. A process that fails inside leaves with its exception, on which
    ``torchrun`` ends the others.
    """
    processes = Processes.launched()
    if processes.world_size == 1 or dist.is_initialized():
        yield processes
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(processes.local_rank % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    yield processes
    dist.barrier()  # for one that leaves first may keep the others waiting
    dist.destroy_process_group()
