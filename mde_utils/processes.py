"""Work shared by the processes of `torch.distributed`, as `accelerate launch` starts them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mde_utils.environment import progress

Task = TypeVar("Task")
Key = TypeVar("Key", bound=Hashable)


def rank_and_world(distributed: bool | None = None) -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) without `torch.distributed`.

    Args:
        distributed: None = share where it is initialised, False = never, True = it must be.
    """
    dist = torch.distributed
    ready = dist.is_available() and dist.is_initialized()
    if distributed and not ready:
        raise ValueError(
            "distributed=True needs an initialised torch.distributed: start the script with "
            "`accelerate launch`, or leave distributed=None."
        )
    if distributed is False or not ready:
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def sum_over_processes(values: list[Tensor]) -> list[Tensor]:
    """Each tensor summed over processes, in one message; with a gradient.

    Where every process goes on to compute the same scalar from the sums, and the gradients of the
    parameters are averaged over processes (as DistributedDataParallel does), the outcome is the
    gradient that one process with all the data would have: hence the factor `world`.
    """
    world = torch.distributed.get_world_size()
    flat = torch.cat([value.detach().flatten() for value in values])
    torch.distributed.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [
        part.view_as(value) + world * (value - value.detach())
        if value.requires_grad
        else part.view_as(value)
        for part, value in zip(parts, values, strict=True)
    ]


def add_in_order(
    work: Callable[[Task], Iterable[Mapping[Key, Tensor]]],
    tasks: Sequence[Task],
    *,
    distributed: bool | None = None,
    desc: str | None = None,
) -> dict[Key, Tensor]:
    """What the parts of all tasks sum to, by key; the same to the last bit in any number of
    processes, if a task's parts are.

    Floating-point addition is not associative, so each process adds every part, in the order of
    the tasks: after a round, one task a process, they exchange the parts. Only one round's are
    held at a time.

    Args:
        work: task → its parts, which may have different keys.
        tasks: the same in every process; process r does tasks r, r + world, …
        distributed: see `rank_and_world`.
        desc: title of a progress bar over the rounds, in process 0; None = no bar.

    Returns:
        key → sum; where there are several processes, on the CPU of each.

    Raises:
        RuntimeError: another process failed in the same round; an exception of this process's own
            work comes out as it is. So no process is left waiting for one that failed.
    """
    rank, world = rank_and_world(distributed)
    rounds = range(0, len(tasks), world)
    totals: dict[Key, Tensor] = {}
    for first in progress(rounds, desc=desc) if desc and rank == 0 else rounds:
        own = tasks[first + rank : first + rank + 1]  # none for some processes in the last round
        parts = _round(work, own) if world > 1 else work(*own)
        for part in parts:
            for key, value in part.items():
                totals[key] = totals.get(key, 0) + value
    return totals


def _round(work: Callable, own: Sequence) -> Iterable[Mapping]:
    """The parts of all processes' tasks of one round, in order."""
    try:
        parts = [{k: v.cpu() for k, v in part.items()} for task in own for part in work(task)]
    except Exception as error:
        gather(([], f"{type(error).__name__}: {error}"))
        raise
    everyone = gather((parts, None))
    for rank, (_, failure) in enumerate(everyone):
        if failure is not None:
            raise RuntimeError(f"Process {rank} of {len(everyone)} failed: {failure}")
    return [part for parts, _ in everyone for part in parts]


def gather(value) -> list:
    """The value of every process, in the order of their numbers; any object that pickles.

    Tensors should be on the CPU: they arrive on the device that they left.
    """
    _, world = rank_and_world()
    if world == 1:
        return [value]
    gathered: list = [None] * world
    torch.distributed.all_gather_object(gathered, value)
    return gathered
