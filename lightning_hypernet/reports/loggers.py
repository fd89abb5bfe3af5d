"""Loggers: figures of findings, for whatever logger takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning_hypernet.reports.findings import Findings


def figures(found: Findings) -> Iterator[tuple[str, Any]]:
    """Names and figures of matplotlib, which are closed when the next is asked for; none where matplotlib is not installed.

    Args:
        found: What was measured.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    for name, draw in (
        ("members", _members), ("disagreement", _disagreement), ("reliability", _reliability), ("layers", _layers),
        ("scatter", _scatter),
    ):  # fmt: skip
        figure = Figure(figsize=(5, 3.6), layout="constrained")
        if draw(found, figure.subplots()):
            yield name, figure


def send(logger: Any, name: str, figure: Any, step: int) -> bool:
    """Give a logger a figure, if it takes some.

    What it takes is seen from what it offers: TensorBoard's ``experiment.add_figure``, MLflow's ``experiment.log_figure``,
    which asks for the logger's ``run_id``, and ``log_image`` of the logger itself, as that of Weights & Biases has it.

    Args:
        logger: A logger of Lightning.
        name: Name of the figure.
        figure: A figure of matplotlib.
        step: The step of training.

    Returns:
        Whether it was taken.
    """
    experiment = getattr(logger, "experiment", None)
    run = getattr(logger, "run_id", None)
    if callable(taken := getattr(experiment, "add_figure", None)):
        taken(name, figure, global_step=step)
    elif run is not None and callable(taken := getattr(experiment, "log_figure", None)):
        taken(run, figure, f"{name}/{step:08d}.png")
    elif callable(taken := getattr(logger, "log_image", None)):
        taken(key=name, images=[figure], step=step)
    else:
        return False
    return True


def _members(found: Findings, axes: Any) -> bool:
    name = "accuracy" if found.kind == "classes" else "rmse"
    values = [row[name] for row in found.members if name in row]
    if values:
        axes.hist(values, bins=max(5, min(20, len(values) // 2)))
        axes.axvline(found.figures[f"ensemble_{name}"], color="tab:orange", label="all together")
        axes.set(xlabel=name, ylabel="networks")
        axes.legend()
    return bool(values)


def _disagreement(found: Findings, axes: Any) -> bool:
    if found.disagreement is None:
        return False
    image = axes.imshow(found.disagreement.numpy(), vmin=0)
    axes.figure.colorbar(image, label="disagreement")
    axes.set(xlabel="network", ylabel="network")
    return True


def _reliability(found: Findings, axes: Any) -> bool:
    if found.reliability is None:
        return False
    seen = found.reliability[found.reliability[:, 0] > 0]
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--")
    axes.plot(seen[:, 1].numpy(), seen[:, 2].numpy(), marker="o")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    return True


def _layers(found: Findings, axes: Any) -> bool:
    axes.bar(range(1, len(found.layers) + 1), [layer.spread for layer in found.layers])
    axes.set(xlabel="bank", ylabel="relative spread")
    return True


def _scatter(found: Findings, axes: Any) -> bool:
    if found.scatter is None or found.scatter.points.shape[1] < 2:
        return False
    axes.scatter(
        found.scatter.points[:, 0].numpy(),
        found.scatter.points[:, 1].numpy(),
        s=5,
        c=found.scatter.components.numpy(),
        cmap="tab10",
    )
    axes.set(xlabel="component 1", ylabel="component 2")
    return True
