"""`import owl_fast` is cheap and pulls in nothing a user may not have."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {
    *(
        "av",
        "fastapi",
        "gguf",
        "google",
        "huggingface_hub",
        "matplotlib",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "peft",
    ),
    *("prompt_toolkit", "ray", "rich", "starlette", "transformers", "triton", "uvicorn"),
}
LIMIT_SECONDS = 0.2


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after `statement`."""
    code = (
        f"{statement}\nimport sys, json; print(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    )
    return set(json.loads(run("-c", code).stdout))


def import_seconds() -> float:
    """Cumulative time of `import owl_fast`, without torch should it be among the imports."""
    lines = re.findall(
        r"import time:\s+(\d+) \|\s+(\d+) \| (\s*)(\S+)",
        run("-X", "importtime", "-c", "import owl_fast").stderr,
    )
    cumulative = {name: int(total) for _, total, _, name in lines}
    return (cumulative["owl_fast"] - cumulative.get("torch", 0)) / 1e6


def test_import_time() -> None:
    """The best of five: a busy machine only ever adds."""
    assert min(import_seconds() for _ in range(5)) < LIMIT_SECONDS


def test_import_pulls_in_nothing_heavy() -> None:
    loaded = loaded_by("import owl_fast")
    assert "owl_fast" in loaded
    assert loaded & (HEAVY | {"torch"}) == set()


def test_public_face_pulls_in_nothing_heavy() -> None:
    """Every public name resolves, and inference needs none of the optional packages, Triton included."""
    public = "import owl_fast\nfor name in owl_fast.__all__: getattr(owl_fast, name)"
    loaded = loaded_by(public)
    assert "torch" in loaded
    assert (loaded - loaded_by("import torch")) & HEAVY <= {"triton"}  # the kernels look for it
    loaded_by(f"import sys\nsys.modules['triton'] = None\n{public}")


def test_unknown_name_lists_what_there_is() -> None:
    code = "import owl_fast\ntry: owl_fast.Owl\nexcept AttributeError as error: print(error)"
    assert re.search(r"no attribute 'Owl'.*\bEngine\b.*\bOwlConfig\b", run("-c", code).stdout)


@pytest.mark.parametrize(
    "command", ["chat", "export.gguf", "export.llm", "export.merged", "export.onnx", "serve"]
)
def test_commands_start_light(command: str) -> None:
    assert loaded_by(f"import owl_fast.{command}") & (HEAVY | {"torch"}) == set()


def test_one_answer_needs_no_screen() -> None:
    model = "tests/golden/micro/checkpoint"
    loaded = loaded_by(
        "import sys, io; from owl_fast import chat; out = sys.stdout; sys.stdout = io.StringIO()\n"
        f"assert chat.main(['{model}', '--device', 'cpu', '--max-tokens', '2', '-p', 'hello']) == 0\n"
        "sys.stdout = out"
    )
    assert "torch" in loaded
    assert loaded & {"prompt_toolkit", "rich"} == set()
