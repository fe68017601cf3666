"""Several one-thread processes on one model: faster on two cores than one process with two threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from owl_fast.training.ranks import Ranks


def join(rank: int, size: int, meeting_point: Path) -> Ranks:
    """Wait for the others; meeting_point is a file that does not exist yet."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=size)
    return Ranks.current()


def sum_gradients_(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Every gradient becomes the sum over ranks; one that no rank has stays None.

    These phases compute their losses from several modules, so that torch's DDP has none to wrap.
    """
    if ranks.size == 1:
        return
    present = torch.tensor([p.grad is not None for p in parameters]).float()
    dist.all_reduce(present)
    used = [p for p, count in zip(parameters, present.tolist(), strict=True) if count]
    flat = torch.cat([_gradient(p).flatten() for p in used])
    dist.all_reduce(flat)
    for parameter, part in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
        parameter.grad = part.view_as(parameter)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
