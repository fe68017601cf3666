"""Muon and AdamW of the phases before the paper's stages: two learning rates, their ratio kept by factors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from owl_fast.training.muon import MuonAdamW, takes_muon


def muon_adamw(
    parameters: Mapping[str, nn.Parameter], lr: float, adamw_lr: float, decay: float = 0.0
) -> MuonAdamW:
    """Matrices inside the layers under Muon at lr; embedding, heads and vectors under AdamW at adamw_lr.

    decay: Muon's weight decay, times the learning rate per update.
    """
    muon = [n for n, p in parameters.items() if takes_muon(n, p) and "heads." not in n]
    adamw = [n for n in parameters if n not in set(muon)]
    groups = (("muon", muon, 1.0, decay), ("adamw", adamw, adamw_lr / lr, 0.0))
    return MuonAdamW(
        [
            {"params": [parameters[n] for n in names], "kind": kind, "factor": factor, "weight_decay": decay}
            for kind, names, factor, decay in groups
        ],
        lr,
        scale="spectral",
    )
