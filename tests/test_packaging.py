"""The three ways to have owl_fast: editable install, wheel, plain checkout. Each in a fresh environment.

A fresh environment is a new venv that sees the packages of the running one through a .pth file, so only the
project itself has to be installed. pip fetches the build backend as in any install.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "libowl_cpu.so"
REPORT = """
import json, logging
import torch
import owl_fast
from owl_fast import native
from owl_fast.kernels import rms_norm

x, weight = torch.randn(3, 33), torch.randn(33)
error = None
if native.library() is not None:
    got = rms_norm.rms_norm_cpu(native.library(), x, weight, 1e-6)
    error = float((got - rms_norm.rms_norm_reference(x, weight, 1e-6)).abs().max())
native.library()
path = native.status().path
print(json.dumps({
    "path": list(owl_fast.__path__), "version": owl_fast.__version__, "kernels": rms_norm.__file__,
    "native": path and str(path), "error": error, "config": owl_fast.OwlConfig.__module__,
}))
"""


def quiet_environment() -> dict[str, str]:
    """Without variables that would let the running checkout into the new one."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=quiet_environment(), check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


class Environment:
    """A fresh venv at `folder`."""

    def __init__(self, folder: Path) -> None:
        run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        self.site = Path(
            run(
                self.python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))", cwd=folder
            ).stdout.strip()
        )
        shared = sysconfig.get_path("platlib")
        (self.site / "zz_shared.pth").write_text(f"{shared}\n", encoding="utf-8")

    def pip(self, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", "-q", "--disable-pip-version-check", *arguments, cwd=self.bin)

    def report(self, cwd: Path) -> tuple[dict[str, str | list[str] | float | None], str]:
        """REPORT's JSON and what was said on stderr, from a process started in `cwd`."""
        done = run(self.python, "-c", REPORT, cwd=cwd)
        return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources as a clone has them: no build folder, no environment, no repository."""
    target = tmp_path_factory.mktemp("source") / "owl_fast-checkout"
    skip = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "tests", "__pycache__", ".*_cache", "runs", "work"
    )
    shutil.copytree(ROOT, target, symlinks=True, ignore=skip)
    return target


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "wheel", "--no-deps"),
        *("-w", folder, checkout),
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_one_package(wheel: Path, checkout: Path) -> None:
    name, _version, *tag = wheel.stem.split("-")
    assert name == "owl_fast"
    assert tag[:2] == ["py3", "none"]
    assert tag[2] != "any"
    names = {entry for entry in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in entry}
    assert {entry.split("/")[0] for entry in names} == {"owl_fast"}
    shipped = {
        f"owl_fast/{path.relative_to(root)}"
        if root.name == "owl_fast"
        else str(Path("owl_fast", path.relative_to(checkout)))
        for root in (checkout / "owl_fast", checkout / "kernels", checkout / "export")
        for path in root.rglob("*")
        if path.is_file() and path.parent != checkout / "kernels" / "cpu"
    }
    assert names == shipped | {f"owl_fast/{LIBRARY}"}


def test_wheel_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "--no-deps", wheel)
    report, said = environment.report(tmp_path)
    package = environment.site / "owl_fast"
    assert report["path"] == [str(package)]
    assert report["native"] == str(package / LIBRARY)
    assert report["kernels"] == str(package / "kernels/rms_norm.py")
    assert report["error"] is not None
    assert float(str(report["error"])) < 1e-5
    assert said == ""
    usage = run(environment.bin / "owl-fast", "--help", cwd=tmp_path).stdout
    assert usage.startswith("usage: owl-fast")


def test_an_install_that_the_checkout_hides(wheel: Path, checkout: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "--no-deps", wheel)
    report, said = environment.report(checkout)
    assert report["path"] == [str(checkout / "owl_fast")]
    assert report["native"] == str(environment.site / "owl_fast" / LIBRARY)
    assert said == ""


def test_editable_install(checkout: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "--no-deps", "-e", checkout)
    report, said = environment.report(tmp_path)
    built = environment.site / "owl_fast"
    assert sorted(map(str, report["path"] or ())) == sorted([str(built), str(checkout / "owl_fast")])
    assert report["native"] == str(built / LIBRARY)
    assert report["kernels"] == str(checkout / "owl_fast/kernels/rms_norm.py")
    assert report["error"] is not None
    assert said == ""

    added = [checkout / "owl_fast/added.py", checkout / "kernels/added.py", checkout / "export/added.py"]
    try:
        for path in added:
            path.write_text("HERE = True\n", encoding="utf-8")
        imports = "import owl_fast.added, owl_fast.kernels.added, owl_fast.export.added"
        run(environment.python, "-c", imports, cwd=tmp_path)
    finally:
        for path in added:
            path.unlink(missing_ok=True)


def test_plain_checkout(checkout: Path, tmp_path: Path) -> None:
    """Without the library: everything runs, and one line says what is missing and what it costs."""
    environment = Environment(tmp_path / "venv")
    elsewhere = environment.site / "owl_fast-0.dist-info"  # hides the install in the shared packages
    elsewhere.mkdir()
    (elsewhere / "METADATA").write_text("Name: owl-fast\nVersion: 0\n", encoding="utf-8")
    report, said = environment.report(checkout)
    assert report["path"] == [str(checkout / "owl_fast")]
    assert (report["native"], report["error"]) == (None, None)
    assert report["kernels"] == str(checkout / "owl_fast/kernels/rms_norm.py")
    assert len(said.splitlines()) == 1
    assert "libowl_cpu.so is not built" in said
    assert "take longer" in said


def test_plain_checkout_with_a_build_folder(checkout: Path, tmp_path: Path) -> None:
    target = tmp_path / "checkout"
    shutil.copytree(checkout, target, symlinks=True)
    run("make", "native", cwd=target)
    report, said = Environment(tmp_path / "venv").report(target)
    assert report["native"] == str(target / "build" / LIBRARY)
    assert report["error"] is not None
    assert said == ""
