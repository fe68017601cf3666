"""One contender of the train case in a process of its own, whose memory is then its alone: a step is trained
for every line on stdin, and its seconds come back as a line; "end" gives the memory as JSON.

Both stages are what they are to the language model, the part that both sides have. Stage 1: all of it frozen,
gradients go through it to the embedded rows. Stage 2: LoRA of rank 8 on q_proj and v_proj, dropout 0.05.
B samples of L rows each, the last labelled ones of each learned.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.memory import MemoryPeak, release_to_system, resident_bytes
from owl_fast.config import AbstractorConfig, LlamaConfig, OwlConfig, Quantization, VisionConfig
from owl_fast.lora import LoraConfig
from owl_fast.models.recompute import Level
from owl_fast.training import STAGE1, stage2
from owl_fast.training.memory_plan import MicroBatch, Planner, Setup
from owl_fast.training.stages import Stage

PREFIX = 35  # tokens: about what a conversation begins with before its first picture
WARM = 2  # steps before memory and time count
LEARNING_RATE = 2e-5
LORA = LoraConfig(r=8, alpha=32, dropout=0.05)


@dataclass(frozen=True)
class Work:
    """stage: 1 or 2. contender: a name in CONTENDERS."""

    contender: str
    stage: int
    device: str
    llama: LlamaConfig
    samples: int
    length: int
    labelled: int

    @property
    def flops(self) -> float:
        """Of the products alone: forward and the gradient of their inputs; the head on learned rows."""
        llama, rows = self.llama, self.samples * self.length
        width, keys = llama.hidden_size, llama.num_key_value_heads * llama.head_dim
        layer = 2 * width * width + 2 * width * keys + 3 * width * llama.intermediate_size
        head = llama.vocab_size * width
        # Causal: half the pairs. Forward has two products of that size, backward four.
        attention = 3 * llama.num_hidden_layers * rows * (self.length + 1) * width
        linear = rows * llama.num_hidden_layers * layer + self.samples * self.labelled * head
        return 4.0 * linear + 2.0 * attention


@dataclass(frozen=True)
class Own:
    """How owl_fast holds frozen weights, None for bf16, and how much its layers keep.

    shared: all samples begin with the same tokens, as those of a template do (`PREFIX` of them).
    """

    scheme: str | None = None
    level: Level = "whole"
    shared: bool = False

    def config(self, work: Work) -> OwlConfig:
        """The language model, with as little as possible in front of it."""
        quantization = None if self.scheme is None else Quantization(self.scheme)
        front = VisionConfig(64, 64, 1, 1), AbstractorConfig(64, 64, 64, 1, 1)
        return OwlConfig(*front, work.llama, quantization=quantization)

    def stage(self, work: Work) -> Stage:
        return stage2(LORA, train_abstractor=False) if work.stage == 2 else STAGE1

    def least(self, work: Work) -> int:
        """Bytes that are held however short the samples: weights, gradients, states of the optimizer."""
        planner = self._planner(work)
        return planner.frozen + 8 * planner.trained + planner.states

    def planned(self, work: Work) -> int:
        """Bytes that the command's plan gives for these steps."""
        planner = self._planner(work)
        rows, labelled = work.samples * work.length, work.samples * work.labelled
        rows -= (work.samples - 1) * PREFIX * self.shared
        levels = planner.levels(lambda part: self.level)
        return planner.plan(MicroBatch(work.samples, rows, labelled, 0), levels).total

    def _planner(self, work: Work) -> Planner:
        return Planner(Setup(self.config(work), self.stage(work), torch.device(work.device)))


