"""A picture of a run: exact answers per kind of question over the language phase, loss over stages 1 and 2.

python -m recipes.owl_nano.curves nano-run curves.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from recipes.owl_nano.dialogues import WEIGHTS

TASKS = (*WEIGHTS, "compare", "text")
ROWS = "gate rows, "  # how the language phase names what it measures on stand-in rows
LANGUAGE = tuple(f"language/{part}" for part in ("drills", "text", "later1", "later2"))
STAGES = {"stage 1": "stage1", "stage 2": "stage2"}
MEAN_OF = 50  # updates whose losses are one point
Curve = tuple[list[int], list[float]]


def curve(run: Path, task: str) -> Curve:
    """Updates, counted through the parts of the language phase, and the share of exact answers there."""
    updates, rates = [0], [0.0]
    for part in LANGUAGE:
        begin = updates[-1]
        for record in _lines(run / part):
            updates.append(begin + record["step"])
            rates.append(record[ROWS + task])
    return updates[1:], rates[1:]


def losses(run: Path, stage: str) -> tuple[Curve, Curve]:
    """Means of the loss in training, and the loss on held-out rows."""
    records = [record for record in _lines(run / stage) if record["loss"] is not None]
    parts = [records[start : start + MEAN_OF] for start in range(0, len(records), MEAN_OF)]
    training = (
        [part[-1]["step"] for part in parts],
        [sum(record["loss"] for record in part) / len(part) for part in parts],
    )
    measured = [record for record in records if "eval_loss" in record]
    return training, ([r["step"] for r in measured], [r["eval_loss"] for r in measured])


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def draw(run: Path, out: Path) -> None:
    figure, axes = plt.subplots(1, 1 + len(STAGES), figsize=(13, 4.2), layout="constrained")
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for task, color in zip(TASKS, colors, strict=False):
        axes[0].plot(*curve(run, task), label=task, color=color, linewidth=1.3)
    axes[0].set(title="language, without eyes", xlabel="updates", ylabel="exact answers", ylim=(0, 1.02))
    axes[0].legend(fontsize="small", frameon=False)
    for panel, (title, stage) in zip(axes[1:], STAGES.items(), strict=True):
        for (steps, values), label in zip(losses(run, stage), ("training", "held out"), strict=True):
            panel.plot(steps, values, label=label, linewidth=1.3)
        panel.set(title=title, xlabel="updates", ylabel="loss", yscale="log")
        panel.legend(frameon=False)
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.savefig(out, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("out", type=Path, help="PNG to write")
    options = parser.parse_args()
    draw(options.run, options.out)


if __name__ == "__main__":
    main()
