"""transformers' LLaMA over the very weights of ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.steps import Steps
from benchmarks.timing import Run, synchronize
from owl_fast import ops
from owl_fast.checkpoints.names import views
from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl

EAGER = "transformers eager"
STATIC = "transformers static cache + compile"
GENERATE = "transformers batched generate"
WARM = 4


def llama(model: Owl) -> Any:
    """A LlamaForCausalLM that shares our weights: no memory of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = model.config.llama
    with torch.device("meta"):
        theirs = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=ours.vocab_size,
                hidden_size=ours.hidden_size,
                intermediate_size=ours.intermediate_size,
                num_hidden_layers=ours.num_hidden_layers,
                num_attention_heads=ours.num_attention_heads,
                num_key_value_heads=ours.num_key_value_heads,
                max_position_embeddings=ours.max_position_embeddings,
                rms_norm_eps=ours.rms_norm_eps,
                tie_word_embeddings=False,
            )
        )
    prefix = "language_model."
    weights = {name.removeprefix(prefix): w for name, w in views(model).items() if name.startswith(prefix)}
    theirs.load_state_dict(weights, assign=True)
    with torch.device(model.device):  # its tables are no weights
        theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    return theirs.train(False)


@torch.no_grad()
def decode(model: Owl, answers: int, context: int, steps: int, static: bool) -> Steps:
    """Seconds of each greedy step behind prompts of `context` tokens, after a few steps to warm up."""
    from transformers import DynamicCache, StaticCache

    theirs = llama(model)
    cache = (
        StaticCache(config=theirs.config, max_cache_len=context + WARM + steps)
        if static
        else DynamicCache(config=theirs.config)
    )
    ids = torch.full((answers, context), 5, device=model.device)
    token = _next(theirs, ids, cache)
    forward = torch.compile(theirs.forward, mode="reduce-overhead", fullgraph=True) if static else theirs
    for step in range(WARM + steps):
        synchronize(model.device)
        start = time.perf_counter()
        token = _next(forward, token, cache)
        token.tolist()  # whoever streams an answer has to see its tokens
        if step >= WARM:
            yield time.perf_counter() - start


def first_token(model: Owl, prompt: Callable[[], PackedBatch]) -> Run:
    """The first token after a prompt, whose picture our references encode."""
    theirs = llama(model)

    @torch.inference_mode()
    def run() -> Tensor:
        with ops.kernels(False):
            embedded = model.embed(prompt())
        return theirs(inputs_embeds=embedded[None], use_cache=True, logits_to_keep=1).logits.argmax(-1)

    return run


def generator(model: Owl) -> Callable[[Sequence[Sequence[int]], int], tuple[float, float]]:
    """Answers prompts of equal length together, so many tokens each: seconds to the first ones, and of the
    others."""
    from transformers import GenerationConfig

    theirs = llama(model)
    theirs.generation_config.eos_token_id = None  # what is None below would be taken from here

    def run(prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, float]:
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
        moments: list[float] = []

        def goes_on(ids: Tensor, *_: Tensor, **__: object) -> Tensor:
            if not moments:
                moments.append(_now(model.device))
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        start = _now(model.device)
        ids = torch.tensor(prompts, device=model.device)
        mask = torch.ones_like(ids)  # else it is guessed from the ids
        given = theirs.generate(
            ids, attention_mask=mask, generation_config=config, stopping_criteria=[goes_on]
        )
        end = _now(model.device)
        assert given.shape == (len(prompts), len(prompts[0]) + tokens)
        return moments[0] - start, end - moments[0]

    return run


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


def _next(forward: Callable[..., Any], ids: Tensor, cache: Any) -> Tensor:
    """ids (B, n) -> the likeliest next ones (B, 1)."""
    logits = forward(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1].argmax(-1, keepdim=True).clone()
