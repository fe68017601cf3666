"""The part of a model that sees pictures, as one module: what other formats are made of.

N pictures, S side in pixels, P patches, E width of the tower, Q queries, C width of the language model.
"""

from __future__ import annotations

from torch import Tensor, nn

from owl_fast.models.owl import Owl


class PicturePart(nn.Module):
    """Pixels (N, 3, S, S), normalised -> features (N, 1 + P, E) of "vision", or the rows (N, Q + 1, C) that
    stand for the pictures in a prompt, of "vision+abstractor". float32 on both sides, whatever the weights.

    It shares the model's weights, which are dense (see quantization.whole.dequantize_). Models that know
    videos see pictures alone.
    """

    def __init__(self, model: Owl, part: str) -> None:
        super().__init__()
        self.image_size = model.config.vision.image_size
        self.vision_model = model.vision_model
        joined = part == "vision+abstractor"
        self.abstractor = model.abstractor if joined else None
        self.query_tokens = model.query_tokens if joined else None

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.vision_model(pixels)
        if self.abstractor is not None:
            features = self.abstractor(self.query_tokens, features)
        return features.float()
