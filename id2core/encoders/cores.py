"""A network on the cores of a CPU: two pictures at a time on each, instead of a batch on all of them.

The first layers of an autoencoder make tensors of 4 MiB a picture and more. For a whole batch, the system
maps and clears new pages for each of them, a third of the time of `mini`. For two pictures, they take memory
that is in use already. A core alone waits for no other core, which may be decoding.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch
from threadpoolctl import threadpool_limits

# Pictures that a core takes at once. One takes longer for each, four no less.
GROUP: Final = 2
# A batch is no smaller: its pictures share what a batch costs beside the network.
_LEAST_BATCH: Final = 16

Network = Callable[[torch.Tensor], torch.Tensor]


def batch_size() -> int:
    """Return the size of a batch that keeps all cores busy to its end."""
    step = GROUP * torch.get_num_threads()
    return -(-_LEAST_BATCH // step) * step


def on_cores(network: Network) -> Network:
    """Return a network that takes its pictures in groups of `GROUP`, each on one core.

    The last group is filled up with zeros. So the result for a picture depends neither on the size of the
    batch nor on the number of cores.

    Args:
        network: float[B,…] → float[B,…], a row for each picture. Several threads call it at once.
    """

    def infer(group: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():  # which is of a thread
            return network(group)

    def on_all(pictures: torch.Tensor) -> torch.Tensor:
        groups = list(torch.split(pictures, GROUP))
        if missing := GROUP - len(groups[-1]):
            filler = groups[-1].new_zeros((missing, *pictures.shape[1:]))
            groups[-1] = torch.cat([groups[-1], filler])
        return torch.cat(list(_threads().map(infer, groups)))[: len(pictures)]

    return on_all


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), "id2-encoder", _alone)


def _alone() -> None:
    """Give the kernels of this thread one core. PyTorch's own setting is of the whole process."""
    torch.get_num_threads()  # the first call sets up a thread, and would undo what follows
    threadpool_limits(1, user_api="openmp")


# A process that is forked has none of the threads.
os.register_at_fork(after_in_child=_threads.cache_clear)
