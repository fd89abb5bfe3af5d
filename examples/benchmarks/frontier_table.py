"""The frontier told: a table of means over seeds, and a picture of what is reached over what it costs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lightning_hypernet.metrics import deep_ensemble_equivalent

Line = dict[str, Any]
Key = tuple[str, str, float, int]
COLUMNS = {
    "member_accuracy": ("member %", 2), "member_nll": ("NLL", 4), "accuracy": ("ensemble %", 2), "nll": ("NLL", 4),
    "cnll": ("cNLL", 4), "ece": ("ECE %", 2), "disagreement": ("disagree %", 2), "auroc": ("AUROC %", 2),
    "one_accuracy": ("one network %", 2), "one_nll": ("NLL", 4), "one_cnll": ("cNLL", 4),
}  # fmt: skip
"""Scores that a table shows: their column and digits."""
PANELS = (("budget", "accuracy", 1), ("budget", "cnll", -1), ("relative_seconds", "cnll", -1))
"""What the picture shows: a cost, a score, and whether more of it is better."""
TOLD = {
    "budget": "images, in those of one network's training", "relative_seconds": "processor time, in that of one network's",
    "accuracy": "accuracy, %", "cnll": "calibrated NLL, nats",
}  # fmt: skip
MARKERS = "os^DvPX<>"
TICKS = (0.5, 1, 2, 3, 5, 10)
ASIDE = 0.3
"""Points at the same images stand beside each other, over this share of the way."""
ROUNDED = 1e-6
"""What lines are rounded to."""


def grouped(lines: Sequence[Line]) -> dict[Key, list[Line]]:
    """Runs that were scored, by problem, method, budget and the steps of a unit; those that settings were tried with aside."""
    found: dict[Key, list[Line]] = {}
    for line in lines:
        if "accuracy" in line:
            found.setdefault((line["problem"], line["method"], line["budget"], line["unit"]), []).append(line)
    return found


def mean(runs: Sequence[Line], name: str, digits: int) -> str:
    """Mean and standard error of a score, or a dash."""
    there = [run for run in runs if name in run]
    if not there:
        return "-"
    value, error = spread(there, name)
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if len(there) > 1 else "")


def curve_of(groups: dict[Key, list[Line]], problem: str, unit: int) -> list[float]:
    """The best calibrated log-likelihood of at most 1, 2, ... independent networks at full cost, at any setting chosen.

    Every such ensemble tells what fewer of its networks reach; a setting that suits ten may suit one badly.
    """
    curves = [
        np.mean([run.get("curve", [run["cnll"]]) for run in runs], 0)
        for (of, method, budget, steps), runs in groups.items()
        if (of, steps) == (problem, unit)
        and (method, budget) in (("network", 1), (f"independent-{budget:g}", budget))
        and (budget == 1 or all("curve" in run for run in runs))
    ]
    if not any(len(curve) > 1 for curve in curves):
        return []
    longest = max(len(curve) for curve in curves)
    best = [min(curve[index] for curve in curves if len(curve) > index) for index in range(longest)]
    return [-float(value) for value in np.minimum.accumulate(best)]


def equivalent(runs: Sequence[Line], curve: Sequence[float]) -> str:
    """How many independent networks at full cost the ensemble is worth, or a dash if there are none to compare with."""
    if not curve:
        return "-"
    worth = deep_ensemble_equivalent(-float(np.mean([run["cnll"] for run in runs])) - ROUNDED, curve)
    return f"> {len(curve)}" if math.isinf(worth) else f"{worth:.1f}"


def beside(runs: Sequence[Line], network: Sequence[Line]) -> str:
    """How far the calibrated likelihood lies from one network's of the same images, seed by seed; a dash if there is none."""
    theirs = {run["seed"]: run["cnll"] for run in network}
    pairs = [{"difference": run["cnll"] - theirs[run["seed"]]} for run in runs if run["seed"] in theirs]
    value, error = spread(pairs, "difference") if len(pairs) > 1 else (math.nan, 0.0)
    return "-" if runs is network or math.isnan(value) else f"{value:+.4f} ± {error:.4f}"


