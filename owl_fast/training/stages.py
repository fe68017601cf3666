"""What trains in which stage (mPLUG-Owl, arXiv 2304.14178, section 3.2).

| stage | trains | frozen |
|---|---|---|
| 1 | vision tower, abstractor, query tokens | LLaMA |
| 2 | LoRA, abstractor (vit_eos and visual_fc included), query tokens | vision tower, LLaMA |
| 2 without the abstractor (the public script) | LoRA | the rest |
| full LLaMA | LLaMA and its head | everything visual |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from owl_fast.errors import UnsupportedError
from owl_fast.lora import LoraConfig, attach, lora_slots
from owl_fast.models.fusion import parameter_sources
from owl_fast.models.owl import Owl

VISION, ABSTRACTOR, LLAMA = ("vision_model.",), ("abstractor.", "query_tokens"), ("language_model.",)
LORA_MARK = ".lora."
HEAD = "language_model.lm_head"


@dataclass(frozen=True)
class Stage:
    """prefixes: how the names of what trains begin; lora: low-rank updates that train beside it."""

    name: str
    prefixes: tuple[str, ...]
    lora: LoraConfig | None = None

    def trains(self, parameter: str) -> bool:
        if LORA_MARK in parameter:
            return self.lora is not None
        return parameter.startswith(self.prefixes)

    def apply(self, model: Owl, seed: int = 0) -> dict[str, nn.Parameter]:
        """Attach LoRA if the stage has it and the model does not, freeze the rest; what trains, by name.

        Trained parameters become float32 whatever the model's dtype: smaller ones lose most updates.
        UnsupportedError if nothing trains, what trains is quantized, the model carries another adapter, or
        LoRA is on the head.
        """
        if self.lora is not None:
            self._attach(model, self.lora, seed)
        for name, _ in model.named_buffers():
            if self.trains(name):
                raise UnsupportedError(
                    f"stage {self.name} trains {name.rpartition('.')[0]}, which is held as "
                    f"{model.config.quantization}; quantized weights stay frozen: load the model without"
                )
        trained = {}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.trains(name))
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
                trained[name] = parameter
        if not trained:
            raise UnsupportedError(f"stage {self.name}: no parameter begins with {self.prefixes}")
        return trained

    def _attach(self, model: Owl, lora: LoraConfig, seed: int) -> None:
        slots = lora_slots(model)
        wanted = {name for name in slots if lora.targets(name)}
        if HEAD in wanted:
            raise UnsupportedError(f"LoRA on {HEAD} cannot be trained: the loss reads its weight")
        carried = {name for name, slot in slots.items() if slot.pair is not None}
        if not carried:
            attach(model, lora, seed)
        elif carried != wanted:
            raise UnsupportedError(
                f"the model carries an adapter on {len(carried)} modules, the stage asks for {len(wanted)} "
                f"({lora.target_modules!r}); merge the adapter or ask for the same targets"
            )

    def checkpoint_names(self, model: nn.Module) -> list[str]:
        """The checkpoint's names of the tensors that train, low-rank updates left out."""
        return [
            source
            for name, _ in model.named_parameters()
            if LORA_MARK not in name and self.trains(name)
            for source in parameter_sources(name)
        ]


STAGE1 = Stage("stage1", VISION + ABSTRACTOR)
FULL_LLAMA = Stage("full_llama", LLAMA)


def stage2(lora: LoraConfig | None = None, train_abstractor: bool = True) -> Stage:
    """Stage 2 of the paper; train_abstractor=False trains LoRA alone, as the public script does."""
    return Stage("stage2", ABSTRACTOR if train_abstractor else (), lora or LoraConfig())
