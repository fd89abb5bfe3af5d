"""Growth: how a step's time and memory follow the number of networks, the size of the target and the batch."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from outcome import Outcome
from targets import MLP, Case, mlp
from timing import FULL, QUICK, interleaved, medians, peak_memory
from training import BASELINE, bare_loop, ours

SYSTEMS = {
    BASELINE: bare_loop,
    "ours, default": ours,
    "ours, compact": functools.partial(ours, generator="compact"),
    "ours, default, with gauge and entropy": functools.partial(ours, diverse=True),
}
Points = dict[int, tuple[float, float]]
"""At every size, seconds and bytes."""


def of_width(width: int) -> Case:
    """An MLP of two hidden layers of a width."""
    return replace(MLP, make=lambda: mlp(64, width, width))


def axes(quick: bool) -> dict[str, tuple[str, dict[int, Case]]]:
    """For every axis what stays as it is, and the cases along it."""
    networks = (2, 4) if quick else (1, 2, 4, 8, 16, 32, 64)
    widths = (8, 16) if quick else (32, 64, 128, 256, 512, 1024)
    images = (2, 4) if quick else (1, 4, 16, 64, 256, 1024)
    start = 2 if quick else 8
    return {
        "networks": ("64-32-10, 16 images each", {n: replace(MLP, samples=n) for n in networks}),
        "width": (f"64-w-w-10, {start} networks, 16 images each", {w: replace(of_width(w), samples=start) for w in widths}),
        "images": (
            f"64-256-256-10, {start} networks",
            {n: replace(of_width(16 if quick else 256), samples=start, images=n) for n in images},
        ),
    }


def measure(cases: Mapping[int, Case], quick: bool) -> tuple[dict[str, Points], dict[str, dict[str, float | int]]]:
    """Every system at every size; gauge and entropy need two networks."""
    wanted = {
        (name, size): functools.partial(make, case)
        for name, make in SYSTEMS.items()
        for size, case in cases.items()
        if case.samples > 1 or "entropy" not in name
    }
    memory = {key: peak_memory(build) for key, build in wanted.items()}
    seconds = medians(interleaved({key: build() for key, build in wanted.items()}, QUICK if quick else FULL))
    points: dict[str, Points] = {name: {} for name in SYSTEMS}
    for (name, size), some in seconds.items():
        points[name][size] = some["median"], float(memory[name, size])
    return points, {f"{name} at {size}": some for (name, size), some in seconds.items()}


def exponent(points: Points, what: int) -> float:
    """The slope of the upper half of some points, both axes logarithmic."""
    upper = sorted(points)[len(points) // 2 :] if len(points) > 2 else sorted(points)
    return float(np.polyfit(np.log(upper), np.log([points[size][what] for size in upper]), 1)[0])


def draw(everything: Mapping[str, dict[str, Points]], path: Path) -> None:
    """One column an axis: time above, memory below."""
    figure = Figure(figsize=(4 * len(everything), 6.5), layout="constrained")
    panels = figure.subplots(2, len(everything), squeeze=False)
    for column, (axis, systems) in enumerate(everything.items()):
        for row, (label, unit) in enumerate((("ms a step", 1e3), ("peak memory, MiB", 2**-20))):
            panel = panels[row][column]
            for name, points in systems.items():
                panel.loglog(list(points), [unit * both[row] for both in points.values()], "o-", markersize=4, label=name)
            panel.set_xticks(sizes := list(systems[BASELINE]), [str(size) for size in sizes])
            panel.xaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_locator(NullLocator())
            panel.set_xlabel(axis)
            panel.set_ylabel(label)
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)


def growth(quick: bool, picture: Path) -> Iterator[Outcome]:
    """Along three axes; exponents are those of the upper half."""
    everything = {}
    for axis, (fixed, cases) in axes(quick).items():
        points, seconds = measure(cases, quick)
        everything[axis] = points
        shown = [size for size in cases if size in (min(cases), max(cases))]
        lines, fitted = [], {}
        for name, some in points.items():
            fitted[name] = exponent(some, 0), exponent(some, 1)
            cells = [f"{1e3 * some[n][0]:.1f} ms, {some[n][1] / 2**20:.1f} MiB" if n in some else "-" for n in shown]
            lines.append([name, *cells, *(f"{value:.2f}" for value in fitted[name])])
        columns = ["system", *(f"{axis}: {size}" for size in shown), "exponent of time", "of memory"]
        numbers = {"points": points, "seconds": seconds, "exponents": fitted}
        yield Outcome(f"growth with {axis}: {fixed}", columns, lines, numbers)
    draw(everything, picture)