def table(lines: Sequence[Line]) -> str:
    """A table in Markdown for every problem, means over seeds with their standard errors."""
    groups, text = grouped(lines), []
    for problem, unit in dict.fromkeys((key[0], key[3]) for key in groups):
        own = {key: runs for key, runs in groups.items() if (key[0], key[3]) == (problem, unit)}
        first = next(iter(own.values()))[0]
        text.append(f"\n{problem}, {unit} steps a network; AUROC against {first['other']}\n")
        heads = ["method", "images", "seconds", "seeds", "members", *(head for head, _ in COLUMNS.values())]
        heads += ["beside network", "worth", "setting"]
        text += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        curve = curve_of(groups, problem, unit)
        for (_, method, budget, _), runs in own.items():
            network = own.get((problem, "network", budget, unit), [])
            told = [mean(runs, name, digits) for name, (_, digits) in COLUMNS.items()]
            settings = {", ".join(f"{word} {value:g}" for word, value in run["setting"].items()) for run in runs}
            size = f"{runs[0]['members']}"
            cells = [method, f"{budget:g}", f"{median(runs, 'relative_seconds'):.2f}", f"{len(runs)}", size]
            cells += [*told, beside(runs, network), equivalent(runs, curve)]
            cells += [f"{'; '.join(sorted(settings))}; of {runs[0]['tried']}"]
            text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def plot(lines: Sequence[Line], path: Path) -> None:
    """Accuracy and calibrated likelihood over the images seen, and likelihood over seconds: a row for every problem.

    Bars are standard errors. The grey line joins what nothing else beats at its cost, seen as means.
    """
    groups = grouped(lines)
    problems = list(dict.fromkeys((key[0], key[3]) for key in groups))
    if not problems:
        raise SystemExit("there is no run that was scored: run `row` or `all` first")
    names = sorted({key[1] for key in groups}, key=lambda name: (not name.startswith("ours"), name))
    figure = Figure(figsize=(15, 4.5 * len(problems)), layout="constrained")
    for row, of in zip(figure.subplots(len(problems), len(PANELS), squeeze=False), problems, strict=True):
        own = {(key[1], key[2]): runs for key, runs in groups.items() if (key[0], key[3]) == of}
        for ax, (cost, score, sign) in zip(row, PANELS, strict=True):
            points = {key: (median(runs, cost), *spread(runs, score)) for key, runs in own.items()}
            for index, name in enumerate(names):
                chosen = [points[key] for key in sorted(points) if key[0] == name]
                if chosen:
                    x, y, error = np.array(chosen).T
                    x = x * (1 + ASIDE * (index / len(names) - 0.5) * (cost == "budget"))
                    ours = name.startswith("ours")
                    style = {
                        "color": f"C{index % 10}" if ours else f"C{(index + 3) % 10}",
                        "marker": MARKERS[index % len(MARKERS)],
                    }
                    ax.errorbar(x, y, error, label=name, alpha=1.0 if ours else 0.5, markersize=9 if ours else 6,
                                linewidth=1, **style)  # fmt: skip
            front = unbeaten([(x, y) for x, y, _ in points.values()], sign)
            ax.step(*zip(*front, strict=True), where="post", color="0.6", linewidth=1, zorder=0)
            ax.set_xscale("log")
            ax.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
            ax.set_xticks([], minor=True)
            ax.set(xlabel=TOLD[cost], ylabel=TOLD[score], title=f"{of[0]}, {of[1]:,} steps a network")
        row[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "frontier"}):
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def median(runs: Sequence[Line], name: str) -> float:
    """The median of a score."""
    return float(np.median([run[name] for run in runs]))


def spread(runs: Sequence[Line], name: str) -> tuple[Any, Any]:
    """Mean and standard error of a score, or of each of a list of them; of one run 0."""
    values = np.array([run[name] for run in runs], dtype=float)
    return values.mean(0), values.std(0, ddof=min(1, len(values) - 1)) / len(values) ** 0.5


def unbeaten(points: Sequence[tuple[float, float]], sign: int) -> list[tuple[float, float]]:
    """Those of points (cost, score) that none of less or equal cost beats, by cost; the sign is 1 where more is better."""
    found: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not found or sign * score > sign * found[-1][1]:
            found.append((cost, score))
    return found
