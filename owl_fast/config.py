"""Model configuration: frozen dataclasses read from a checkpoint's config.json.

Field names are the checkpoint's own. A value the code cannot honour is an UnsupportedError,
a value that makes no sense is a CheckpointError; nothing is silently replaced.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.files import read_json

# Scheme of linear weights -> what may be held in it (docs/quantization.md).
LANGUAGE_SCHEMES, VISION_SCHEMES = ("int8", "int4"), ("int8",)
INT4_GROUP = 32  # inputs that share a scale; 64 and 128 cost more accuracy than plain rounding does at 32
# Bounds checked before anything is allocated: a hostile config fails in milliseconds.
MAX_LAYERS, MAX_WIDTH, MAX_VOCAB, MAX_QUERIES, MAX_IMAGE_SIDE = 512, 65_536, 1_048_576, 4_096, 4_096


@dataclass(frozen=True)
class VisionConfig:
    """ViT. Widths in features, image_size and patch_size in pixels."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class AbstractorConfig:
    """Visual abstractor: cross-attention layers that turn patch features into num_query_tokens rows."""

    hidden_size: int = 1024
    encoder_hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-6
    bias_kv: bool = False  # one more key and value, learned (first release)


@dataclass(frozen=True)
class LlamaConfig:
    """LLaMA language model."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Quantization:
    """In which scheme linear weights are held: of the language model with its head, and of the vision tower.

    None: as they are. group: inputs that share a scale, of int4. base_sha256: of the weights they were made
    from (checkpoints.weights_sha256), where that is known.
    """

    scheme: str | None = None
    vision: str | None = None
    group: int = INT4_GROUP
    base_sha256: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        group = f"-g{self.group}" if self.scheme == "int4" and self.group != INT4_GROUP else ""
        parts = [self.scheme and self.scheme + group, self.vision and f"vision {self.vision}"]
        return ", ".join(part for part in parts if part)

    @classmethod
    def from_text(cls, text: str) -> Quantization:
        """What str() has written, as adapters say it; CheckpointError for anything else."""
        parts = dict.fromkeys(("scheme", "vision"), "") | {
            "vision" if part.startswith("vision ") else "scheme": part.removeprefix("vision ")
            for part in text.split(", ")
        }
        scheme, _, group = parts["scheme"].partition("-g")
        found = cls(scheme or None, parts["vision"] or None, int(group) if group.isdecimal() else INT4_GROUP)
        if not text or str(found) != text:
            raise CheckpointError(f"{text!r:.60} is no quantization; wanted such as {cls('int4', 'int8')}")
        found.validate()
        return found

    def validate(self) -> None:
        for name, value, known in (
            ("scheme", self.scheme, LANGUAGE_SCHEMES),
            ("vision", self.vision, VISION_SCHEMES),
        ):
            if value is not None and value not in known:
                raise UnsupportedError(
                    f"quantization {name} {value!r:.40}; this engine runs {', '.join(known)}"
                )
        if self.group not in range(2, MAX_WIDTH + 1, 2):
            raise CheckpointError(f"quantization group {self.group}: wanted an even number in 2..{MAX_WIDTH}")


@dataclass(frozen=True)
class OwlConfig:
    """The three parts and the number of query tokens that join them.

    quantization: how the weights are held, None for as trained.
    first_release: text and pictures are prepared as the first release did; video: the modules and the
    picture preparation of the video release (docs/checkpoints.md).
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    abstractor: AbstractorConfig = field(default_factory=AbstractorConfig)
    llama: LlamaConfig = field(default_factory=LlamaConfig)
    num_query_tokens: int = 64
    first_release: bool = False
    video: bool = False
    quantization: Quantization | None = None

    @property
    def image_rows(self) -> int:
        """Language-model positions one picture takes: the queries and the learned end row (vit_eos)."""
        return self.num_query_tokens + 1

    @classmethod
    def mplug_owl_7b(cls) -> OwlConfig:
        """Sizes of the released 7B checkpoints (7.123e9 parameters)."""
        return cls(abstractor=AbstractorConfig(intermediate_size=2816))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> OwlConfig:
        """Build from the parsed config.json; fields of other libraries are ignored, bad values are errors."""
        _check_supported(raw)
        llama_raw = _section(raw, "text_config")
        # Files of LLaMA's first generation do not carry the grouped-query field.
        heads = llama_raw.get("num_attention_heads", LlamaConfig.num_attention_heads)
        llama_raw = {"num_key_value_heads": heads, **{k: v for k, v in llama_raw.items() if v is not None}}
        config = cls(
            vision=_read(VisionConfig, _section(raw, "vision_config"), "vision_config"),
            abstractor=_read(
                AbstractorConfig, _section(raw, "visual_abstractor_config"), "visual_abstractor_config"
            ),
            llama=_read(LlamaConfig, llama_raw, "text_config"),
            num_query_tokens=_typed(raw.get("num_query_tokens", 64), int, "num_query_tokens"),
            first_release=_typed(raw.get("first_release", False), bool, "first_release"),
            video=_typed(raw.get("video", False), bool, "video"),
            quantization=_read_quantization(raw),
        )
        config.validate()
        return config

    @classmethod
    def from_file(cls, path: str | Path) -> OwlConfig:
        """Read config.json; CheckpointError names the file when it is missing or not a JSON object."""
        return cls.from_dict(read_json(path))

    def to_dict(self) -> dict[str, Any]:
        """The config.json of a folder in Hugging Face layout."""
        quantization = {} if self.quantization is None else {"quantization": asdict(self.quantization)}
        return {
            "model_type": "mplug-owl",
            "architectures": ["MplugOwlForConditionalGeneration"],
            "num_query_tokens": self.num_query_tokens,
            "first_release": self.first_release,
            "video": self.video,
            "tie_word_embeddings": False,
            "use_decoder_only_language_model": True,
            "vision_config": {"model_type": "mplug_owl_vision_model", **asdict(self.vision)},
            "visual_abstractor_config": {
                "model_type": "mplug_owl_visual_abstract",
                **asdict(self.abstractor),
            },
            "text_config": {"model_type": "llama", "hidden_act": "silu", **asdict(self.llama)},
            **quantization,
        }

    def with_context(self, max_position_embeddings: int) -> OwlConfig:
        return replace(self, llama=replace(self.llama, max_position_embeddings=max_position_embeddings))

    def validate(self) -> None:
        """Raise CheckpointError unless the sizes are sane and fit together."""
        v, a, t = self.vision, self.abstractor, self.llama
        if self.quantization is not None:
            self.quantization.validate()
        for name, part in (("vision_config", v), ("visual_abstractor_config", a), ("text_config", t)):
            _bounds(name, part)
        if not 1 <= self.num_query_tokens <= MAX_QUERIES:
            raise CheckpointError(f"num_query_tokens {self.num_query_tokens}: wanted 1..{MAX_QUERIES}")
        if not v.hidden_size == a.hidden_size == a.encoder_hidden_size:
            raise CheckpointError(
                f"vision hidden_size {v.hidden_size}, abstractor hidden_size {a.hidden_size} and "
                f"encoder_hidden_size {a.encoder_hidden_size} must be equal: queries and image features "
                "are concatenated"
            )
        if t.head_dim % 2:
            raise CheckpointError(f"text_config head width {t.head_dim} is odd; rotary embedding needs pairs")
        if t.num_attention_heads % t.num_key_value_heads:
            raise CheckpointError(
                f"text_config num_attention_heads {t.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {t.num_key_value_heads}"
            )
        if v.patch_size > v.image_size:
            raise CheckpointError(f"patch_size {v.patch_size} exceeds image_size {v.image_size}")


