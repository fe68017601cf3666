"""Several processes as one run: each takes its share of every update, the gradients are summed.

The caller starts the processes and torch.distributed (torchrun, or init_process_group); with one process
nothing here communicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `size`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float, device: torch.device) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_gradients_(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every gradient becomes the sum over ranks; one that no rank has stays None."""
        if self.size == 1:
            return
        present = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device).float()
        dist.all_reduce(present)
        used = [p for p, count in zip(parameters, present.tolist(), strict=True) if count]
        flat = torch.cat([_gradient(p).flatten() for p in used])
        dist.all_reduce(flat)
        for parameter, part in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
            parameter.grad = part.view_as(parameter)

    def gather(self, values: list[str]) -> list[str]:
        """The lists of all ranks, joined."""
        if self.size == 1:
            return values
        lists: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(lists, values)
        return [value for part in lists for value in part]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
