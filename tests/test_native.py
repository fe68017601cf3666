"""Finding libowl_cpu: where it is looked for, what is refused, and that its absence is said once."""

from __future__ import annotations

import _ctypes
import importlib.metadata
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

import owl_fast
from owl_fast import native

ROOT = Path(__file__).resolve().parent.parent


def test_abi_number_is_the_headers() -> None:
    header = (ROOT / "kernels/cpu/owl_cpu.h").read_text(encoding="utf-8")
    found = re.search(r"#define OWL_ABI_VERSION (\d+)", header)
    assert found is not None
    assert int(found[1]) == native.ABI_VERSION


def test_candidates_are_the_package_then_the_build_folder_then_an_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout/CMakeLists.txt").touch()
    folders = [str(tmp_path / "site/owl_fast"), str(tmp_path / "checkout/owl_fast")]
    monkeypatch.setattr(owl_fast, "__path__", folders)
    information = tmp_path / "hidden/owl_fast-0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Name: owl-fast\nVersion: 0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "hidden")])
    found = [str(path.relative_to(tmp_path)) for path in native.candidates()]
    name = native.LIBRARY_NAME
    places = ["site/owl_fast", "checkout/owl_fast", "checkout/build", "hidden/owl_fast"]
    assert found == [f"{place}/{name}" for place in places]


def test_nothing_built(tmp_path: Path) -> None:
    found = native.probe([tmp_path / native.LIBRARY_NAME])
    assert (found.library, found.path) == (None, None)
    assert found.reason == "libowl_cpu.so is not built"


def test_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / native.LIBRARY_NAME
    path.write_bytes(b"not a library")
    found = native.probe([path])
    assert found.library is None
    assert f"{path} cannot be loaded" in str(found.reason)


def test_other_library_is_named() -> None:
    path = Path(_ctypes.__file__)
    found = native.probe([path])
    assert found.library is None
    assert f"{path} cannot be loaded" in str(found.reason)
    assert "owl_abi_version" in str(found.reason)


@pytest.mark.usefixtures("cpu_library")
def test_other_abi_is_refused_and_the_next_one_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = native.status().path
    assert path is not None
    broken = tmp_path / native.LIBRARY_NAME
    broken.write_bytes(b"")
    assert native.probe([broken, path]).path == path
    monkeypatch.setattr(native, "ABI_VERSION", 999)
    found = native.probe([path])
    assert found.library is None
    assert re.search(r"has ABI \d+, this source needs 999", str(found.reason))


def test_absence_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(native, "status", lambda: native.Native(None, None, "the reason"))
    native.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "owl_fast"):
            assert native.library() is None
            assert native.library() is None
    finally:
        native.library.cache_clear()
    assert len(caplog.messages) == 1
    assert "the reason" in caplog.messages[0]
    assert native.COST in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


def test_import_loads_nothing() -> None:
    code = "import owl_fast.native; print('libowl_cpu' in open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_an_installation_has_the_library() -> None:
    """Without this, a broken build would only show as skipped tests."""
    try:
        importlib.metadata.version("owl-fast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("plain checkout: owl-fast is not installed here")
    assert native.status().reason is None
