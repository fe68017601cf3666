"""The memory a model will take, before any of it is loaded, and the precision that fits a device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from owl_fast import machine, ops
from owl_fast.checkpoints.load import empty_model
from owl_fast.checkpoints.names import PACKED, views
from owl_fast.config import LANGUAGE_SCHEMES, VISION_SCHEMES, OwlConfig, Quantization
from owl_fast.engine.blocks import BLOCK_SIZE, cache_blocks
from owl_fast.engine.kv_cache import cache_dtype, position_bytes
from owl_fast.engine.onnx_vision import OnnxFile
from owl_fast.engine.pictures import PICTURE_CACHE_MB
from owl_fast.engine.reports import Memory
from owl_fast.errors import ParameterError, UnsupportedError

STEP_TOKENS = 2048  # rows of one step: longer prompts are computed in chunks beside the running answers
NONE, AUTO = "none", "auto"
QUANT, QUANT_VISION = (AUTO, NONE, *LANGUAGE_SCHEMES), (NONE, *VISION_SCHEMES)  # what a user may ask for
SPARE = 1.1  # free memory over the plan: what the plan cannot know, and what others begin to use


@dataclass(frozen=True)
class Setup:
    """What a model is to be run with, as Engine takes it; ParameterError where that makes no sense.

    dtype: of all that is not quantized. onnx: what pictures go through in the place of the model's own parts.
    """

    device: torch.device
    dtype: torch.dtype
    max_context: int
    max_batch: int
    kv_cache: str = "auto"
    cache_positions: int | None = None
    step_tokens: int = STEP_TOKENS
    picture_cache_mb: int = PICTURE_CACHE_MB
    speculation: int = 0
    exact: bool = False
    onnx: OnnxFile | None = None

    def __post_init__(self) -> None:
        positions = self.max_context if self.cache_positions is None else self.cache_positions
        for name, number, least in (
            ("max_context", self.max_context, 1),
            ("max_batch", self.max_batch, 1),
            ("step_tokens", self.step_tokens, 1),
            ("picture_cache_mb", self.picture_cache_mb, 0),
            ("speculation", self.speculation, 0),
            ("cache_positions", positions, 1),
        ):
            if not isinstance(number, int) or number < least:
                raise ParameterError(f"{name} is {number!r:.40}; wanted an integer of at least {least}")
        cache_dtype(self.kv_cache, self.dtype)

    def context(self, config: OwlConfig) -> int:
        """Positions of a prompt and its answer."""
        return min(self.max_context, config.llama.max_position_embeddings)

    def blocks(self, config: OwlConfig) -> int:
        """Of the cache; ParameterError if it cannot hold one context."""
        return cache_blocks(self.context(config), self.max_batch, self.cache_positions)

    def activations(self, config: OwlConfig) -> int:
        return activation_bytes(
            config,
            self.dtype,
            self.step_tokens,
            self.max_batch,
            self.context(config),
            ops.backend(self.device),
            max(self.max_batch, min(self.speculation, self.step_tokens)),
            self.exact and self.device.type != "cpu",
        )

    def memory(self, config: OwlConfig) -> Memory:
        """The plan for a model held as config.quantization says, without adapters."""
        kept_as = cache_dtype(self.kv_cache, self.dtype)
        return Memory(
            weights=weight_bytes(config, self.dtype, self.onnx),
            adapters=0,
            cache=self.blocks(config) * BLOCK_SIZE * position_bytes(config.llama, kept_as),
            pictures=self.picture_cache_mb * 2**20,
            activations=self.activations(config),
        )

    def fits(self, config: OwlConfig) -> bool:
        return self.memory(config).total * SPARE <= machine.free_memory(self.device)


def weight_bytes(config: OwlConfig, dtype: torch.dtype, onnx: OnnxFile | None = None) -> int:
    held = sum(
        view.nbytes if name.endswith(PACKED) else view.numel() * dtype.itemsize
        for name, view in views(empty_model(config)).items()
        if onnx is None or not name.startswith(onnx.modules)
    )
    return held if onnx is None else held + onnx.nbytes


def activation_bytes(
    config: OwlConfig,
    dtype: torch.dtype,
    step_tokens: int,
    max_batch: int,
    context: int,
    backend: ops.Backend,
    answers: int,
    exact: bool = False,
) -> int:
    """An estimate of what the largest step holds at its widest point, beside the weights and the cache.

    backend: of the device. For torch each product writes its quantized weight out in dtype before; libowl_cpu
    holds gate | up in float32. answers: rows whose logits are wanted at once. exact: on a GPU.
    """
    llama, vision, width = config.llama, config.vision, dtype.itemsize
    held_as = config.quantization if backend == "torch" else None
    language, tower = (held_as.scheme, held_as.vision) if held_as is not None else (None, None)
    rows = min(step_tokens, max_batch * context)
    kv = llama.num_key_value_heads * llama.head_dim
    # Held all the while: the embedded rows, the layer's input, one normed copy. Then in turn: the residual,
    # gate | up and the factors of SwiGLU; or q | k | v, q and k rotated, the answer and its parts, and the
    # keys and values of one sequence.
    held = 3 * llama.hidden_size
    mlp = rows * (held + llama.hidden_size + 4 * llama.intermediate_size) * width
    if backend == "libowl_cpu":
        gate_up = 2 * llama.intermediate_size * 4
        mlp = rows * ((held + 2 * llama.hidden_size + llama.intermediate_size) * width + gate_up)
    attention = rows * (held + 4 * llama.hidden_size + 3 * kv) + 2 * context * kv
    if exact:  # products of any number of rows are summed in parts, q | k | v in two of float32
        attention += rows * 2 * (llama.hidden_size + 2 * kv) * 4 // width
    patches = vision.num_patches + 1
    picture = patches * (2 * vision.hidden_size + 3 * vision.intermediate_size)
    # As they come, in float32, as log-probs, and whether they are finite.
    logits = answers * llama.vocab_size * (width + 4 + 4 + 1)
    # A product holds its input and what it gives beside the weight.
    gate_up = 2 * llama.intermediate_size * llama.hidden_size + rows * (held + 2 * llama.intermediate_size)
    head = llama.vocab_size * llama.hidden_size + answers * llama.vocab_size
    fc1 = vision.hidden_size * vision.intermediate_size + picture
    written = max(max(gate_up, head) if language else 0, fc1 if tower else 0)
    return max(mlp, max(attention, picture, written) * width, logits)


def choose(config: OwlConfig, setup: Setup, quant: str | None, quant_vision: str | None) -> OwlConfig:
    """config with the quantization asked for: a scheme, "none", or "auto", the largest precision that fits.

    config: as the files hold the weights. None leaves that to them, and files that are quantized have decided
    already. ParameterError for other words, UnsupportedError if the files hold something else, or nothing
    fits.
    """
    for name, word, known in (("quant", quant, QUANT), ("quant_vision", quant_vision, QUANT_VISION)):
        if word is not None and word not in known:
            raise ParameterError(f"{name} {word!r:.40}; wanted one of {', '.join(known)}")
    held = config.quantization
    if held is not None:
        _check_held(held, quant, quant_vision)
        candidates = [config]
    else:
        vision = None if quant_vision == NONE else quant_vision
        schemes = (None, *LANGUAGE_SCHEMES) if quant == AUTO else (None if quant == NONE else quant,)
        candidates = [_with(config, scheme, vision) for scheme in schemes]
    if quant != AUTO:
        return candidates[0]
    for candidate in candidates:
        if setup.fits(candidate):
            return candidate
    raise UnsupportedError(_nothing_fits(candidates[-1], setup))


def _with(config: OwlConfig, scheme: str | None, vision: str | None) -> OwlConfig:
    return replace(config, quantization=Quantization(scheme, vision) if scheme or vision else None)


def _check_held(held: Quantization, quant: str | None, quant_vision: str | None) -> None:
    for asked, is_held in ((quant, held.scheme), (quant_vision, held.vision)):
        if asked not in (None, AUTO, is_held or NONE):
            raise UnsupportedError(
                f"the model's files hold its weights as {held}, and {asked} is asked for; "
                "quantize the original model"
            )


def _nothing_fits(config: OwlConfig, setup: Setup) -> str:
    """What was tried last, and what would fit."""
    memory, free = setup.memory(config), machine.free_memory(setup.device)
    context = setup.context(config)
    held = f"as {config.quantization}" if config.quantization else "as it is"
    said = (
        f"{memory.total / 2**30:.2f} GiB for the model {held} with max_context {context} and max_batch "
        f"{setup.max_batch}, {free / 2**30:.2f} GiB free on {machine.device_name(setup.device)}"
    )
    ways: list[str] = []
    if setup.kv_cache != "int8" and replace(setup, kv_cache="int8").fits(config):
        ways.append('kv_cache="int8"')
    while context > 256 and not any("max_context" in way for way in ways):
        context //= 2
        if replace(setup, max_context=context).fits(config):
            ways.append(f"max_context={context}")
    if setup.max_batch > 1 and replace(setup, max_batch=1).fits(config):
        ways.append("max_batch=1")
    if setup.device.type != "cpu" and replace(setup, device=torch.device("cpu")).fits(config):
        ways.append('device="cpu"')
    rest = f"what would fit: {', '.join(ways)}" if ways else "it needs a larger machine"
    return f"nothing fits: {said}; {rest}"
