"""Many requests at once at the smallest size: which rows there are and what is asked; not the times."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import models, run
from benchmarks.cases.throughput import guesses, load, pictures, texts
from benchmarks.cases.throughput.load import Load
from benchmarks.peers import few_layers, llama_cpp, llama_cpp_batch, transformers_llama
from owl_fast.engine.inputs import PreparedPrompt
from owl_fast.errors import OwlError
from owl_fast.prompts import IMAGE_ID

CPU = torch.device("cpu")
OURS = {"owl_fast", "owl_fast, int8 cache"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CPU_LOADS", {"tiny": [Load(1, 12, 3, 2), Load(8, 12, 3, 2)]})
    for name, value in (("ASKED", 3), ("TEXT", 5), ("TOKENS", 3)):
        monkeypatch.setattr(pictures, name, value)


def rows_of(tmp_path: Path, part: str, *args: str) -> list[dict[str, Any]]:
    out = tmp_path / "out.json"
    command = ["throughput", "--only", part, "--device", "cpu", "--model", "tiny", "--json", str(out)]
    assert run.main([*command, *args]) == 0
    return [row for row in json.loads(out.read_text())["rows"] if row["case"] == "throughput"]


def check_texts(rows: list[dict[str, Any]], contenders: set[str]) -> None:
    for metric, gain in zip(("3 tokens each", texts.DECODING), texts.AGAINST_ONE, strict=True):
        check_rates(rows, contenders, metric, gain)


def check_rates(rows: list[dict[str, Any]], contenders: set[str], metric: str, gain: str) -> None:
    speeds = [row for row in rows if row["metric"] == metric]
    assert [row["shape"].rpartition(" ")[2] for row in speeds[:: len(contenders)]] == ["B1-C12", "B8-C12"]
    for shape in {row["shape"] for row in speeds}:
        assert {row["contender"] for row in speeds if row["shape"] == shape} == contenders
    for row in speeds:
        assert not row["note"].startswith("absent")
        assert 0 < row["p20"] <= row["median"] <= row["p80"]
        assert row["limit_fraction"] > 0
    gains = [row for row in rows if row["metric"] == gain]
    assert {row["contender"] for row in gains} == contenders
    for row in gains:
        one, many = (r["median"] for r in speeds if r["contender"] == row["contender"])
        assert row["median"] == pytest.approx(many / one)


def test_texts_stand_beside_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    check_texts(rows_of(tmp_path, "texts"), {*OURS, transformers_llama.GENERATE})


@pytest.mark.slow
def test_quantized_texts_stand_beside_llama_cpp(tmp_path: Path) -> None:
    for needed in ("gguf", "llama_cpp", "transformers"):
        pytest.importorskip(needed)
    rows = rows_of(tmp_path, "texts", "--quant", "int4", "--gguf", str(tmp_path / "gguf"))
    theirs = {llama_cpp_batch.name(scheme) for scheme in llama_cpp.SCHEMES["int4"]}
    few = few_layers.name(models.config_of("tiny").llama, transformers_llama.GENERATE)
    check_texts(rows, {*OURS, few, *theirs})
    notes = {
        row["note"] for row in rows if row["contender"] in theirs and row["metric"] not in texts.AGAINST_ONE
    }
    assert all(note.startswith("flash attention o") for note in notes)


@pytest.mark.slow
def test_sequences_of_llama_cpp_are_apart(tmp_path: Path) -> None:
    """Every sequence gets the answer it gets in another place, also of prompts that take several batches."""
    for needed in ("gguf", "llama_cpp"):
        pytest.importorskip(needed)
    config = models.config_of("tiny").llama
    prompts = Load(3, 1000, 1, 1).prompts(0, config.vocab_size, 1)
    with llama_cpp_batch.opened(tmp_path, config, "Q8_0", 1010, 3) as batch:
        answers = list(zip(*batch.answer(prompts, 4), strict=True))
        turned = list(zip(*batch.answer([prompts[2], prompts[0], prompts[1]], 4), strict=True))
        assert turned == [answers[2], answers[0], answers[1]]
        assert len(set(answers)) == 3
    with llama_cpp.session(tmp_path, config, "Q8_0", 1010, "on") as alone:
        assert alone.feed(prompts[1]) == answers[1][0]


def test_transformers_answers_the_prompts_together() -> None:
    pytest.importorskip("transformers")
    model = models.random_model("tiny", CPU)
    first, others = transformers_llama.generator(model)(Load(2, 6, 1, 1).prompts(0, 1024, 1), 5)
    assert first > 0
    assert others > 0


def test_pictures_are_found_in_the_caches_or_not(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "pictures")
    assert [row["shape"].partition(", ")[2] for row in rows] == ["3 pictures"] * 2 + ["one picture"] * 2
    assert [row["contender"] for row in rows] == [*pictures.SETTINGS] * 2
    assert all(row["median"] > 0 and row["limit_fraction"] > 0 for row in rows)
    image_rows, turns = models.config_of("tiny").image_rows, 1 + pictures.ROUNDS["tiny"]
    asked = 3 * turns * (image_rows + 5)
    for row in rows:
        assert row["note"].endswith(f" of {asked} positions of prompts")
    found = [int(row["note"].split("pictures, ")[1].split()[0]) for row in rows]
    assert found[1] == found[3] == 0
    assert found[0] < asked / 10
    assert found[2] >= 2 * turns * (image_rows // 16 * 16)  # whole blocks, of all but the first


@pytest.mark.slow
def test_guesses_are_compared_with_none(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "guesses")
    assert {row["shape"].partition(",")[0] for row in rows} == {"owl-nano"}
    assert len({row["shape"] for row in rows}) == 2
    names = {"owl_fast", "owl_fast, speculation 4", "owl_fast, speculation 8"}
    speeds = [row for row in rows if row["metric"] == "one at a time"]
    assert {row["contender"] for row in speeds} == names
    assert all(row["median"] > 0 for row in speeds)
    shares = [row for row in rows if row["metric"] == "guesses that came true"]
    assert {row["contender"] for row in shares} == names - {"owl_fast"}


def test_random_weights_have_nothing_to_guess() -> None:
    assert guesses.run(Namespace(model="7b-random")) == []


def test_conversations_go_on_for_some_turns() -> None:
    cases = guesses.conversations(3)
    assert len(cases) == 3
    assert all(len(case.dialogue.turns) >= guesses.TURNS and len(case.pictures) == 1 for case in cases)


def test_prompts_have_nothing_in_common() -> None:
    asked = Load(8, 20, 1, 1)
    prompts = [prompt for turn in range(5) for prompt in asked.prompts(turn, 768, 1)]
    assert {len(prompt) for prompt in prompts} == {20}
    assert {prompt[0] for prompt in prompts} == {1}
    assert len({prompt[1] for prompt in prompts}) == 40
    assert asked.prompts(2, 768, 1) == prompts[16:24]


def test_pictures_are_new_in_every_round() -> None:
    model, generator = models.random_model("tiny", CPU), torch.Generator().manual_seed(0)
    rounds = [pictures.prompts(model, generator, shared) for shared in (True, True, False)]
    assert [len({id(prompt.pixels[0]) for prompt in asked}) for asked in rounds] == [1, 1, 3]
    assert not torch.equal(rounds[0][0].pixels[0], rounds[1][0].pixels[0])
    for prompt in rounds[0]:
        assert prompt.ids.count(IMAGE_ID) == model.config.image_rows == len(prompt.ids) - 5


def test_more_requests_may_go_faster_but_not_beyond_the_machine() -> None:
    """The limit counts every prompt, and the weights once for each step."""
    model = models.random_model("tiny", CPU)
    alone, together = (texts.limits(model, Load(answers, 12, 3, 1), model.dtype) for answers in (1, 8))
    for one, many in zip(alone, together, strict=True):
        assert one < many < 8 * one
    assert pictures.floor(model, shared=True) < pictures.floor(model, shared=False)


def test_an_answer_that_fails_is_not_a_fast_one() -> None:
    model = models.random_model("tiny", CPU)
    asked = models.usual_engine(model, 16, 1)
    with torch.inference_mode():
        asked._loop.runner.run = lambda plan: torch.full((1, 1024), torch.nan)  # type: ignore[method-assign]
        with pytest.raises(OwlError, match="not finite"):
            load.times_of(asked, [PreparedPrompt([1, 5], [])], 2)


def test_on_a_gpu_each_is_warmed_up_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "alone", lambda starts, device: {"owl_fast": [9.0, 1.0], "other": "not here"})
    taken = load.measured({}, torch.device("cuda"))
    assert taken == {"owl_fast": [1.0], "other": "not here"}
