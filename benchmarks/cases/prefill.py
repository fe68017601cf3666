"""prefill: time to the first token after one picture and 100 tokens of text.

From pixels on the device, where the floor is what vision and language model must compute and read, and from
JPEG bytes, which are decoded and scaled on the CPU. On a CPU also after 128 tokens of text, beside those who
take no pictures.
"""

from __future__ import annotations

import argparse
import io
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.harness import Row
from benchmarks.models import (
    engine,
    language_effort,
    picture_effort,
    picture_prompt,
    pixels_of,
    prompt_of,
    quantization_of,
    random_model,
    title,
)
from benchmarks.peers import chosen, compiled, few_layers, llama_cpp, plain, transformers_llama
from benchmarks.timing import Contender, Run, Timer, race, wall_timer
from owl_fast.engine.engine import Engine
from owl_fast.engine.placement import pick_device
from owl_fast.engine.sampling import SamplingParams
from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl

TEXT_TOKENS, TEXT_ONLY = 100, 128
SECONDS = 0.5
ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0.0)
PICTURE = 480, 640  # height and width


def run(args: argparse.Namespace) -> list[Row]:
    device = pick_device(args.device)
    model = random_model(args.model, device, quantization=quantization_of(args.quant))
    length = model.config.image_rows + TEXT_TOKENS
    asked = engine(model, max_context=length + 1)
    effort = picture_effort(model) + language_effort(model, length)
    shape = f"{title(args.model, model)} 1 picture {TEXT_TOKENS} tokens"
    packed = picture_prompt(model, TEXT_TOKENS)
    pixels, jpeg = from_pixels(asked), from_jpeg(asked)
    peers: dict[str, Contender] = {}
    if model.config.quantization is None:
        peers = {
            transformers_llama.EAGER: lambda: wall_timer(
                transformers_llama.first_token(model, packed), device
            ),
            compiled.NAME: compiled.contender(lambda: _first_token(model, packed()), device, args.no_compile),
        }
    peers = chosen(peers, args)
    rows = []
    sources = {"pixels": _engines(pixels, model) | peers, "JPEG": _engines(jpeg, model)}
    for source, contenders in sources.items():
        where = "prefill", f"{shape} from {source}", "first token"
        rows += race(where, device, effort, contenders, SECONDS)
    return rows + (after_text(model, args) if device.type == "cpu" else [])


def after_text(model: Owl, args: argparse.Namespace) -> list[Row]:
    """After a prompt without pictures."""
    device, llama = model.device, model.config.llama
    asked = engine(model, max_context=TEXT_ONLY + 1)
    prompt = prompt_of(TEXT_ONLY, asked)
    contenders = _engines(lambda: asked.generate(prompt, ONE_TOKEN), model)
    where = "prefill", f"{title(args.model, model)} {TEXT_ONLY} tokens", "first token"
    with ExitStack() as stack:

        def llama_cpps(scheme: str, flash: str) -> tuple[Timer, str]:
            opened = stack.enter_context(llama_cpp.session(args.gguf, llama, scheme, TEXT_ONLY, flash))
            return wall_timer(llama_cpp.first_token(opened, TEXT_ONLY), device)

        for scheme in llama_cpp.SCHEMES.get(args.quant, ()):
            for flash in llama_cpp.FLASH:
                contenders[llama_cpp.name(scheme, flash)] = partial(llama_cpps, scheme, flash)
        contenders[few_layers.name(llama)] = partial(few_layers.first_token, args.model, device, TEXT_ONLY)
        rows = race(where, device, language_effort(model, TEXT_ONLY), chosen(contenders, args), SECONDS)
    return llama_cpp.noted(rows, args.gguf, llama)


def from_pixels(asked: Engine) -> Run:
    """Past the engine's front door, which takes pictures and brings their pixels from the CPU."""
    prepared = asked._reader.read(prompt_of(TEXT_TOKENS, asked, picture=True), [_picture()])
    on_device = replace(prepared, pixels=[pixels_of(asked.model)])
    return lambda: asked._loop.answer(asked._make(on_device, ONE_TOKEN))


def from_jpeg(asked: Engine) -> Run:
    file = io.BytesIO()
    _picture().save(file, "JPEG")
    prompt, picture = prompt_of(TEXT_TOKENS, asked, picture=True), file.getvalue()
    return lambda: asked.generate(prompt, ONE_TOKEN, images=[picture])


def _picture() -> Image.Image:
    height, width = PICTURE
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height))


def _engines(run: Run, model: Owl) -> dict[str, Contender]:
    """An engine as it is, and with the references in place of the kernels, unless those would write every
    quantized weight out dense first."""
    runs = {"owl_fast": run}
    if model.config.quantization is None or model.device.type != "cpu":
        runs[plain.NAME] = plain.plain(run)
    return {name: partial(wall_timer, run, model.device) for name, run in runs.items()}


def _first_token(model: Owl, batch: PackedBatch) -> Tensor:
    return model.logits(model(batch)[-1:]).argmax(-1)
