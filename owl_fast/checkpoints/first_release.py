"""The first release's state dict (pretrained.pth, instruction_tuned.pth) and its config.json.

The weights are those of a CLIP tower with separate q, k and v projections, and an abstractor with one learned
key and value more. Only names and shapes differ from the later release's: the values are copied as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from owl_fast.checkpoints.layout import Layout, Place
from owl_fast.checkpoints.names import HF_NAMES, NameMap
from owl_fast.config import OwlConfig
from owl_fast.errors import UnsupportedError

# A name by which this release's vision tower is known.
MARK = "vision_model.embeddings.class_embedding"

_LAYER = r"(vision_model\.encoder\.layers\.\d+)"
NAMES: NameMap = {
    **HF_NAMES,
    # 0 .. patches, kept by the original as a buffer and never read.
    re.compile(r"vision_model\.embeddings\.position_ids"): None,
    re.compile(r"(vision_model\.embeddings)\.class_embedding"): r"\1.cls_token",
    re.compile(r"(vision_model\.embeddings)\.patch_embedding\.weight"): r"\1.patch_embed.weight",
    re.compile(r"vision_model\.(pre_layernorm\.\w+)"): r"vision_model.embeddings.\1",
    re.compile(_LAYER + r"\.layer_norm1\.(\w+)"): r"\1.input_layernorm.\2",
    re.compile(_LAYER + r"\.layer_norm2\.(\w+)"): r"\1.post_attention_layernorm.\2",
    re.compile(_LAYER + r"\.self_attn\.out_proj\.(\w+)"): r"\1.self_attn.dense.\2",
    re.compile(_LAYER + r"\.self_attn\.([qkv])_proj\.(\w+)"): r"\1.self_attn.query_key_value.\3[\2]",
}

# Parameters whose file tensors have fewer dimensions than ours.
FLATTER: dict[str, Callable[[Tensor], Tensor]] = {
    "vision_model.embeddings.cls_token": lambda view: view[0, 0],
    "vision_model.embeddings.position_embedding": lambda view: view[0],
    # The file's columns run over channel, row and column of the patch: a convolution's order.
    "vision_model.embeddings.patch_embed.weight": lambda view: view.flatten(1),
}


def _places(views: Mapping[str, Tensor], config: OwlConfig) -> dict[str, Place]:
    found: dict[str, Place] = {}
    heads = config.vision.num_attention_heads
    for name, view in views.items():
        if ".query_key_value." in name:
            # Rows are laid out [head][q | k | v][D].
            parts = view.view(heads, 3, -1, *view.shape[1:]).unbind(1)
            shape = (len(view) // 3, *view.shape[1:])
            found |= {f"{name}[{part}]": Place(rows, shape) for part, rows in zip("qkv", parts, strict=True)}
        else:
            flat = FLATTER[name](view) if name in FLATTER else view
            found[name] = Place(flat, tuple(flat.shape))
    return found


def _sections(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What counts of a config.json of this release, or of a part of one."""
    found = {key: raw[key] for key in ("num_query_tokens", "vision_config", "text_config") if key in raw}
    for key in ("abstractor_config", "visual_abstractor_config"):  # the first spelling is the older one
        if isinstance(section := raw.get(key), Mapping):
            # Written by the original and read by nothing: width and eps of the MLP stand in its code.
            unread = ("intermediate_size", "layer_norm_eps")
            found["visual_abstractor_config"] = {k: v for k, v in section.items() if k not in unread}
    vision = raw.get("vision_config")
    act = vision.get("hidden_act", "quick_gelu") if isinstance(vision, Mapping) else "quick_gelu"
    if act != "quick_gelu":
        raise UnsupportedError(
            f"config.json: vision_config.hidden_act is {act!r:.80}; this engine runs 'quick_gelu'"
        )
    return found


FIRST = Layout(
    release="the first release",
    model_type="mplug_owl",
    names=NAMES,
    places=_places,
    sections=_sections,
    # The released 7B files come without a config.json: heads and padding id stand in the release's code.
    defaults={
        "first_release": True,
        "vision_config": {"num_attention_heads": 8},
        "visual_abstractor_config": {"num_attention_heads": 8, "bias_kv": True},
        "text_config": {"pad_token_id": 2},
    },
)
