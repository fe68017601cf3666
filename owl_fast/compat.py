"""The two calls of the first release (2023-04-26, interface.py), for scripts written against them.

    model, tokenizer, img_processor = get_model("instruction_tuned.pth", "tokenizer.model")
    text = do_generate(prompts, image_list, model, tokenizer, img_processor, max_length=512, do_sample=True)

Prompts are written out, roles and "<image>" marks included. Generation options have transformers' names and
defaults: without any the answer is greedy and 19 tokens long.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from owl_fast.engine.engine import Engine
from owl_fast.engine.placement import pick_device, pick_dtype
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import ContextLengthError, ImageError, ParameterError, PromptError, UnsupportedError
from owl_fast.images import ImageProcessor
from owl_fast.prompts import IMAGE_TEXT
from owl_fast.tokenizer import Tokenizer

MAX_LENGTH = 20  # transformers' default; it counts the BOS that generation starts from
TOP_K = 50  # transformers' default when sampling
MAX_PATH, MIN_BASE64 = 4096, 32  # characters of a path at most, and of a picture at least
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/_-]{4})*(?:[A-Za-z0-9+/_-]{2}==|[A-Za-z0-9+/_-]{3}=)?")

# Options of generate() that are called otherwise here.
_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_beams": "beams",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "repetition_penalty": "repetition_penalty",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
}
_SAMPLING = {"temperature": 1.0, "top_k": TOP_K, "top_p": 1.0}
# No influence on the text: keys and values are always cached, nothing is ever padded.
_IDLE = ("use_cache", "pad_token_id")


def get_model(
    checkpoint_path: str | Path,
    tokenizer_path: str | Path | None = None,
    peft_config: None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    allow_urls: Collection[str] = (),
    **options: Any,
) -> tuple[Engine, Tokenizer, ImageProcessor]:
    """(model, tokenizer, image processor) as do_generate takes them; the model is an Engine.

    allow_urls: hosts from which pictures may be fetched. options go to Engine.from_pretrained.
    """
    if peft_config is not None:
        raise UnsupportedError(
            "peft_config came; a state dict with LoRA in it is recognised as such, an adapter folder is "
            "given as adapter="
        )
    if tokenizer_path is not None:
        options["tokenizer"] = tokenizer_path
    engine = Engine.from_pretrained(
        checkpoint_path, device=device, dtype=dtype, allow_urls=allow_urls, **options
    )
    return engine, engine.tokenizer, engine.processor


def do_generate(
    prompts: str | Sequence[str],
    image_list: object,
    model: Engine,
    tokenizer: Tokenizer,
    img_processor: ImageProcessor,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **generate_kwargs: Any,
) -> str:
    """The answer to the first prompt.

    image_list: a picture or several, those of all prompts in order: paths, URLs where allowed, bare base64
    text, or anything else Engine.generate takes; None or [] for prompts without pictures. tokenizer and
    img_processor must be the model's own. device and dtype are those of the model: get_model sets them.
    generate_kwargs: options of transformers' generate(). PromptError when marks and pictures do not match.
    """
    if tokenizer is not model.tokenizer or img_processor is not model.processor:
        raise ParameterError("tokenizer and img_processor must be those that get_model gave with the model")
    _check_place(model, device, dtype)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise PromptError(f"prompts: {texts!r:.80}; wanted one text or several")
    if isinstance(image_list, (list, tuple)):
        images = list(image_list)
    else:
        images = [] if image_list is None else [image_list]
    places = [text.count(IMAGE_TEXT) for text in texts]
    if sum(places) != len(images):
        raise PromptError(f"{sum(places)} {IMAGE_TEXT} in the prompts, {len(images)} picture(s) came")
    params = sampling_params(model.tokenizer, generate_kwargs)
    pictures = [_picture(image) for image in images[: places[0]]]
    try:
        return model.generate(texts[0], params, images=pictures).text
    except ContextLengthError:
        # The first release went on past the context, if badly; this engine goes as far as the context does.
        return model.generate(texts[0], params, images=pictures, max_tokens=None, min_tokens=0).text


def sampling_params(tokenizer: Tokenizer, options: Mapping[str, Any]) -> SamplingParams:
    """transformers' generation options as SamplingParams; UnsupportedError names one that has no match.

    Sampling draws its seed from torch's generator, so that torch.manual_seed makes it repeatable, as it did.
    """
    left = {name: value for name, value in options.items() if value is not None and name not in _IDLE}
    chosen: dict[str, Any] = {"max_tokens": _behind_bos(left.pop("max_length", MAX_LENGTH), "max_length")}
    if "min_length" in left:
        chosen["min_tokens"] = max(0, _behind_bos(left.pop("min_length"), "min_length"))
    chosen |= {ours: left.pop(theirs) for theirs, ours in _NAMES.items() if theirs in left}
    sampling = {name: left.pop(name, default) for name, default in _SAMPLING.items()}
    if left.pop("do_sample", False):
        chosen |= sampling | {"seed": int(torch.randint(1 << 62, ()))}
    fixed = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "num_return_sequences": 1,
        "num_beam_groups": 1,
        "return_dict_in_generate": False,
        "output_scores": False,
    }
    for name, only in fixed.items():
        if left.pop(name, only) != only:
            raise UnsupportedError(f"{name}={options[name]!r:.40}: only {only} is supported; leave it out")
    if left:
        name, value = left.popitem()
        raise UnsupportedError(f"generation option {name}={value!r:.40} is not supported; leave it out")
    return SamplingParams(**chosen)


def _behind_bos(length: Any, name: str) -> int:
    """Lengths of transformers count the BOS that generation starts from."""
    if not isinstance(length, int):
        raise ParameterError(f"{name} is {length!r:.40}; wanted an integer")
    return length - 1


def _check_place(model: Engine, device: str | torch.device | None, dtype: str | torch.dtype | None) -> None:
    """UnsupportedError when the model is to run elsewhere, or as something else, than it is."""
    own = model.model
    if device is not None and pick_device(device).type != own.device.type:
        raise UnsupportedError(f"device {device}: it is on {own.device}; get_model(device=...) places it")
    if dtype is not None and pick_dtype(dtype, own.device, model.config) != own.dtype:
        raise UnsupportedError(f"dtype {dtype}: the model has {own.dtype}; get_model(dtype=...) sets it")


def _picture(image: object) -> object:
    """A text that is neither a URL nor a data URI nor an existing file may be base64."""
    if not isinstance(image, str) or image.startswith(("http:", "https:", "data:")):
        return image
    if len(image) < MAX_PATH and os.path.exists(image):
        return image
    if len(image) >= MIN_BASE64 and _BASE64.fullmatch(image):
        return base64.b64decode(image.replace("-", "+").replace("_", "/"))
    raise ImageError(f"{image!r:.80}: no such file, and not base64 of a picture either")
