"""Several processes that train one W, as `torchrun` starts them; without it, this one alone.

`accelerate` would serve worse: its state is one per process and fixes the device at first use, where a
notebook may train on several, and its `gather` passes no gradients on. It would save four calls of
`torch.distributed`.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from id2core.defaults import AUTO
from id2core.environment import usable_device


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        device: where this process computes.
        rank: number of this process, from 0; process 0 writes files.
        count: number of processes.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    def share(self, rows: int) -> slice:
        """Return this rank's rows of a batch; all ranks get as many where `count` divides them."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def around(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that gradients are the mean over all ranks, and weights those of rank 0."""
        if self.count == 1:
            return module
        where = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, where, gradient_as_bucket_view=True)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, in their order; each rank must have as many.

        Only a rank's own rows pass gradients on. They are `count` times as large, so that the mean of all
        ranks' gradients is the gradient of a loss over all rows, which every rank has computed.
        """
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        if rows.requires_grad:
            rows.register_hook(lambda gradient: gradient * self.count)  # type: ignore[no-untyped-call]
        return torch.cat(parts)

    def mean(self, value: float) -> float:
        """Return the mean of a value over all ranks."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total) / self.count

    def agree(self, *values: float) -> tuple[float, ...]:
        """Return the values of rank 0 on all ranks."""
        if self.count == 1:
            return values
        agreed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(agreed, 0)
        return tuple(agreed.tolist())


def join(device: str | None = None) -> Ranks:
    """Join the other processes that `torchrun` has started, for the life of this one.

    Args:
        device: a torch device. By default, or with `auto`, a GPU where there is one, or else the CPU. Of
            several GPUs, each process of a machine takes one.
    """
    best = "cuda" if torch.cuda.is_available() else "cpu"
    kind = usable_device(best if device in (None, AUTO) else device)
    if not dist.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks(kind)
    if kind.type == "cuda":
        kind = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(kind)
    if not dist.is_initialized():
        dist.init_process_group()
        atexit.register(_part)
    return Ranks(kind, dist.get_rank(), dist.get_world_size())


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
