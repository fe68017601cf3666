"""int4 in groups: W[n, k] = (q[n, k] - 8) scale[n, k // G], two values to a byte, the even k in its low half.

Packing takes elementwise operations and sums of a fixed order (ordered_sum.py): the same bytes on every
device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast import ops
from owl_fast.quantization.ordered_sum import ordered_sum

LOWEST, HIGHEST = -8, 7
# Tried scales, as parts of the one that holds the group's largest weight; each is then improved once. They
# take the squared error of 32 normal numbers from 0.74 % (the largest alone) to 0.67 %, eighty of both signs
# and two steps to 0.66 %.
TRIED = (1.0, 0.93, 0.86, 0.79)
LARGEST_SCALE = 65504.0  # of fp16
SHORT = 2.0**-14, 1.9375  # from the smallest normal number to where rounding would reach 2


def empty(rows: int, width: int, group: int) -> ops.Int4Weight:
    """Of this shape, on the default device."""
    q = torch.empty(rows, -(-width // 2), dtype=torch.uint8)
    return ops.Int4Weight(q, torch.empty(rows, -(-width // group), dtype=torch.float16), width, group)


def pack(weight: Tensor, group: int) -> ops.Int4Weight:
    """weight (N, K) of finite numbers -> for each group the scale with the least sum of squared errors found.

    From each tried scale one half-quadratic step: with the codes z as they are, <w, z> / <z, z> is the best
    scale; then the codes are taken anew. Scales are short (see short_scales): a CPU reads a byte for each.
    """
    groups = _grouped(weight, group)
    widest = _widest(groups)
    scale = short_scales(widest)
    least = _error(groups, scale)
    for part in TRIED:
        codes = _codes(groups, _rounded(widest * part))
        fitted = ordered_sum(groups * codes) / ordered_sum(codes.square_()).clamp_(min=1)
        candidate = short_scales(fitted)
        error = _error(groups, candidate)
        better = error < least
        scale, least = torch.where(better, candidate, scale), torch.where(better, error, least)
    return _packed(groups, scale, weight)


def plain(weight: Tensor, group: int) -> ops.Int4Weight:
    """The largest weight of each group at -8, the others rounded: what pack is measured against."""
    groups = _grouped(weight, group)
    return _packed(groups, _rounded(_widest(groups)), weight)


def _grouped(weight: Tensor, group: int) -> Tensor:
    """(N, K) -> (G, N groups) in float32: what is done to all groups runs over neighbours in memory. The last
    group of a row is filled up with zeros."""
    padded = F.pad(weight.float(), (0, -weight.shape[1] % group))
    return padded.view(-1, group).T.contiguous()


def _widest(groups: Tensor) -> Tensor:
    """(N groups,): the scale, of either sign, at which the largest weight is -8 of it.

    Of a pair of largest weights w, -w the negative one counts.
    """
    low, high = groups.amin(0), groups.amax(0)
    return torch.where(high > -low, high, low) / LOWEST


def _rounded(scale: Tensor) -> Tensor:
    """To fp16, in which scales are kept."""
    return scale.clamp(-LARGEST_SCALE, LARGEST_SCALE).half().float()


def short_scales(scale: Tensor) -> Tensor:
    """To 3 bits of mantissa, as far as 4 bits of exponent reach: the others are rounded to fp16 alone."""
    half = scale.clamp(-LARGEST_SCALE, LARGEST_SCALE).half()
    size = half.abs()
    short = ((half.view(torch.int16) + 64) & -128).view(torch.float16)
    return torch.where((size >= SHORT[0]) & (size < SHORT[1]), short, half).float()


def _codes(groups: Tensor, scale: Tensor) -> Tensor:
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return (groups * inverse).round_().clamp_(LOWEST, HIGHEST)


def _error(groups: Tensor, scale: Tensor) -> Tensor:
    # The product with a code is exact: 4 bits times 11.
    return ordered_sum(_codes(groups, scale).mul_(scale).sub_(groups).square_())


def _packed(groups: Tensor, scale: Tensor, weight: Tensor) -> ops.Int4Weight:
    """The canonical form: codes at these scales, back in the order of weight (N, K)."""
    rows, width = weight.shape
    values = (_codes(groups, scale) - LOWEST).to(torch.uint8).T.reshape(rows, -1)
    pairs = F.pad(values[:, :width], (0, width % 2)).reshape(rows, -1, 2)
    q = (pairs[..., 0] | (pairs[..., 1] << 4)).contiguous()
    return ops.Int4Weight(q, scale.half().view(rows, -1), width, len(groups))
