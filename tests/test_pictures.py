"""Pictures from anywhere: malformed ones are an ImageError or right, odd ones right, bombs cost nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from owl_fast.images import ImageProcessor, load_image
from owl_fast.picture_parts import MAX_PARTS, MAX_SCANS, parts_trouble
from tests.pictures.encoding import FORMATS, SIDE, good, reference
from tests.pictures.legal import BOMBS, jpeg_scans, oddities, twins
from tests.pictures.malformed import GOOD, KINDS, malformed
from tests.sandbox import Outcome, watch

MEGABYTE = 1 << 20


def check_texts(outcomes: list[Outcome]) -> None:
    assert [o for o in outcomes if o.kind not in ("read", "refused")] == []
    assert [o for o in outcomes if "0x" in o.text or not 0 < len(o.text) < 400] == []


def check_malformed(seeds: range) -> None:
    cases = [f"{kind}|{seed}" for seed in seeds for kind in KINDS]
    outcomes = watch("tests.pictures.malformed:read", cases, GOOD)
    check_texts(outcomes)
    assert max(outcome.grown for outcome in outcomes) < 150 * MEGABYTE
    seen = Counter((outcome.case.partition("|")[0], outcome.kind) for outcome in outcomes)
    assert sum(count for (_, kind), count in seen.items() if kind == "refused") > len(cases) / 5
    assert sum(count for (_, kind), count in seen.items() if kind == "read") > len(cases) / 10


def test_some_malformed_pictures() -> None:
    assert len(KINDS) >= 50
    assert len({malformed(f"{kind}|0") for kind in KINDS}) == len(KINDS)
    check_malformed(range(3))


@pytest.mark.slow
def test_five_thousand_malformed_pictures() -> None:
    check_malformed(range(5000 // len(KINDS) + 1))


@pytest.mark.filterwarnings("ignore")
def test_odd_but_right_pictures_are_the_references() -> None:
    files = oddities()
    assert len(files) >= 40
    for name, data in files.items():
        pixels = ImageProcessor(SIDE)(data)
        assert pixels.shape == (3, SIDE, SIDE), name
        assert pixels.isfinite().all(), name
        assert torch.equal(pixels, reference(data)), name
        assert ImageProcessor(SIDE)(data, training=True).isfinite().all(), name


@pytest.mark.parametrize("name", twins())
def test_odd_files_hold_the_plain_picture(name: str) -> None:
    odd, plain = (np.asarray(load_image(data).convert("RGB")) for data in twins()[name])
    assert np.array_equal(odd, plain)


def test_bombs_are_refused_without_being_decoded(tmp_path: Path) -> None:
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    (tmp_path / "plain").write_bytes(good("PNG")[0])
    outcomes = watch("tests.pictures.legal:load", [tmp_path / name for name in BOMBS], tmp_path / "plain")
    check_texts(outcomes)
    assert {o.case: o for o in outcomes if o.kind != "refused" or o.grown > 20 * MEGABYTE} == {}


def test_parts_are_counted_as_the_decoders_do() -> None:
    assert all(parts_trouble(data) is None for form in FORMATS for data in good(form))
    assert parts_trouble(jpeg_scans(MAX_SCANS - 10)) is None
    assert parts_trouble(jpeg_scans(MAX_SCANS + 1)) == f"more than {MAX_SCANS} scans"
    assert parts_trouble(BOMBS["png chunks"]()) == f"more than {MAX_PARTS} chunks"
    for name in ("run", "segments", "comments", "fill", "ends", "hidden"):
        assert parts_trouble(BOMBS[f"jpeg {name}"]()) == f"more than {MAX_PARTS} segments", name
    # Scans that a decoder passes over: in a comment, behind the end, in a thumbnail.
    plain = good("JPEG")[0]
    comment = b"\xff\xfe\x01\x02" + b"\xff\xda\0\2" * 64
    assert parts_trouble(plain[:2] + comment * 5 + plain[2:] + b"\xff\xda\0\2" * 500) is None
