"""How sure a share of so many answers is."""

from __future__ import annotations

import math

Z95 = 1.959964  # 95 % of a normal distribution lie within so many deviations


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson (1927): fit for few answers, and for shares near 0 and 1."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = right / total, Z95 * Z95
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
