"""mPLUG-Owl: vision tower -> visual abstractor -> LLaMA (arXiv 2304.14178), the three joined.

n pictures or videos, T frames of a video, Q queries, N packed rows, C hidden width of the language model,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from owl_fast.config import OwlConfig, Quantization
from owl_fast.models.abstractor import Abstractor
from owl_fast.models.batch import PackedBatch
from owl_fast.models.layers import Linear
from owl_fast.models.llama import Llama
from owl_fast.models.vision import VisionTower
from owl_fast.quantization import int4, int8


class Owl(nn.Module):
    """Parameter names are the checkpoint's, apart from the fused ones of models/fusion.py.

    The constructor allocates and does not initialise: fill it from a checkpoint, or with init_weights.
    """

    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.config = config
        self.query_tokens = nn.Parameter(
            torch.empty(1, config.num_query_tokens, config.abstractor.hidden_size)
        )
        self.temporal_query_tokens = (
            nn.Parameter(torch.empty_like(self.query_tokens)) if config.video else None
        )
        self.vision_model = VisionTower(config.vision, config.video)
        self.abstractor = Abstractor(config.abstractor, config.llama.hidden_size, config.video)
        self.language_model = Llama(config.llama)
        if config.quantization is not None:
            for linear, scheme in self.quantized_slots(config.quantization):
                rows, width = linear.weight.shape
                group = config.quantization.group
                linear.put(int4.empty(rows, width, group) if scheme == "int4" else int8.empty(rows, width))

    def quantized_slots(self, quantization: Quantization) -> Iterator[tuple[Linear, str]]:
        """Linear layers whose weights it changes, and to which scheme. The embeddings are none; the
        abstractor stays as it is, because it trains in stage 2 and adapters replace it."""
        for part, scheme in (
            (self.language_model, quantization.scheme),
            (self.vision_model, quantization.vision),
        ):
            if scheme is not None:
                yield from ((m, scheme) for m in part.modules() if isinstance(m, Linear))

    @property
    def dtype(self) -> torch.dtype:
        return self.query_tokens.dtype

    @property
    def device(self) -> torch.device:
        return self.query_tokens.device

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels (n, 3, S, S), normalised -> (n, Q + 1, C): the rows that stand for each picture."""
        return self.abstract(self.vision_model(pixels))

    def encode_videos(self, frames: Tensor) -> Tensor:
        """frames (n, T, 3, S, S), normalised -> (n, Q + 1, C): the rows that stand for each video.

        Only models with config.video take videos.
        """
        assert self.temporal_query_tokens is not None
        features = self.vision_model(frames.flatten(0, 1), frames.shape[1])  # (n * T, 1 + P, E)
        queries = torch.cat((self.query_tokens, self.temporal_query_tokens), dim=1)
        return self.abstractor.forward_videos(queries, features.view(len(frames), -1, features.shape[-1]))

    def abstract(self, features: Tensor) -> Tensor:
        """Vision features (n, 1 + P, E) -> (n, Q + 1, C)."""
        return self.abstractor(self.query_tokens, features)

    def embed(self, batch: PackedBatch) -> Tensor:
        """Token vectors with the picture rows put in their places: (N, C)."""
        x = self.language_model.model.embed_tokens(batch.token_ids)
        if batch.visual_index is None or batch.visual_embeds is None:
            return x
        return x.index_copy(0, batch.visual_index, batch.visual_embeds.to(x.dtype))

    def forward(self, batch: PackedBatch) -> Tensor:
        """Hidden rows (N, C) after the final norm; keys and values go to batch.cache if there is one."""
        return self.language_model.model(self.embed(batch), batch)

    def logits(self, hidden: Tensor, owner: Tensor | None = None) -> Tensor:
        """hidden (M, C) -> (M, V) in the model's dtype; owner (M,): as the batch's."""
        return self.language_model.lm_head(hidden, owner=owner)
