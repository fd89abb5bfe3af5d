"""Which gauge trains better? Two diversity losses of weights under four gauges, on scikit-learn's digits or images of MNIST.

The paper leaves it open. The data, the target, the optimizer and the schedule are those of `frontier.py`, the learning rate is
0.01. Of several weights of each loss the validation part chooses one for every gauge, under seeds that are not reported.

    python gauges.py --seeds 0 1 2 3 4
    python gauges.py --problem mnist5k --seeds 0 1 2 --entropy 0.001 --variance 0.1 --data-dir DATA
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from frontier import TUNED_FROM, Harness
from frontier_ours import hypernetwork, quiet
from frontier_scores import choice, scores
from frontier_table import mean

GAUGES = ("none", "scale", "softmax", "permutation")
WEIGHTS = {"entropy": (1e-4, 1e-3, 1e-2), "variance": (0.03, 0.1, 0.3)}
SETTING = {"lr": 0.01, "weight_decay": 0.05}
SHOWN = {"member_accuracy": "member %", "accuracy": "ensemble %", "cnll": "cNLL", "disagreement": "disagree %"}


def trained(harness: Harness, gauge: str, loss: str, weight: float, seed: int) -> tuple[Any, Any]:
    """What a training leaves, and the images of its seed."""
    task = harness.task(seed, 1.0)
    return hypernetwork(task, **SETTING, gauge=gauge, diversity={loss: weight}), task.parts


def row(
    harness: Harness, gauge: str, loss: str, weights: list[float], seeds: list[int]
) -> tuple[float, list[dict[str, float]]]:
    """The weight that was chosen, and the scores of every seed."""
    tried = []
    for weight in weights if len(weights) > 1 else ():
        pairs = [trained(harness, gauge, loss, weight, TUNED_FROM + index) for index in range(2)]
        tried.append(sum(choice(networks, parts.validation) for networks, parts in pairs))
    best = weights[int(np.argmin(tried))] if tried else weights[0]
    return best, [scores(*trained(harness, gauge, loss, best, seed), False) for seed in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--problem", choices=("digits", "mnist5k"), default="digits")
    parser.add_argument("--data-dir", type=Path, default=Path())
    for loss, weights in WEIGHTS.items():
        parser.add_argument(f"--{loss}", type=float, nargs="+", default=list(weights), help="weights to choose from")
    parser.add_argument("--gauges", nargs="+", choices=GAUGES, default=list(GAUGES))
    parser.add_argument("--steps", type=int, help="of a training, for a glance")
    options = parser.parse_args()
    quiet()
    harness = Harness(options.problem, Path("unused.jsonl"), options.data_dir, options.steps)
    title = f"{options.problem}, seeds {options.seeds}, ± a standard error"
    table = Table("loss", "gauge", "weight", *SHOWN.values(), title=title)
    for loss in WEIGHTS:
        for gauge in options.gauges:
            weight, runs = row(harness, gauge, loss, getattr(options, loss), options.seeds)
            line = {"loss": loss, "gauge": gauge, "weight": weight, **{name: [run[name] for run in runs] for name in SHOWN}}
            print(json.dumps(line), flush=True)
            table.add_row(loss, gauge, f"{weight:g}", *(mean(runs, name, 4) for name in SHOWN))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
