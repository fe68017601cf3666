"""int4 in groups: W[n, k] = (q[n, k] - 8) scale[n, k // G], two values to a byte, the even k in its low half.

Packing takes elementwise operations and sums of a fixed order (exact.py): the same bytes on every device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast import ops
from owl_fast.quantization.exact import ordered_sum

LOWEST, HIGHEST = -8, 7
# Tried scales, as parts of the one that holds the group's largest weight; each is then improved once. They
# take the squared error of 32 normal numbers from 0.74 % (the largest alone) to 0.67 %, eighty of both signs
# and two steps to 0.66 %.
TRIED = (1.0, 0.93, 0.86, 0.79)
LARGEST_SCALE = 65504.0  # of fp16


def empty(rows: int, width: int, group: int) -> ops.Int4Weight:
    """Of this shape, on the default device."""
    q = torch.empty(rows, -(-width // 2), dtype=torch.uint8)
    return ops.Int4Weight(q, torch.empty(rows, -(-width // group), dtype=torch.float16), width, group)


def pack(weight: Tensor, group: int) -> ops.Int4Weight:
    """weight (N, K) of finite numbers -> for each group the scale with the least sum of squared errors found.

    From each tried scale one half-quadratic step: with the codes z as they are, <w, z> / <z, z> is the best
    scale; then the codes are taken anew.
    """
    groups = _grouped(weight, group)
    widest = _widest(groups)
    scale = torch.zeros_like(widest)
    least = torch.full_like(widest, torch.inf)
    for part in TRIED:
        tried = _rounded(widest * part)
        codes = _codes(groups, tried)
        norm = ordered_sum(codes.square()).clamp_(min=1)
        fitted = _rounded(ordered_sum(groups * codes) / norm)
        for candidate, its_codes in ((tried, codes), (fitted, _codes(groups, fitted))):
            error = _error(groups, its_codes, candidate)
            better = error < least
            scale, least = torch.where(better, candidate, scale), torch.where(better, error, least)
    return _packed(_codes(groups, scale), scale, weight.shape[-1])


def plain(weight: Tensor, group: int) -> ops.Int4Weight:
    """The largest weight of each group at -8, the others rounded: what pack is measured against."""
    groups = _grouped(weight, group)
    scale = _rounded(_widest(groups))
    return _packed(_codes(groups, scale), scale, weight.shape[-1])


def _grouped(weight: Tensor, group: int) -> Tensor:
    """(N, K) -> (N, groups, G) in float32; the last group is filled up with zeros."""
    width = weight.shape[-1]
    return F.pad(weight.float(), (0, -width % group)).unflatten(-1, (-1, group))


def _widest(groups: Tensor) -> Tensor:
    """(N, groups, 1): the scale, of either sign, at which the largest weight is -8 of it.

    Of a pair of largest weights w, -w the negative one counts.
    """
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    return torch.where(high > -low, high, low) / LOWEST


def _rounded(scale: Tensor) -> Tensor:
    """To fp16, in which scales are kept."""
    return scale.clamp(-LARGEST_SCALE, LARGEST_SCALE).half().float()


def _codes(groups: Tensor, scale: Tensor) -> Tensor:
    divisor = torch.where(scale == 0, 1.0, scale)
    return (groups / divisor).round_().clamp_(LOWEST, HIGHEST)


def _error(groups: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    # The product is exact: 4 bits times 11.
    return ordered_sum((codes * scale - groups).square_())


def _packed(codes: Tensor, scale: Tensor, width: int) -> ops.Int4Weight:
    values = (codes - LOWEST).to(torch.uint8).flatten(1)[:, :width]
    pairs = F.pad(values, (0, width % 2)).unflatten(1, (-1, 2))
    q = pairs[..., 0] | (pairs[..., 1] << 4)
    return ops.Int4Weight(q, scale[..., 0].half(), width, codes.shape[-1])
