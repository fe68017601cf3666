"""Each case at its smallest size on the CPU: which rows it gives. What times they say is not tested."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import golden, models, run, training
from benchmarks.cases import contention, data, decode, operations, prefill, quantization, train, vision
from benchmarks.cases.ops import dense_linear, quantized_linear
from benchmarks.cases.ops.case import Case
from benchmarks.peers import compiled, llama_cpp, onnx_runtime, plain, transformers_llama
from owl_fast.config import OwlConfig, Quantization
from owl_fast.kernels.weights import dequantize
from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl

CPU = torch.device("cpu")
PEERS = {
    "decode": {plain.NAME, transformers_llama.EAGER, transformers_llama.STATIC, compiled.NAME},
    "vision": {
        *("owl_fast, vision tower int8", plain.NAME, compiled.NAME),
        *(onnx_runtime.NAME, onnx_runtime.INT8),
    },
    "prefill": {plain.NAME, transformers_llama.EAGER, compiled.NAME},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in (operations, prefill, vision):
        monkeypatch.setattr(case, "SECONDS", 0.0)
    monkeypatch.setattr(operations, "CPU_BYTES", 1e6)
    monkeypatch.setattr(decode, "CPU_POINTS", {"tiny": [(2, 20)]})
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
    assert [row["metric"] for row in machine] == ["copy", "matmul", "nothing", "read", "int8 matmul"]
    check(rows)
    for case, peers in PEERS.items():
        found = [row for row in rows if row["case"] == case and not row["shape"].endswith(" 128 tokens")]
        assert {row["contender"] for row in found} == {"owl_fast", *peers}
    measured = {row["contender"] for row in rows if row["median"] is not None}
    assert {"owl_fast", plain.NAME} <= measured
    ends = {row["shape"].rpartition(" ")[2] for row in rows if row["case"] == "prefill"}
    assert ends == {"pixels", "JPEG", "tokens"}
    assert "absent: left out by --no-compile" in capsys.readouterr().out


def test_operations_are_measured_or_left_to_gpus(tmp_path: Path) -> None:
    _, rows = split(rows_of(tmp_path, "ops", "--only", "rms_norm"))
    check(rows)
    small = [row for row in rows if row["shape"] == "rms_norm N1-H4096-bf16"]
    assert [row["contender"] for row in small] == ["owl_fast", plain.NAME, "torch rms_norm"]
    assert all(row["median"] is not None for row in small)
    (large,) = [row for row in rows if row["shape"] == "rms_norm N2048-H4096-bf16"]
    assert large["note"].endswith("GB are left to GPUs")


@pytest.mark.parametrize("kind", quantized_linear.KINDS)
def test_what_only_a_cpu_runs_is_compared_with_torch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_linear, "COPIES_BYTES", 0)
    case = Case("quantized_linear", "small", partial(quantized_linear.make, 32, 128, kind, 2))
    monkeypatch.setattr(operations, "CPU_CASES", (case,))
    _, rows = split(rows_of(tmp_path, "ops", "--only", "quantized_linear"))
    check(rows)
    own = f"torch {quantized_linear.KINDS[kind][0]}pack"
    assert [row["contender"] for row in rows] == ["owl_fast", own, "torch bf16 linear"]


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


@pytest.mark.parametrize("kind", quantized_linear.KINDS)
def test_torchs_quantized_weights_are_ours(kind: str) -> None:
    weight = models.random_weight((32, 128), *quantized_linear.KINDS[kind], CPU)
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    _, make = quantized_linear.torchs_own(weight)
    expected = (x.double() @ dequantize(weight, torch.float64).T).float()
    y = make(quantized_linear.torchs_packed(weight))(x).float()
    assert (y - expected).abs().max() < 0.02 * expected.abs().max()


def test_data_is_opened_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ROWS", 30)
    monkeypatch.setattr(data, "SHARD_ROWS", 20)
    rows = rows_of(tmp_path, "data", "--work-dir", str(tmp_path))
    assert {row["shape"] for row in rows} == {
        f"{kind}, 30 rows" for kind in ("JSON lines", "JSON list", "tars")
    }
    assert [row["metric"] for row in rows[:3]] == ["open", "read in a run's order", "memory"]
    assert all(row["median"] > 0 for row in rows if row["unit"] == "rows/s")
    assert not list(tmp_path.glob("owl-data-*"))


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


@pytest.mark.parametrize(("quant", "gigabytes"), [("int8", 6.61), ("int4", 3.51)])
def test_efforts_with_quantized_weights(quant: str, gigabytes: float) -> None:
    """Whole numbers of 1 and of half a byte, and their scales; as many products as before."""
    config = OwlConfig.mplug_owl_7b()
    with torch.device("meta"):
        dense = Owl(config).to(torch.bfloat16)
        model = Owl(replace(config, quantization=Quantization(quant))).to(torch.bfloat16)
    step = models.language_effort(model, 1)
    assert step.nbytes / 1e9 == pytest.approx(gigabytes, abs=0.005)
    assert step.int8
    assert step.flops == models.language_effort(dense, 1).flops


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_random_quantized_weights_are_as_large_as_dense_ones(quant: str) -> None:
    weight = dequantize(models.random_weight((64, 256), quant, 128, CPU), torch.float32)
    assert weight.std() == pytest.approx(0.02, rel=0.1)
    model = models.random_model("tiny", CPU, quantization=models.quantization_of(quant))
    batch = PackedBatch.from_sequences([[1, 2, 3]])
    with torch.inference_mode():
        assert model.logits(model(batch)).isfinite().all()


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


def test_onnx_runtime_computes_the_same() -> None:
    model = models.random_model("tiny", CPU)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = models.pixels_of(model)[None]
    with torch.inference_mode():
        wanted = model.encode_images(pixels)
    torch.testing.assert_close(onnx_runtime.encoder(model, pixels)(pixels), wanted, rtol=1e-4, atol=1e-4)
    rounded = onnx_runtime.encoder(model, pixels, onnx_runtime.INT8)(pixels)
    assert 0.99 < torch.cosine_similarity(rounded, wanted, dim=-1).mean() < 1 - 1e-7
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_peer_that_is_not_installed_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    _, rows = split(rows_of(tmp_path, "vision", "--no-compile"))
    (note,) = (row["note"] for row in rows if row["contender"] == onnx_runtime.NAME)
    assert "onnxruntime: not installed" in note


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


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_llama_cpp_stands_beside_ours(quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    monkeypatch.setattr(decode, "CPU_POINTS", {"tiny": [(1, 4), (2, 4)]})
    for name, value in (("ROUNDS", 1), ("STEPS", 1), ("SETTLE", 0.0)):
        monkeypatch.setattr(contention, name, value)
    folder = tmp_path / "gguf"
    cases = "decode", "prefill", "contention"
    _, rows = split(rows_of(tmp_path, *cases, "--quant", quant, "--gguf", str(folder)))
    schemes = llama_cpp.SCHEMES[quant]
    files = sorted(path.name for path in folder.iterdir())  # of one layer, to try, and of all
    assert files == sorted(
        f"random-llama-{layers}-256-512-1024-{scheme}.gguf" for layers in (1, 2) for scheme in schemes
    )
    for scheme in schemes:
        names = {llama_cpp.name(scheme, flash) for flash in llama_cpp.FLASH}
        for case, end in (("decode", "B1-C4"), ("prefill", " 128 tokens")):
            found = [r for r in rows if r["case"] == case and r["shape"].endswith(end)]
            theirs = [r for r in found if r["contender"] in names]
            assert len(theirs) == 2
            assert all(r["median"] > 0 and r["ours"] > 0 for r in theirs)
            best = max(theirs, key=lambda r: r["median"] * (1 if case == "decode" else -1))
            assert best["note"].startswith(llama_cpp.BETTER)
            assert sum(r["note"].startswith(llama_cpp.BETTER) for r in theirs) == 1
        both = [r for r in rows if r["shape"].endswith("B2-C4") and r["contender"] in names]
        assert [r["note"] for r in both] == ["absent: one sequence at a time here"] * 2
        beside = [r for r in rows if r["contender"] == f"llama.cpp {scheme}"]
        assert [r["metric"] for r in beside] == [*contention.WHEN, "slowdown"]


@pytest.mark.parametrize("missing", ["llama_cpp", "gguf"])
def test_llama_cpp_that_is_not_installed_is_absent(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(decode, "CPU_POINTS", {"tiny": [(1, 4)]})
    _, rows = split(rows_of(tmp_path, "decode", "--quant", "int4"))
    check(rows)
    theirs = [row for row in rows if row["contender"].startswith("llama.cpp")]
    assert len(theirs) == 4
    # Where neither is installed the first one is named.
    named = [
        row["note"].startswith("absent: ") and ("llama_cpp" in row["note"] or "gguf" in row["note"])
        for row in theirs
    ]
    assert all(named)
    assert not list(tmp_path.glob("owl-gguf-*"))


def split(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those of the machine, and the others."""
    return [r for r in rows if r["case"] == "machine"], [r for r in rows if r["case"] != "machine"]


