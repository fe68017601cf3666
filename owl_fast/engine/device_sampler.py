"""The next tokens of many requests at once, drawn on the device: one launch, and one copy back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.engine.request import Request
from owl_fast.engine.sampling import device_settings


class Drawn(NamedTuple):
    """fault: 0, ops.NOT_FINITE or ops.NONE_ALLOWED."""

    token: int
    logprob: float
    fault: int


class DeviceSampler:
    """Holds a slot for every request that draws here, from its first token to `release`."""

    def __init__(self, slots: int, longest: int, eos_id: int, device: torch.device) -> None:
        """longest: tokens that a request may generate."""
        self._state = ops.sampling_state(slots, longest + 1, device)
        self._eos_id = eos_id
        self._free = list(range(slots))
        self._held: dict[Request, int] = {}

    @staticmethod
    def takes(request: Request) -> bool:
        """Beams and scores look at whole rows of logits, alternatives are sorted, and of the ids that end an
        answer the device knows one."""
        params = request.params
        whole_rows = request.beams is not None or request.score_from is not None or params.logprobs > 0
        return not whole_rows and not (params.stop_token_ids and params.min_tokens)

    def draw(self, rows: Mapping[Request, int], logits: Tensor) -> dict[Request, Drawn]:
        """rows: which row of the logits (M, V) is whose."""
        for request in rows.keys() - self._held.keys():
            slot = self._held[request] = self._free.pop()
            history = (request.bos_id, *request.generated)
            self._state.occupy(slot, device_settings(request.params, request.seed), history)
        owners = torch.full((len(logits),), -1, dtype=torch.int64)
        for request, row in rows.items():
            owners[row] = self._held[request]
        tokens, logprobs, faults = ops.sample(logits, owners.to(logits.device), self._state, self._eos_id)
        # float64 holds all three exactly: one copy instead of three.
        drawn = torch.stack((tokens.double(), logprobs.double(), faults.double()), 1).tolist()
        return {
            request: Drawn(int(drawn[row][0]), drawn[row][1], int(drawn[row][2]))
            for request, row in rows.items()
        }

    def release(self, request: Request) -> None:
        if request in self._held:
            self._free.append(self._held.pop(request))
