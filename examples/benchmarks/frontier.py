"""The frontier: what an ensemble costs and what it is worth, methods by budgets by data in one harness.

All methods have AdamW, the same images and changes of them, at most four settings, chosen by the calibrated likelihood of the
validation part under seeds of their own, and the schedule of the learning rate that suits them. The unit of cost is the images
that one network's training sees, forward and backward; beside it stands the processor time, divided by that of one network
whose training is interleaved. Every run is a line of JSON; what is there already is not run again.

    python frontier.py row digits ours --budget 1 --seeds 0 1 2 --out frontier.jsonl
    python frontier.py all mnist5k --data-dir DATA --out frontier.jsonl
    python frontier.py table frontier.jsonl
    python frontier.py plot frontier.jsonl frontier.png
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from frontier_methods import METHODS, Method, Setting
from frontier_ours import fit_quietly, quiet
from frontier_problems import PROBLEMS, Parts, Task
from frontier_scores import choice, scores
from frontier_table import plot, table
from frontier_training import fit
from timing import processor_seconds

TUNED_FROM = 100
"""The first seed that settings are tried with; those that are told lie below it."""
BEAT = 10
"""One network's training is timed before and after a run, for this part of its steps."""
COMPARED = ("problem", "method", "budget", "seed", "setting", "unit")
Line = dict[str, Any]


@dataclass
class Harness:
    """Runs what is not there yet.

    Args:
        problem: Name of the problem.
        out: File of JSON lines.
        folder: Where data sets lie.
        unit: Steps of one network's training; None: those of the problem. With them a setting is tried once.
    """

    problem: str
    out: Path
    folder: Path = Path()
    unit: int | None = None

    def __post_init__(self) -> None:
        self.lines = read(self.out)
        self._parts: tuple[int, Parts] | None = None

    def task(self, seed: int, budget: float) -> Task:
        """A training, whose random numbers begin at the seed."""
        problem = PROBLEMS[self.problem]
        if self._parts is None or self._parts[0] != seed:
            self._parts = (seed, problem.split(self.folder, seed))
        torch.manual_seed(seed)
        return Task(problem, self._parts[1], budget, seed, self.unit)

    def row(self, name: str, budget: float, seeds: Sequence[int], like: str | None = None) -> list[Line]:
        """The lines of a method at a budget, at the setting that is best on the validation part, for it or for another one."""
        judged = like or name
        method, problem = METHODS[judged], PROBLEMS[self.problem]
        tried = range(TUNED_FROM, TUNED_FROM + (problem.tuning if self.unit is None else 1))
        settings = [{**one, "lr": float(f"{one['lr'] * problem.lr:.3g}")} for one in method.settings]
        losses = [sum(self.run(judged, budget, seed, one)["validation"] for seed in tried) for one in settings]
        best = settings[losses.index(min(losses))]
        print(
            f"{judged} at {budget:g}: {json.dumps(best)}, of {len(losses)} settings tried with {len(tried)} seeds", flush=True
        )
        return [self.run(name, budget, seed, best) for seed in seeds]

    def run(self, name: str, budget: float, seed: int, setting: Setting) -> Line:
        """The line of one run, which is run and written down if it is not there."""
        key = {"problem": self.problem, "method": name, "budget": float(budget), "seed": seed, "setting": dict(setting)}
        key["unit"] = self.unit or PROBLEMS[self.problem].steps
        for line in self.lines:
            if all(line[word] == key[word] for word in COMPARED):
                return line
        line = key | self.measure(name, budget, seed, setting)
        self.lines.append(line)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def measure(self, name: str, budget: float, seed: int, setting: Setting) -> Line:
        """Train, and score: the validation part where settings are tried, else the test part, beside the time it took."""
        method, task = METHODS[name], self.task(seed, budget)
        if seed >= TUNED_FROM:
            return {"validation": choice(method.train(task, **setting), task.parts.validation)}
        before, task = self.beat(seed, method), self.task(seed, budget)
        seconds, trained = timed(lambda: method.train(task, **setting))
        beat = (before + self.beat(seed, method)) / 2
        curved = name.startswith("independent") and budget > 1
        told = {"tried": len(method.settings), "images": task.seen, "seconds": round(seconds, 3)}
        return told | {"relative_seconds": round(seconds / beat, 3)} | scores(trained, task.parts, curved)

    def beat(self, seed: int, method: Method) -> float:
        """Seconds of one network's training, from a part of it, in a trainer where the method is."""
        task = self.task(seed, 1 / BEAT)
        train = (lambda: fit_quietly(task, 1e-3, 0.0, [])) if method.in_trainer else None
        seconds, _ = timed(train or (lambda: fit(task.network(), task, task.steps, 1e-3, 0.0)))
        return seconds * (self.unit or task.problem.steps) / task.steps


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of some work, and what it returns."""
    start = processor_seconds()
    done = work()
    return processor_seconds() - start, done


def read(path: Path) -> list[Line]:
    """The lines of a file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def everything() -> list[tuple[str, float]]:
    """Every method at each of its budgets, the smallest of all methods first."""
    ranked = sorted((place, order, name, budget) for order, (name, method) in enumerate(METHODS.items())
                    for place, budget in enumerate(method.budgets))  # fmt: skip
    return [(name, budget) for _, _, name, budget in ranked]


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    main = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main.add_subparsers(dest="command", required=True)
    for name, told in (("row", "one method at one budget"), ("all", "every method at its budgets")):
        command = commands.add_parser(name, help=told)
        command.add_argument("problem", choices=tuple(PROBLEMS))
        if name == "row":
            command.add_argument("method", choices=tuple(METHODS))
            command.add_argument("--budget", type=float, default=1.0, help="images, in those of one network's training")
            command.add_argument(
                "--like", choices=tuple(METHODS), help="take this method's best setting; into a file of its own"
            )
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        command.add_argument("--out", type=Path, default=Path("frontier.jsonl"))
        command.add_argument("--data-dir", type=Path, default=Path())
        command.add_argument("--steps", type=int, help="of one network's training, for a glance")
    for name in ("table", "plot"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        if name == "plot":
            command.add_argument("picture", type=Path)
    return main


def main() -> None:
    options = parser().parse_args()
    quiet()
    if options.command == "table":
        print(table(read(options.file)))
    elif options.command == "plot":
        plot(read(options.file), options.picture)
    else:
        if max(options.seeds) >= TUNED_FROM:
            raise SystemExit(f"seeds from {TUNED_FROM} on are those that settings are tried with; take lower ones")
        harness = Harness(options.problem, options.out, options.data_dir, options.steps)
        one = options.command == "row"
        if one and options.like and set(METHODS[options.like].settings[0]) != set(METHODS[options.method].settings[0]):
            raise SystemExit(f"{options.method} can't be like {options.like}: their settings name other things")
        for name, budget in [(options.method, options.budget)] if one else everything():
            harness.row(name, budget, options.seeds, options.like if one else None)
        print(table([line for line in harness.lines if not one or line["method"] == options.method]))


if __name__ == "__main__":
    main()
