"""LLaMA in a GGUF file: names, numbers and words as llama.cpp wants them, and weights in its blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from owl_fast.checkpoints.names import views
from owl_fast.config import LlamaConfig
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.export.vocabulary import USER_DEFINED, Piece
from owl_fast.models.llama import Llama

if TYPE_CHECKING:
    import gguf

ARCHITECTURE = "llama"
FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}
# Our module -> the file's; those of a layer stand behind its number.
MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
TURNED = ("attn_q", "attn_k")  # llama.cpp turns neighbouring channels, we the halves of a head
OUTER = ("token_embd.weight", "output.weight")  # which four bits would harm most


def check_package() -> None:
    """UnsupportedError unless what writing takes is installed."""
    if find_spec("gguf") is None:
        raise UnsupportedError("gguf: not installed; pip install '.[gguf]' in the checkout")


def file_name(name: str) -> str:
    """Of our language model's tensor of this name, in the file."""
    module, _, leaf = name.rpartition(".")
    if match := _LAYER.fullmatch(module):
        return f"blk.{match[1]}.{MODULES[match[2]]}.{leaf}"
    return f"{MODULES[module]}.{leaf}"


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Our names of the tensors, and their shapes, outputs first."""
    with torch.device("meta"):
        return {name: tuple(view.shape) for name, view in views(Llama(config)).items()}


def describe(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def add_words(writer: gguf.GGUFWriter, words: Sequence[Piece], config: LlamaConfig) -> None:
    """words: one for every row of the head. If some are taken whole, texts have to come with the space that
    SentencePiece puts in front: llama.cpp would put one behind each of these too."""
    # Pieces that are taken whole are looked for in the text as it comes, and printed as they are.
    shown = [w._replace(text=w.text.replace("▁", " ")) if w.kind == USER_DEFINED else w for w in words]
    texts, scores, kinds = zip(*shown, strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(USER_DEFINED not in kinds)


def plan(config: LlamaConfig, scheme: str) -> dict[str, Plan]:
    """How each tensor is written, by our names."""
    return {name: Plan.of(name, shape, scheme) for name, shape in shapes(config).items()}


class Plan(NamedTuple):
    """How a tensor is written. name: in the file."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType

    @classmethod
    def of(cls, ours: str, shape: tuple[int, ...], scheme: str) -> Plan:
        """scheme: of the file. Norms are float32; of q4_0 the outer tensors q8_0; rows that do not fill
        blocks float16."""
        import gguf

        name = file_name(ours)
        kind = gguf.GGMLQuantizationType[scheme.upper()]
        if len(shape) == 1:
            kind = gguf.GGMLQuantizationType.F32
        elif scheme == "q4_0" and name in OUTER:
            kind = gguf.GGMLQuantizationType.Q8_0
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = gguf.GGMLQuantizationType.F16
        return cls(name, shape, kind)

    @property
    def nbytes(self) -> int:
        import gguf

        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size

    def announce(self, writer: gguf.GGUFWriter) -> None:
        """Into the list of tensors in front of their numbers."""
        if len(self.shape) == 1 or self.kind.name in ("F32", "F16"):
            dtype = np.dtype(np.float16 if self.kind.name == "F16" else np.float32)
            writer.add_tensor_info(self.name, self.shape, dtype, self.nbytes)
        else:
            rows = (self.shape[0], self.nbytes // self.shape[0])
            writer.add_tensor_info(self.name, rows, np.dtype(np.uint8), self.nbytes, raw_dtype=self.kind)

    def data(self, weight: Tensor, config: LlamaConfig) -> NDArray[Any]:
        """The weight as its numbers stand in the file; CheckpointError for what its type cannot hold."""
        import gguf

        part = self.name.split(".")[-2]
        if part in TURNED:
            heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
            halves = weight.view(heads, 2, config.head_dim // 2, -1)
            weight = halves.transpose(1, 2).reshape(weight.shape)
        if self.kind == gguf.GGMLQuantizationType.BF16:
            return weight.bfloat16().contiguous().view(torch.int16).numpy().view(np.uint8)
        numbers = weight.float().contiguous().numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # what that makes is looked for
            data: NDArray[Any] = gguf.quantize(numbers, self.kind)
            back = data if data.dtype != np.uint8 else gguf.dequantize(data, self.kind)
        if not np.isfinite(back).all():
            raise CheckpointError(
                f"{self.name} holds numbers beyond {self.kind.name.lower()}; take bf16 or f32"
            )
        return data


def write_gguf(
    path: Path,
    config: LlamaConfig,
    scheme: str,
    read: Callable[[str], Tensor],
    words: Sequence[Piece],
    notes: Mapping[str, str],
    progress: Callable[[int, int], None],
) -> None:
    """The whole file. read(name): the language model's tensor by our name, asked one after the other.
    notes: texts to put into the head. progress(bytes done, bytes in all) is called after each tensor."""
    import gguf

    plans = plan(config, scheme)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    try:
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[scheme]])
        for key, text in notes.items():
            writer.add_string(key, text)
        describe(writer, config)
        add_words(writer, words, config)
        for tensor in plans.values():
            tensor.announce(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(tensor.nbytes for tensor in plans.values())
        for name, tensor in plans.items():
            writer.write_tensor_data(tensor.data(read(name), config))
            done += tensor.nbytes
            progress(done, total)
    finally:
        writer.close()