Part = TypeVar("Part", VisionConfig, AbstractorConfig, LlamaConfig, Quantization)


def _section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    section = raw.get(name, {})
    if not isinstance(section, dict):
        raise CheckpointError(f"config.json: {name} must be an object, got {type(section).__name__}")
    return section


def _typed(value: Any, kind: type, where: str) -> Any:
    ok = isinstance(value, (int, float) if kind is float else kind)
    try:
        if ok and isinstance(value, bool) == (kind is bool):
            return kind(value)
    except OverflowError:  # an integer beyond every float
        pass
    raise CheckpointError(f"config.json: {where} must be {kind.__name__}, got {value!r:.80}")


def _read_quantization(raw: dict[str, Any]) -> Quantization | None:
    held = _read(Quantization, _section(raw, "quantization"), "quantization")
    return held if held.scheme or held.vision else None


def _read(part: type[Part], raw: dict[str, Any], section: str) -> Part:
    """Take the fields the dataclass knows; a null means the default, as in the original."""
    kinds = {"int": int, "float": float, "bool": bool, "str | None": str}
    known = {
        f.name: _typed(raw[f.name], kinds[str(f.type)], f"{section}.{f.name}")
        for f in fields(part)
        if raw.get(f.name) is not None
    }
    return part(**known)


def _bounds(section: str, part: VisionConfig | AbstractorConfig | LlamaConfig) -> None:
    limits = {
        "num_hidden_layers": MAX_LAYERS,
        "vocab_size": MAX_VOCAB,
        "image_size": MAX_IMAGE_SIDE,
        "max_position_embeddings": 1 << 24,
    }
    for name, value in asdict(part).items():
        low, high = (0, MAX_VOCAB) if name.endswith("_token_id") else (1, limits.get(name, MAX_WIDTH))
        if isinstance(value, int) and not isinstance(value, bool) and not low <= value <= high:
            raise CheckpointError(f"config.json: {section}.{name} = {value}: wanted {low}..{high}")
        if isinstance(value, float) and not 0.0 <= value < 1e9:
            raise CheckpointError(f"config.json: {section}.{name} = {value}: wanted a finite number >= 0")
    if part.hidden_size % part.num_attention_heads:
        raise CheckpointError(
            f"config.json: {section}.hidden_size {part.hidden_size} is not a multiple of "
            f"num_attention_heads {part.num_attention_heads}"
        )


def _check_supported(raw: dict[str, Any]) -> None:
    """Refuse models whose mathematics differ from what models/ computes."""
    text = _section(raw, "text_config")
    wanted = {
        "model_type": (raw, "mplug-owl"),
        "text_config.model_type": (text, "llama"),
        "text_config.hidden_act": (text, "silu"),
    }
    for name, (section, value) in wanted.items():
        came = section.get(name.rsplit(".", 1)[-1], value)
        if came != value:
            raise UnsupportedError(f"config.json: {name} is {came!r:.80}; this engine runs {value!r}")
    for name in ("rope_scaling", "attention_bias"):
        if text.get(name):
            raise UnsupportedError(f"config.json: text_config.{name} is set; only plain LLaMA-1 is supported")
    if raw.get("quantization_config"):
        raise UnsupportedError(
            "config.json: quantization_config is set: weights quantized by another library; take the "
            "original ones and quantize them here (python -m owl_fast.quantize)"
        )
    if raw.get("tie_word_embeddings"):
        raise UnsupportedError("config.json: tie_word_embeddings is true; mPLUG-Owl has a separate head")