@pytest.mark.slow
def test_quantization_is_compared_with_the_model_as_it_is(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "quantization")
    assert {row["shape"].split(",")[0] for row in rows} == {
        *("owl-nano", "student-t-4", "golden tiny", "golden micro")
    }
    contenders = {row["contender"] for row in rows}
    assert {"as it is", "int8", "int4 groups of 32 plain", "vision int8", "int4, int8 cache"} <= contenders
    errors = {
        row["contender"]: row["median"]
        for row in rows
        if row["metric"] == "logit error" and row["shape"].startswith("student")
    }
    assert 0 < errors["int8 cache"] < errors["int8"] < errors["int4 groups of 32"]
    assert errors["int4 groups of 32"] < errors["int4 groups of 128"]
    right = {row["contender"] for row in rows if row["metric"] == "right answers"}
    assert right == {"as it is", "int8", "int8 cache"}


@pytest.mark.parametrize("name", golden.NAMES)
def test_int8_caches_stand_beside_the_original(name: str) -> None:
    rows = quantization.beside_original(name, CPU)
    errors = {row.contender: row.median for row in rows if row.metric == "logit error"}
    assert errors["as it is"] is not None
    assert errors["int8 cache"] is not None
    assert errors["as it is"] < 1e-5 < errors["int8 cache"] < 0.1


