"""Which device and dtype a model gets."""

from __future__ import annotations

from dataclasses import replace

import torch

from owl_fast import ops
from owl_fast.config import OwlConfig
from owl_fast.errors import UnsupportedError
from owl_fast.models.owl import Owl

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Above this many weights a CPU runs bfloat16: a 7B model in float32 would need 28 GB.
FLOAT32_WEIGHTS_ON_CPU = 1_000_000_000


def pick_device(device: str | torch.device) -> torch.device:
    """The device asked for, or for "auto" CUDA where there is one; UnsupportedError when it is not there."""
    available = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UnsupportedError(f"device {device!r:.40}; wanted auto, cuda, cuda:N or cpu") from None
    count = torch.cuda.device_count() if available else 0
    if place.type not in ("cpu", "cuda") or (place.type == "cuda" and (place.index or 0) >= count):
        raise UnsupportedError(f"device {str(place)!r}: this machine offers cpu and {count} CUDA device(s)")
    return place


@torch.no_grad()
def check_exact(model: Owl) -> None:
    """UnsupportedError where a row's bits depend on the rows beside it whatever one does."""
    if not ops.decodes_at_once(model.query_tokens):
        kind = str(model.dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"exact answers with {kind} on {model.device}: there they depend on their neighbours; it takes "
            "a GPU with Triton, or libowl_cpu with fp32 or bf16 (`owl-fast doctor` says what is there)"
        )


def pick_dtype(dtype: str | torch.dtype, device: torch.device, config: OwlConfig) -> torch.dtype:
    """The dtype asked for, or for "auto" the one from_pretrained describes."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise UnsupportedError(f"dtype {dtype!r:.40}; wanted auto, {', '.join(DTYPES)} or a torch dtype")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.float32 if weight_count(config) < FLOAT32_WEIGHTS_ON_CPU else torch.bfloat16


def weight_count(config: OwlConfig) -> int:
    """Weights of the model, however they are held."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in Owl(replace(config, quantization=None)).parameters())
