from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.export.exports import MODELS


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Path]:
    """The file of a model, a part and a dtype, made once."""

    @functools.cache
    def file(name: str, part: str, dtype: str) -> Path:
        out = tmp_path_factory.mktemp("exported") / f"{name}-{part}-{dtype}"
        return MODELS[name].export(out, "--part", part, "--dtype", dtype)

    return file