def test_a_cache_of_the_model_s_dtype_changes_nothing_but_roundings() -> None:
    model = models.random_model("tiny", CPU)
    batch = PackedBatch.from_sequences([[1, 5, 9] * 7, [3] * 40])
    with torch.inference_mode():
        kept = models.behind_cache(batch, model.config.llama, torch.float32)
        torch.testing.assert_close(model(kept), model(batch), rtol=1e-4, atol=1e-4)


def test_an_engine_s_int8_cache_is_the_one_compared() -> None:
    model = models.random_model("tiny", CPU)
    asked = models.engine(model, max_context=64, kv_cache="int8")
    more = "on the quiet lake"
    prompt = [asked.tokenizer.bos_id, *asked.tokenizer.encode("A boat", literal=False)]
    ids = [*prompt, *asked.tokenizer.encode(more, literal=True)]
    batch = models.behind_cache(PackedBatch.from_sequences([ids]), model.config.llama, torch.int8)
    with torch.inference_mode():
        told = model.logits(model(batch)).log_softmax(-1)[len(prompt) - 1 : -1]
    wanted = told.gather(-1, torch.tensor(ids[len(prompt) :])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(asked.score("A boat", None, more)), wanted)


def test_engines_of_the_cases_find_nothing_in_caches() -> None:
    """The cases ask the same again and again."""
    asked = models.engine(models.random_model("tiny", CPU), max_context=120, max_batch=2)
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    prompt = {"prompt": models.prompt_of(40, asked, picture=True), "images": [picture]}
    for _ in range(2):
        outputs = asked.generate([prompt, prompt], max_tokens=2)
        assert isinstance(outputs, list)
        assert [output.usage.cached_tokens for output in outputs] == [0, 0]
    stats = asked.stats()
    assert (stats.pictures, stats.pictures_cached) == (4, 0)
    assert stats.steps == 4  # both prompts in one


def test_training_comes_with_its_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = {name: training.CONTENDERS[name] for name in ("owl_fast", "owl_fast int4, inputs kept")}
    monkeypatch.setattr(train, "CONTENDERS", contenders)
    monkeypatch.setattr(train, "STEPS", 2)
    rows = [row for row in rows_of(tmp_path, "train") if row["case"] == "train"]
    assert {row["contender"] for row in rows} == set(contenders)
    assert len(rows) == 2 * 2 * 4
    for row in rows:
        assert 0 < row["p20"] <= row["median"] <= row["p80"]
        assert (row["limit_fraction"] is not None) == (row["metric"] == "throughput")


@pytest.mark.parametrize("stage", [1, 2])
def test_training_counts_what_plain_torch_multiplies(stage: int) -> None:
    """Products of forward and of the gradients of their inputs, the head on learned rows."""
    work = training.tiny(training.Work("owl_fast", stage, "cpu", train.CPU_LLAMA, *train.CPU_BATCH))
    with FlopCounterMode(display=False) as counter:
        training.ours(work, training.Own())()
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_a_contender_that_fails_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = dict.fromkeys(("owl_fast", "nobody"), training.CONTENDERS["owl_fast"])
    monkeypatch.setattr(train, "CONTENDERS", both)
    monkeypatch.setattr(train, "STEPS", 2)
    rows = [row for row in rows_of(tmp_path, "train") if row["contender"] == "nobody"]
    assert [row["note"] for row in rows] == ["absent: KeyError: 'nobody'"] * 2
