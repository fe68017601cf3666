"""A picture of a run: exact answers per kind of question over the language phase, stage 1 and stage 2.

python -m recipes.owl_nano.curves nano-run curves.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from recipes.owl_nano.dialogues import WEIGHTS

TASKS = (*WEIGHTS, "compare", "text")
ROWS = "gate rows, "  # how the language phase names what it measures on stand-in rows
PANELS = {
    "language, without eyes": ("language/drills", "language/text", "language/later1", "language/later2"),
    "stage 1": ("stage1",),
    "stage 2": ("stage2",),
}


def curve(run: Path, phases: Iterable[str], task: str) -> tuple[list[int], list[float]]:
    """Updates, counted through the phases, and the share of exact answers there."""
    updates, rates = [0], [0.0]
    for phase in phases:
        begin = updates[-1]
        for line in (run / phase / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            rate = record.get(ROWS + task, record.get(task))
            if rate is not None:
                updates.append(begin + record["step"])
                rates.append(rate)
    return updates[1:], rates[1:]


def draw(run: Path, out: Path) -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 4.2), sharey=True, layout="constrained")
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for panel, (title, phases) in zip(axes, PANELS.items(), strict=True):
        assert isinstance(panel, Axes)
        for task, color in zip(TASKS, colors, strict=False):
            panel.plot(*curve(run, phases, task), label=task, color=color, linewidth=1.3)
        panel.set(title=title, xlabel="updates", ylim=(0, 1.02))
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("exact answers")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside right center", frameon=False)
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
