"""The vision tower: a pre-norm ViT (mPLUG-Owl, arXiv 2304.14178, section 3.1; weights from CLIP ViT-L/14).

N pictures, S side in pixels, P patches, L = 1 + P rows (the class row first), E width, H heads, D = E / H.
The video release's tower also takes videos: N pictures are then the frames of N / T videos, T each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_fast import ops
from owl_fast.config import VisionConfig
from owl_fast.models.layers import LayerNorm, Linear
from owl_fast.models.recompute import Layer, run
from owl_fast.models.temporal import LocalTemporal


class VisionEmbeddings(nn.Module):
    """Patches, class row and learned positions. Pixels may come from anywhere in any dtype."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_size = patch
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + config.num_patches, width))
        self.patch_embed = nn.Module()  # holds the weight under the checkpoint's name
        self.patch_embed.weight = nn.Parameter(torch.empty(width, 3, patch, patch))
        self.pre_layernorm = LayerNorm(width, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        weight = self.patch_embed.get_parameter("weight")
        patches = F.conv2d(pixels.to(weight), weight, stride=self.patch_size)  # (N, E, S/p, S/p)
        rows = patches.flatten(2).transpose(1, 2)  # (N, P, E)
        cls = self.cls_token.expand(rows.shape[0], -1, -1)
        return self.pre_layernorm(torch.cat((cls, rows), dim=1) + self.position_embedding)


class VisionAttention(nn.Module):
    """Self-attention; the fused weight's rows are laid out [head][q | k | v][D]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query_key_value = Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        qkv = self.query_key_value(x).unflatten(-1, (self.num_heads, 3, -1))  # (N, L, H, 3, D)
        return self.dense(ops.dense_attention(*qkv.unbind(3)).flatten(2), residual=residual)


class VisionMlp(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.fc2(self.fc1(x, activation="quick_gelu"), residual=residual)


class VisionLayer(Layer):
    def __init__(self, config: VisionConfig, video: bool) -> None:
        super().__init__()
        self.temporal = LocalTemporal(config.hidden_size) if video else None
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = VisionMlp(config)

    def forward(self, x: Tensor, frames: int | None = None) -> Tensor:
        if frames is not None and self.temporal is not None:
            x = x + self.temporal(x, frames)
        x = self.self_attn(self.input_layernorm(x), residual=x)
        return self.mlp(self.post_attention_layernorm(x), residual=x)


class VisionEncoder(nn.Module):
    def __init__(self, config: VisionConfig, video: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config, video) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, frames: int | None = None) -> Tensor:
        for layer in self.layers:
            x = run(layer, x, frames)
        return x


class VisionTower(nn.Module):
    """Pixels (N, 3, S, S), normalised -> features (N, 1 + P, E), the class row included.

    frames: T, when the pictures are frames of videos; a video of one frame is not the same as a picture.
    """

    def __init__(self, config: VisionConfig, video: bool = False) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config, video)
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor, frames: int | None = None) -> Tensor:
        return self.post_layernorm(self.encoder(self.embeddings(pixels), frames))
