"""What a training step costs: the callback beside the same module without it, in Lightning's trainer.

Short trainings of both take turns in one process; printed is the ratio of the medians of a step's processor time, without the
steps at the start in which a backend is chosen.

    python cost.py digits
    python cost.py lenet resnet --data-dir DATA
"""

import argparse
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl

from frontier_ours import fit_quietly, quiet
from frontier_problems import PROBLEMS, Task
from lightning_hypernet import HypernetCallback
from timing import processor_seconds

OPTIONS: dict[str, Mapping[str, Any]] = {
    "nothing set": {}, "components=3": {"components": 3}, "ensemble": {"preset": "ensemble"},
    "manifold": {"preset": "manifold"},
}  # fmt: skip
FIRST = 10
"""Steps that are not counted."""


class Clock(pl.Callback):
    """Notes when steps begin."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        """Note the time."""
        self.times.append(processor_seconds())

    @property
    def seconds(self) -> list[float]:
        """Of every step that is counted."""
        return [later - time for time, later in pairwise(self.times[FIRST:])]


def steps(task: Task, callbacks: list[pl.Callback]) -> list[float]:
    """Seconds of the steps of one short training."""
    clock = Clock()
    fit_quietly(task, task.problem.lr, 0.05, [*callbacks, clock])
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="+", choices=tuple(PROBLEMS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=Path())
    options = parser.parse_args()
    if options.steps < FIRST + 2:
        raise SystemExit(f"the first {FIRST} steps are not counted; take {FIRST + 2} or more, not {options.steps}")
    quiet()
    for name in options.problems:
        problem = PROBLEMS[name]
        parts = problem.split(options.data_dir, 0)
        found: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for what in ("network", *OPTIONS):
                callbacks = [] if what == "network" else [HypernetCallback("model", **OPTIONS[what])]
                found.setdefault(what, []).extend(steps(Task(problem, parts, unit=options.steps), callbacks))
        plain = median(found.pop("network"))
        ratios = ", ".join(f"{what} {median(times) / plain:.2f}" for what, times in found.items())
        print(f"{name}: a step of one network {1e3 * plain:.1f} ms; {ratios}", flush=True)


if __name__ == "__main__":
    main()
