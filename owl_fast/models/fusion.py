"""Which checkpoint tensors share one weight here: the only names that differ from the checkpoint's."""

from __future__ import annotations

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
