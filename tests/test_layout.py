"""The import rules of docs/structure.md, read from the sources (nothing is imported)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Area (first name below owl_fast, or a top-level folder) -> layer. An import may go sideways or down.
LAYERS = (
    ("kernels",),
    ("backends", "config", "errors", "files", "machine", "native", "ops"),
    (
        *("checkpoints", "conversation", "fetch", "hub", "images", "lora", "models", "picture_files"),
        *("picture_parts", "prompts", "quantization", "tokenizer", "video"),
    ),
    ("engine", "evaluation", "serving", "training"),
    (
        *("chat", "cli", "command_line", "compat", "completion", "data", "doctor", "evaluate", "quantize"),
        *("serve", "settings", "summary", "train", "__main__"),
    ),
    ("benchmarks", "export", "recipes"),
)
LEVEL = {area: level for level, areas in enumerate(LAYERS) for area in areas}

# Sideways imports that would tie together what should stay apart.
APART = {
    "models": {"checkpoints", "images", "prompts", "tokenizer", "video"},
    "engine": {"evaluation", "serving", "training"},
    "training": {"evaluation", "serving"},
}

# Packages beyond the standard library. What only some users install stays in the area that needs it.
INFERENCE = {"PIL", "numpy", "safetensors", "sentencepiece", "torch", "tqdm"}
EXTERNAL = {
    **dict.fromkeys(LEVEL, INFERENCE),
    "kernels": {"flash_attn", "torch", "triton"},
    "chat": INFERENCE | {"prompt_toolkit", "rich"},
    "data": INFERENCE | {"rich"},
    "doctor": INFERENCE | {"rich"},
    "engine": INFERENCE | {"onnx", "onnxruntime"},
    "evaluate": INFERENCE | {"starlette"},
    "evaluation": INFERENCE | {"jinja2", "sacrebleu"},
    "hub": {"huggingface_hub"},
    "settings": INFERENCE | {"tomli"},
    "train": INFERENCE | {"matplotlib"},
    "video": INFERENCE | {"av"},
    "training": INFERENCE | {"matplotlib", "pyarrow", "rich"},
    "serve": INFERENCE | {"fastapi", "prometheus_client", "uvicorn"},
    "serving": INFERENCE
    | {"fastapi", "h11", "prometheus_client", "pydantic", "pydantic_core", "ray", "starlette", "uvicorn"},
    "export": INFERENCE | {"gguf", "onnx", "onnxruntime", "onnxscript"},
}
MAX_LINES = 500


def area_of(module: str) -> str:
    """owl_fast.models.llama -> models; recipes.owl_nano.run -> recipes; owl_fast itself -> owl_fast."""
    parts = module.split(".")
    return parts[1] if parts[0] == "owl_fast" and len(parts) > 1 else parts[0]


def imports_of(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Every module a source names in an import, wherever it stands, as absolute dotted names.

    `from owl_fast import x` counts as owl_fast.x: that is what such an import means in this repository.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            if name in ("owl_fast", "recipes", "benchmarks"):
                yield from (f"{name}.{alias.name}" for alias in node.names)
            else:
                yield name


def complaint(module: str, imported: str) -> str | None:
    """Why `module` must not import `imported`; None when it may."""
    area, target = area_of(module), area_of(imported)
    top = imported.split(".")[0]
    if top == "owl_fast" or target in ("recipes", "benchmarks"):
        return internal_complaint(area, target)
    if top in sys.stdlib_module_names or area in ("recipes", "benchmarks"):
        return None
    allowed = EXTERNAL.get(area, set())
    return None if top in allowed else f"{area} may use {', '.join(sorted(allowed))}, not {top}"


def internal_complaint(area: str, target: str) -> str | None:
    if area == target:
        return None
    if target == "kernels" and area not in ("ops", "backends", "benchmarks"):
        return f"only ops imports kernels, not {area}"
    top_level = LEVEL["chat"]
    if target not in LEVEL:  # a public name of owl_fast itself: Engine, __version__ ...
        return None if LEVEL[area] >= top_level else f"{area} must not import the public face ({target})"
    if LEVEL[target] > LEVEL[area]:
        return f"{area} (layer {LEVEL[area]}) must not import {target} (layer {LEVEL[target]})"
    if target in APART.get(area, set()):
        return f"{area} must know nothing of {target}"
    return None


def sources() -> Iterator[tuple[str, Path]]:
    """(module name, file) of the code that ships or runs from the repository; tests may import anything."""
    for folder, prefix in (
        ("owl_fast", "owl_fast"),
        ("kernels", "owl_fast.kernels"),
        ("export", "owl_fast.export"),
        ("recipes", "recipes"),
        ("benchmarks", "benchmarks"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "owl_fast" and inner[0] in ("kernels", "export"):
                continue  # reached under their own folder
            yield ".".join([prefix, *(part for part in inner if part != "__init__")]), path


SOURCES = dict(sources())


@pytest.mark.parametrize("module", SOURCES)
def test_imports(module: str) -> None:
    path = SOURCES[module]
    if module == "owl_fast":
        return  # the public face names what is above it; test_import_cost.py holds it to laziness
    area = area_of(module)
    assert area in LEVEL, f"{path}: {area} has no layer; give it one in LAYERS and in docs/structure.md"
    imported = imports_of(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    complaints = [text for name in imported if (text := complaint(module, name))]
    assert complaints == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("owl_fast.kernels.swiglu", "from owl_fast.errors import OwlError"),
        ("owl_fast.kernels.swiglu", "import numpy"),
        ("owl_fast.models.llama", "from owl_fast.kernels.rms_norm import rms_norm_cpu"),
        ("owl_fast.models.llama", "from owl_fast import kernels"),
        ("owl_fast.models.llama", "from ..checkpoints import names"),
        ("owl_fast.models.llama", "def f():\n    from owl_fast.engine.engine import Engine"),
        ("owl_fast.models.llama", "import triton"),
        ("owl_fast.config", "from owl_fast.models import owl"),
        ("owl_fast.engine.engine", "from owl_fast import SamplingParams"),
        ("owl_fast.engine.engine", "import transformers"),
        ("owl_fast.engine.engine", "from owl_fast.training.loop import train"),
        ("owl_fast.training.loop", "from recipes.owl_nano import world"),
        ("owl_fast.serving.app", "import rich.console"),
    ],
)
def test_forbidden_imports_are_caught(module: str, source: str) -> None:
    assert any(complaint(module, name) for name in imports_of(source, module)), source


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("owl_fast.kernels.swiglu", "import ctypes, torch, triton.language as tl"),
        ("owl_fast.ops", "from owl_fast import native\nfrom owl_fast.kernels.rms_norm import rms_norm_cpu"),
        ("owl_fast.models.owl", "from .layers import Linear\nfrom owl_fast import ops"),
        ("owl_fast.checkpoints.load", "from owl_fast.models.owl import Owl\nimport safetensors"),
        ("owl_fast.chat", "from owl_fast import Engine\nimport rich"),
        ("owl_fast.export.merged", "from owl_fast.checkpoints import writer"),
        (
            "recipes.owl_nano.run",
            "from owl_fast import Engine\nimport matplotlib\nfrom recipes.owl_nano import world",
        ),
    ],
)
def test_allowed_imports_pass(module: str, source: str) -> None:
    assert [complaint(module, name) for name in imports_of(source, module) if complaint(module, name)] == []


@pytest.mark.parametrize("folder", ["kernels", "export"])
def test_leaf_folders(folder: str) -> None:
    """Reached through a symlink, and no package of their own: see docs/structure.md."""
    link = ROOT / "owl_fast" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..", folder)
    assert list((ROOT / folder).rglob("__init__.py")) == []


def test_no_file_is_too_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES.values()}
    assert {str(path): count for path, count in lengths.items() if count > MAX_LINES} == {}
