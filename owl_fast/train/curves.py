"""The curves of a run as SVG files, from its metrics.jsonl."""

from __future__ import annotations

import json
import os
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

SMOOTHED = 50  # points of a curve that is noisy are averaged over so many parts of it
CURVES = {  # file: its title, and the metrics drawn into it
    "loss": ("loss per labelled token", ("loss", "eval_loss")),
    "learning-rate": ("learning rate", ("lr",)),
    "gradient-norm": ("norm of the gradient", ("grad_norm",)),
    "speed": ("rows per second", ("rows_per_second",)),
}


def draw_curves(metrics: Path, folder: Path) -> list[Path]:
    """One file for each group of curves that has points; replaced as a whole."""
    points = read_points(metrics)
    folder.mkdir(exist_ok=True)
    drawn = []
    for name, (title, keys) in CURVES.items():
        found = {key: points[key] for key in keys if points.get(key)}
        if found:
            drawn.append(_draw(folder / f"{name}.svg", title, found))
    return drawn


def read_points(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """(update, number) of every metric; an update that was skipped has none."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record.get("seconds"):
            record["rows_per_second"] = record["rows"] / record["seconds"]
        for key, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                points.setdefault(key, []).append((record["step"], value))
    return points


def _draw(path: Path, title: str, curves: dict[str, list[tuple[int, float]]]) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        noisy = len(points) > 2 * SMOOTHED
        (line,) = axes.plot(
            steps, values, linewidth=1.2, alpha=0.3 if noisy else 1, label=None if noisy else name
        )
        if noisy:
            axes.plot(*_means(points), color=line.get_color(), linewidth=1.6, label=name)
    axes.set(title=title, xlabel="updates")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(frameon=False)
    beside = path.with_suffix(".tmp")
    figure.savefig(beside, format="svg")
    plt.close(figure)
    os.replace(beside, path)
    return path


def _means(points: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Means of equal parts of a curve."""
    size = -(-len(points) // SMOOTHED)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    means = [[sum(column) / len(column) for column in zip(*part, strict=True)] for part in parts]
    return [step for step, _ in means], [value for _, value in means]
