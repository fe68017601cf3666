"""Each case at its smallest size on the CPU: which rows it gives. What times they say is not tested."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import models, run
from benchmarks.cases import decode, operations, prefill, vision
from benchmarks.cases.ops import dense_linear, quantized_linear
from benchmarks.cases.ops.case import Case
from benchmarks.peers import compiled, plain, transformers_llama
from owl_fast.config import OwlConfig
from owl_fast.kernels.weights import dequantize
from owl_fast.models.owl import Owl

CPU = torch.device("cpu")
PEERS = {
    "decode": {plain.NAME, transformers_llama.EAGER, transformers_llama.STATIC, compiled.NAME},
    "vision": {plain.NAME, compiled.NAME},
    "prefill": {plain.NAME, transformers_llama.EAGER, compiled.NAME},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in (operations, prefill, vision):
        monkeypatch.setattr(case, "SECONDS", 0.0)
    monkeypatch.setattr(operations, "CPU_BYTES", 1e6)
    monkeypatch.setattr(decode, "POINTS", {"tiny": [(2, 20)]})
    monkeypatch.setattr(decode, "STEPS", 3)


def rows_of(tmp_path: Path, *args: str) -> list[dict[str, Any]]:
    out = tmp_path / "out.json"
    assert run.main([*args, "--device", "cpu", "--model", "tiny", "--json", str(out)]) == 0
    return json.loads(out.read_text())["rows"]


def check(rows: list[dict[str, Any]]) -> None:
    """Numbers in order beside a fraction of the limit, or the reason why there are none."""
    for row in rows:
        if row["note"].startswith("absent: "):
            assert row["median"] is None
        else:
            assert 0 < row["p20"] <= row["median"] <= row["p80"]
            assert row["limit_fraction"] > 0


def test_models_come_with_their_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine, rows = split(rows_of(tmp_path, "decode", "vision", "prefill", "--no-compile"))
    assert [row["metric"] for row in machine] == ["copy", "matmul", "nothing"]
    check(rows)
    for case, peers in PEERS.items():
        assert {row["contender"] for row in rows if row["case"] == case} == {"owl_fast", *peers}
    measured = {row["contender"] for row in rows if row["median"] is not None}
    assert {"owl_fast", plain.NAME} <= measured
    assert {row["shape"].rpartition(" ")[2] for row in rows if row["case"] == "prefill"} == {"pixels", "JPEG"}
    assert "absent: left out by --no-compile" in capsys.readouterr().out


def test_operations_are_measured_or_left_to_gpus(tmp_path: Path) -> None:
    _, rows = split(rows_of(tmp_path, "ops", "--only", "rms_norm"))
    check(rows)
    small = [row for row in rows if row["shape"] == "rms_norm N1-H4096-bf16"]
    assert [row["contender"] for row in small] == ["owl_fast", plain.NAME, "torch rms_norm"]
    assert all(row["median"] is not None for row in small)
    (large,) = [row for row in rows if row["shape"] == "rms_norm N2048-H4096-bf16"]
    assert large["note"].endswith("GB are left to GPUs")


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_what_only_a_cpu_runs_is_compared_with_torch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_linear, "COPIES_BYTES", 0)
    case = Case("quantized_linear", "small", partial(quantized_linear.make, 32, 128, kind, 2))
    monkeypatch.setattr(operations, "CPU_CASES", (case,))
    _, rows = split(rows_of(tmp_path, "ops", "--only", "quantized_linear"))
    check(rows)
    assert [row["contender"] for row in rows] == ["owl_fast", f"torch {kind}pack", "torch bf16 linear"]


@pytest.mark.parametrize("dtype", dense_linear.DTYPES.values(), ids=dense_linear.DTYPES)
def test_dense_layers_are_compared_with_torch(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_linear, "COPIES_BYTES", 0)
    case = Case("dense_linear", "small", partial(dense_linear.make, 32, 128, dtype, 2))
    monkeypatch.setattr(operations, "CPU_CASES", (case,))
    _, rows = split(rows_of(tmp_path, "ops", "--only", "dense_linear"))
    check(rows)
    assert [row["contender"] for row in rows] == ["owl_fast", "torch linear"]


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_torchs_quantized_weights_are_ours(kind: str) -> None:
    weight = quantized_linear.make_weight(32, 128, kind)
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    _, make = quantized_linear.torchs_own(weight)
    expected = (x.double() @ dequantize(weight, torch.float64).T).float()
    y = make(quantized_linear.torchs_packed(weight))(x).float()
    assert (y - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_device_that_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        run.main(["vision", "--device", "cuda"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: device 'cuda'")


def test_efforts_of_the_released_model() -> None:
    """Counted by hand: 179.4 GFLOP and 0.769 GB a picture, 13.48 GB a token behind 512 cached ones."""
    with torch.device("meta"):
        model = Owl(OwlConfig.mplug_owl_7b()).to(torch.bfloat16)
    picture, step = models.picture_effort(model), models.language_effort(model, 1, cached=512)
    assert picture.flops / 1e9 == pytest.approx(179.4, abs=0.05)
    assert picture.nbytes / 1e9 == pytest.approx(0.769, abs=0.0005)
    assert step.nbytes / 1e9 == pytest.approx(13.48, abs=0.005)
    assert models.language_effort(model, 165).flops / 1e12 == pytest.approx(2.144, abs=0.002)


def test_prompts_have_the_length_asked_for() -> None:
    engine = models.engine(models.random_model("tiny", CPU), max_context=200)
    for picture in (False, True):
        answer = engine.generate(
            models.prompt_of(100, engine, picture),
            images=[torch.zeros(3, 8, 8, dtype=torch.uint8)] if picture else None,
            max_tokens=1,
        )
        assert answer.usage.prompt_tokens == 100 + (engine.config.image_rows if picture else 0)


def test_transformers_computes_the_same() -> None:
    pytest.importorskip("transformers")
    model = models.random_model("tiny", CPU)
    packed = models.picture_prompt(model, 10)
    with torch.inference_mode():
        ours = model.logits(model(packed())[-1:])
        theirs = transformers_llama.llama(model)(inputs_embeds=model.embed(packed())[None]).logits[0, -1:]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_compiled_peers_compute_the_same() -> None:
    model = models.random_model("tiny", CPU)
    packed = models.picture_prompt(model, 10)
    with torch.inference_mode():
        torch.testing.assert_close(
            compiled.compiled(lambda: model(packed()), CPU)(), model(packed()), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
def test_compiled_peers_have_rows(tmp_path: Path) -> None:
    _, rows = split(rows_of(tmp_path, "decode", "vision", "prefill"))
    check(rows)
    assert all(row["median"] is not None for row in rows if row["contender"] == compiled.NAME)


def split(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those of the machine, and the others."""
    return [r for r in rows if r["case"] == "machine"], [r for r in rows if r["case"] != "machine"]


@pytest.mark.slow
def test_quantization_is_compared_with_the_model_as_it_is(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "quantization")
    assert {row["shape"].split(",")[0] for row in rows} == {"owl-nano", "student-t-4"}
    contenders = {row["contender"] for row in rows}
    assert {"as it is", "int8", "int4 groups of 32 plain", "vision int8"} <= contenders
    errors = {row["contender"]: row["median"] for row in rows if row["metric"] == "logit error"}
    assert errors["int8"] < errors["int4 groups of 32"] < errors["int4 groups of 128"]
