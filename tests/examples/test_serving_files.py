"""examples/serving: what the files start is there, and is as closed as they say. No container is built."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from owl_fast.serve.arguments import build_parser

FOLDER = Path(__file__).resolve().parents[2] / "examples/serving"
SERVER = ("owl-fast", "serve")


def instructions(text: str) -> list[tuple[str, str]]:
    """(name, rest) of a Dockerfile, in order."""
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


DOCKERFILE = instructions((FOLDER / "Dockerfile").read_text(encoding="utf-8"))
LAST_STAGE = dict(DOCKERFILE[max(i for i, (name, _) in enumerate(DOCKERFILE) if name == "FROM") :])


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (FOLDER / "owl-fast.service").read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    (service,) = yaml.safe_load(text)["services"].values()
    return service


def parsed(command: list[str]) -> Any:
    """What our parser makes of `owl-fast serve ...`, which takes what is installed: `python -m` would take a
    checkout in the working directory instead, which has no libowl_cpu."""
    program, serve, *rest = command
    assert (Path(program).name, serve) == SERVER
    return build_parser().parse_args(rest)


def test_the_image_starts_the_server_as_nobody_in_particular() -> None:
    args = parsed(json.loads(LAST_STAGE["ENTRYPOINT"]))
    assert (args.host, args.port) == ("0.0.0.0", int(LAST_STAGE["EXPOSE"]))
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", LAST_STAGE["USER"])
    assert f"127.0.0.1:{args.port}/health" in LAST_STAGE["HEALTHCHECK"]


def test_the_health_check_is_a_program() -> None:
    kind, _, command = LAST_STAGE["HEALTHCHECK"].partition("CMD ")
    assert "--start-period" in kind
    python, flag, program = json.loads(command)
    assert (python, flag) == ("python", "-c")
    compile(program, "HEALTHCHECK", "exec")


def test_every_stage_is_of_one_release() -> None:
    images = {rest.split()[0] for name, rest in DOCKERFILE if name == "FROM"}
    assert len(images) == 1
    assert "latest" not in images.pop()


def test_the_container_has_nothing_it_does_not_need() -> None:
    service = compose()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"]
    assert service["mem_limit"]
    assert all(volume["read_only"] for volume in service["volumes"])
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["environment"]["OWL_API_KEY"].startswith("${OWL_API_KEY:?")
    dockerfile = (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).resolve()
    assert dockerfile == FOLDER / "Dockerfile"


def test_flags_in_comments_exist() -> None:
    """They are the ones people will use."""
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    (shown,) = re.findall(r"#\s+command: \[(.*)\]", text)
    args = parsed([*SERVER, *(word.strip(' "') for word in shown.split(","))])
    assert (args.quant, args.max_context) == ("int4", 4096)
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    known = build_parser().format_help()
    assert all(flag in known for flag in re.findall(r"`(--[a-z-]+)", readme))


def test_the_image_is_built_from_what_it_needs() -> None:
    ignored = set((FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split())
    assert {".git", ".venv", "benchmarks", "models", "runs"} <= ignored
    needed = {"CMakeLists.txt", "LICENSE", "README.md", "constraints.txt", "export", "kernels", "owl_fast"}
    assert not ignored & {*needed, "pyproject.toml"}


def test_the_unit_starts_the_server_with_a_key() -> None:
    (command,) = unit()["ExecStart"]
    args = parsed(shlex.split(command))
    assert args.host == "127.0.0.1"
    (credential,) = unit()["LoadCredential"]
    assert args.api_key_file == f"%d/{credential.partition(':')[0]}"


def test_answers_under_way_have_their_time() -> None:
    from owl_fast.serving.limits import Limits

    (seconds,) = unit()["TimeoutStopSec"]
    assert int(seconds) > Limits().drain
    assert int(compose()["stop_grace_period"].removesuffix("s")) > Limits().drain


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (FOLDER / "owl-fast.service").read_text(encoding="utf-8")
    there = tmp_path / "owl-fast.service"
    there.write_text(text.replace("/opt/owl-fast/.venv/bin/owl-fast", sys.executable), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(there)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # 0 is closed, 10 open.
    exposed = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", str(there)]
    done = subprocess.run(exposed, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:]
