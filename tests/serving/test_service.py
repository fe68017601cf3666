from __future__ import annotations

import gc

import pytest

from owl_fast.errors import OwlError, ParameterError
from owl_fast.serving.service import Service


def test_what_is_loaded_is_left_alone_by_the_collector() -> None:
    service = Service()
    engine = service.load(None, "owl", adapters={}, device="cpu")
    try:
        assert service.running is engine
        assert [model["id"] for model in service.models()] == ["owl"]
        assert gc.get_freeze_count() > 10_000
    finally:
        service.close()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"adapters": {"mine": "/no/such/folder"}}, OwlError),
        ({"adapters": {"owl": "a"}}, ParameterError),
        ({"adapters": {"base": "a"}}, ParameterError),
        ({"hosts": ["https://a.example"]}, ParameterError),
        ({"image_dir": "/no/such/folder"}, ParameterError),
    ],
)
def test_what_cannot_be_loaded(wrong: dict[str, object], kind: type[OwlError]) -> None:
    service = Service()
    with pytest.raises(kind):
        service.load(None, "owl", **{"adapters": {}, "device": "cpu", **wrong})
    assert service.engine is None
