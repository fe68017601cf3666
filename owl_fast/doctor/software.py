"""What this installation consists of, and what each missing part would buy."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

import owl_fast
from owl_fast import machine, native
from owl_fast.summary import size_text

Rows = list[tuple[str, str]]

NEEDED = (
    *("torch", "numpy", "Pillow", "safetensors", "sentencepiece", "tqdm"),
    *("prompt_toolkit", "rich"),
)
# Package -> what it is for, and the extra that installs it.
OPTIONAL = {
    "huggingface_hub": ("models by their name on the Hugging Face hub", "hub"),
    "av": ("videos other than GIF, PNG and WebP animations", "video"),
    "onnxruntime": ("ONNX files of the vision tower (owl-fast export.onnx)", "onnx"),
    "matplotlib": ("plots of a training run", "train"),
    "pyarrow": ("training data in Parquet files", "parquet"),
}


def machine_rows() -> Rows:
    """Processor, memory and GPUs."""
    features = ", ".join(machine.cpu_features()) or "none of those that matter"
    rows = [
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("processor", f"{machine.cpu_name()}, {machine.cpu_count()} core(s); {features}"),
        ("memory", size_text(machine.device_memory(torch.device("cpu")))),
    ]
    if not torch.cuda.is_available():
        built = "torch is built without CUDA" if torch.version.cuda is None else "torch finds none it can use"
        return [*rows, ("GPU", f"none: {built}; a 7B model answers many times faster on one")]
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        major, minor = torch.cuda.get_device_capability(index)
        note = "" if (major, minor) >= (8, 0) else "; before 8.0: fp16 instead of bf16"
        memory = size_text(machine.device_memory(device))
        rows.append(("GPU", f"{machine.device_name(device)}, {memory}, capability {major}.{minor}{note}"))
    return rows


def package_rows() -> tuple[Rows, bool]:
    """owl_fast, its packages and its library; whether all that is needed is there."""
    rows, complete = [("owl_fast", owl_fast.__version__)], True
    for name in NEEDED:
        version = _version(name)
        complete = complete and version is not None
        rows.append((name, version or f"MISSING: pip install {name}"))
    for name, (purpose, extra) in OPTIONAL.items():
        missing = f"not installed: {purpose}; pip install '.[{extra}]' in the checkout"
        rows.append((name, _version(name) or missing))
    return [*rows, ("libowl_cpu", _library())], complete


def _library() -> str:
    found = native.status()
    if found.path is not None:
        return str(found.path)
    return f"not found: {found.reason}; {native.COST}; `pip install .` or `make native` builds it"


def _version(name: str) -> str | None:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    return f"{version}, CUDA {torch.version.cuda or 'none'}" if name == "torch" else version
