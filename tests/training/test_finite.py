"""NaN and infinity, put in at fifty places: skipped, counted, named, never saved, and soon the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from owl_fast.errors import DivergedError
from owl_fast.training import EncodedSample, Source, Trainer
from owl_fast.training.snapshots import load_snapshot, newest_snapshot
from tests.training.owls import made_up, weights
from tests.training.survivor import metrics, shorter, trainer

BAD = [float("nan"), float("inf"), float("-inf")]
STEPS = 6
SETTINGS = shorter(steps=STEPS, eval_every=0, keep=100)
SOURCE = [Source("made up", lambda index: made_up(index, pictures=1))]


def without(folder: Path, left_out: int) -> Trainer:
    """The run in which update number `left_out` never had a batch."""
    run = trainer(folder, SETTINGS, sources=SOURCE)
    for step in range(STEPS):
        run.model.train()
        if step + 1 == left_out:
            run.step += 1
        else:
            run.update([run.reader(number) for number in run.reader.of_update(step)])
    run.model.eval()
    return run


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Trainer]:
    found: dict[int, Trainer] = {}

    def run(left_out: int) -> Trainer:
        if left_out not in found:
            found[left_out] = without(tmp_path_factory.mktemp("without") / "run", left_out)
        return found[left_out]

    return run


def in_loss(run: Trainer, step: int, bad: float) -> None:
    run.objective.register_forward_hook(lambda _m, _i, loss: loss * bad if run.step + 1 == step else loss)


def in_gradient(run: Trainer, step: int, bad: float) -> None:
    def hook(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[3] = bad if run.step + 1 == step else gradient.view(-1)[3]
        return gradient

    list(run.parameters.values())[5].register_hook(hook)


def in_data(run: Trainer, step: int, bad: float) -> None:
    source = run.plan.sources[0]

    def get(index: int) -> EncodedSample:
        sample = made_up(index, pictures=1)
        if index != 4 * (step - 1) + 2:
            return sample
        pixels = sample.visual[0].clone()
        pixels[1, 2, 3] = bad
        return dataclasses.replace(sample, visual=[pixels])

    object.__setattr__(source, "get", get)


CASES = [
    (put, step, bad) for put in (in_loss, in_gradient, in_data) for step in range(1, STEPS + 1) for bad in BAD
]


@pytest.mark.parametrize(
    ("put", "step", "bad"), CASES, ids=[f"{put.__name__}-{step}-{bad}" for put, step, bad in CASES]
)
def test_one_update_is_left_out(
    put: Callable[[Trainer, int, float], None],
    step: int,
    bad: float,
    wanted: Callable[[int], Trainer],
    tmp_path: Path,
) -> None:
    """The weights, the optimizer and every snapshot are those of a run without that batch."""
    run = trainer(tmp_path, SETTINGS, sources=[dataclasses.replace(SOURCE[0])])
    put(run, step, bad)
    run.run()
    other = wanted(step)
    theirs = weights(other.model)
    assert [n for n, w in weights(run.model).items() if not torch.equal(w, theirs[n])] == []
    for one, two in zip(run.parameters.values(), other.parameters.values(), strict=True):
        assert all(torch.equal(v, other.optimizer.state[two][k]) for k, v in run.optimizer.state[one].items())
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if line["loss"] is None] == [step]
    # Two micro-batches of two; the third sample of the update is the bad one.
    named = range(2, 4) if put is in_data else range(4)
    assert lines[step - 1]["skipped"] == [f"made-up {4 * (step - 1) + i}" for i in named]
    assert run.skips == 1
    for path in tmp_path.glob("checkpoint-*"):
        tensors, state = load_snapshot(path)
        assert all(torch.isfinite(t).all() for group in tensors.values() for t in group.values())
        assert state["skips"] == (state["step"] >= step)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_a_weight_ends_the_run(trained: bool, bad: float, tmp_path: Path) -> None:
    """Nothing mends it: either the next snapshot or the fourth skip says so, and the newest stays good."""
    run = trainer(tmp_path, SETTINGS, sources=SOURCE)
    run.run(until=2)
    name = "abstractor.visual_fc.weight" if trained else "language_model.model.norm.weight"
    with torch.no_grad():
        run.model.get_parameter(name).view(-1)[0] = bad
    with pytest.raises(DivergedError, match=f"{name} is not finite|updates .* non-finite"):
        run.run()
    newest = newest_snapshot(tmp_path)
    assert newest is not None
    tensors, _ = load_snapshot(newest)
    assert all(torch.isfinite(t).all() for group in tensors.values() for t in group.values())
    again = trainer(tmp_path, SETTINGS, sources=SOURCE)
    again.run()
    assert again.step == STEPS


def test_a_moment_of_the_optimizer_is_not_saved_either(tmp_path: Path) -> None:
    run = trainer(tmp_path, SETTINGS, sources=SOURCE)
    run.run(until=1)
    name, parameter = next(iter(run.parameters.items()))
    run.optimizer.state[parameter]["exp_avg_sq"].view(-1)[0] = float("inf")
    with pytest.raises(DivergedError, match="exp_avg_sq is not finite after update 1; no snapshot"):
        run.save()
    assert newest_snapshot(tmp_path) == tmp_path / "checkpoint-1"
    assert name in run.parameters


def test_three_skips_are_borne_and_four_are_not(tmp_path: Path) -> None:
    def put(run: Trainer, steps: set[int]) -> None:
        run.objective.register_forward_hook(
            lambda _m, _i, loss: loss * float("nan") if run.step + 1 in steps else loss
        )

    settings = shorter(steps=12, eval_every=0)
    for name, steps in (("three", {2, 4, 7}), ("four", {2, 4, 7, 9})):
        run = trainer(tmp_path / name, settings, sources=SOURCE)
        put(run, steps)
        if len(steps) == 3:
            run.run()
            assert run.skips == 3
        else:
            # The count survives a resumption.
            run.run(until=5)
            run.close()
            run = trainer(tmp_path / name, settings, sources=SOURCE)
            put(run, steps)
            with pytest.raises(DivergedError, match=r"4 of the last 100 .* \[2, 4, 7, 9\], .* made-up 32"):
                run.run()
