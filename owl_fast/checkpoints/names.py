"""How the names in checkpoint files become the model's, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping

NameMap = Mapping[re.Pattern[str], str | None]

# Full-match pattern -> the model's name (a replacement as in re.sub), or None: knowingly dropped.
# A name that no pattern matches is the model's name already.
HF_NAMES: NameMap = {
    # Rotary frequencies: computed exactly from rope_theta; the file may hold them in half precision.
    re.compile(r"language_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"): None,
}


def map_name(names: NameMap, name: str) -> str | None:
    """The model's name of a file's tensor, or None if it is dropped on purpose."""
    for pattern, replacement in names.items():
        if match := pattern.fullmatch(name):
            return None if replacement is None else match.expand(replacement)
    return name
