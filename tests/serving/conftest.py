from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.owls import Owls, serving


@pytest.fixture(scope="session")
def owls() -> Iterator[Owls]:
    """Every test leaves it as it was."""
    with serving() as running:
        yield running
