"""Which checkpoint tensors share one weight here: the only names that differ from the checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

# Module name -> the checkpoint's module names, stacked along the output rows in this order.
FUSED: dict[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "key_value": ("key", "value"),
    "w13": ("w1", "w3"),
}


def module_sources(name: str) -> tuple[str, ...]:
    """Checkpoint modules that make up module `name` (itself, unless it is fused)."""
    head, _, last = name.rpartition(".")
    prefix = f"{head}." if head else ""
    return tuple(prefix + part for part in FUSED.get(last, (last,)))


def parameter_sources(name: str) -> tuple[str, ...]:
    """Checkpoint tensors that make up parameter `name`, in stacking order."""
    module, _, leaf = name.rpartition(".")
    return tuple(f"{source}.{leaf}" for source in module_sources(module)) if module else (name,)


def source_views(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint as (its name there, a view of the parameter's rows that hold it).

    Low-rank updates are not part of a checkpoint and are left out.
    """
    for name, parameter in model.named_parameters():
        if ".lora." in name:
            continue
        sources = parameter_sources(name)
        if len(sources) == 1:
            yield sources[0], parameter.detach()
        else:
            rows = model.get_submodule(name.rpartition(".")[0]).rows
            yield from zip(sources, parameter.detach().split(rows), strict=True)