def batch(work: Work) -> tuple[Tensor, Tensor]:
    """Token ids and labels (B, L), -100 where nothing is learned."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, work.llama.vocab_size, (work.samples, work.length), generator=generator)
    labels = ids.clone()
    labels[:, : work.length - work.labelled] = -100
    return ids.to(work.device), labels.to(work.device)


def ours(work: Work, own: Own) -> Callable[[], Any]:
    from benchmarks.models import made
    from owl_fast import ops
    from owl_fast.models.recompute import Layer
    from owl_fast.training.packing import EncodedSample, pack

    config, device = own.config(work), torch.device(work.device)
    model = made(config, torch.bfloat16, device, config.quantization, laid_out=False)
    trained = own.stage(work).apply(model) if work.stage == 2 else {}
    for layer in model.modules():
        if isinstance(layer, Layer):
            layer.level = own.level
    language = model.language_model.train()
    ids, labels = batch(work)
    if own.shared and work.length > PREFIX:
        ids[:, :PREFIX] = ids[0, :PREFIX]
    samples = [EncodedSample(*pair) for pair in zip(ids.tolist(), labels.tolist(), strict=True)]
    packed = pack(samples, config.image_rows).to(device)
    embedded = language.model.embed_tokens(packed.packed.token_ids).requires_grad_(work.stage == 1)
    optimizer = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE) if trained else None

    def step() -> Tensor:
        with torch.autocast(work.device, torch.bfloat16):
            hidden = language.model(embedded, packed.packed)[packed.rows]
            head = language.lm_head.operand
            loss = ops.linear_cross_entropy(hidden, head, packed.targets) / packed.labelled
        return _finish(loss, optimizer, embedded)

    return step


def theirs(work: Work, checkpointing: bool) -> Callable[[], Any]:
    """transformers' LLaMA with SDPA; in stage 2 peft's adapters."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        name: value
        for name, value in asdict(work.llama).items()
        if name not in ("rope_theta", "pad_token_id")
    }
    config = LlamaConfig(**sizes, attn_implementation="sdpa", use_cache=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(work.device):
        model: Any = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    model.requires_grad_(False)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids, labels = batch(work)
    optimizer = None
    embedded = model.get_input_embeddings()(ids).requires_grad_(work.stage == 1)
    if work.stage == 2:
        if checkpointing:
            model.enable_input_require_grads()
        adapters = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(model, adapters)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    model.train()

    def step() -> Tensor:
        given = {"inputs_embeds": embedded} if work.stage == 1 else {"input_ids": ids}
        with torch.autocast(work.device, torch.bfloat16):
            loss = model(**given, labels=labels).loss
        return _finish(loss, optimizer, embedded)

    return step


def _finish(loss: Tensor, optimizer: torch.optim.Optimizer | None, embedded: Tensor) -> Tensor:
    torch.autograd.backward(loss)
    embedded.grad = None
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


OURS = {
    "owl_fast": Own("int4"),
    "owl_fast, a shared prefix": Own("int4", shared=True),
    "owl_fast int4, inputs kept": Own("int4", "input"),
    "owl_fast int8": Own("int8"),
    "owl_fast bf16": Own(),
    "owl_fast bf16, inputs kept": Own(level="input"),
}
PEERS = {"transformers + peft": False, "transformers + peft, checkpointing": True}
FEW = "owl_fast", *PEERS  # where time is short
CONTENDERS: dict[str, Callable[[Work], Callable[[], Any]]] = {
    **{name: partial(ours, own=own) for name, own in OURS.items()},
    **{name: partial(theirs, checkpointing=checkpointing) for name, checkpointing in PEERS.items()},
}


def main() -> None:
    given = json.loads(sys.argv[1])
    work = Work(**{**given, "llama": LlamaConfig(**given["llama"])})
    gpu = work.device == "cuda"
    torch.manual_seed(0)
    CONTENDERS[work.contender](tiny(work))()  # modules, threads and libraries are there
    release_to_system()
    before = resident_bytes()
    step = CONTENDERS[work.contender](work)
    for _ in range(WARM):
        step()
    release_to_system()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    with MemoryPeak(0.002) as peak:
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "end":
                break
            start = time.perf_counter()
            loss = step()
            if gpu:
                torch.cuda.synchronize()
            print(time.perf_counter() - start, float(loss), flush=True)
    nbytes = torch.cuda.max_memory_allocated() if gpu else peak.value - before
    print(json.dumps({"peak": nbytes}), flush=True)


def command(work: Work) -> list[str]:
    return [sys.executable, __file__, json.dumps(asdict(work))]


def tiny(work: Work) -> Work:
    """The same at sizes that take no time."""
    llama = replace(
        work.llama, vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return replace(work, llama=llama, samples=2, length=16, labelled=4)


if __name__ == "__main__":
    main()
