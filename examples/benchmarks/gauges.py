"""Which gauge trains better? Two diversity losses of weights under four gauges, on scikit-learn's digits.

The paper leaves it open. The data, the target, the optimizer and the schedule are those of `frontier.py digits`, the learning
rate is 0.01. Of three weights of each loss the validation part chooses one for every gauge, under seeds that are not reported.

    python gauges.py --seeds 0 1 2 3 4
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from frontier import TUNED_FROM, Harness
from frontier_ours import hypernetwork
from frontier_scores import choice, scores

GAUGES = ("none", "scale", "softmax", "permutation")
WEIGHTS = {"entropy": (1e-4, 1e-3, 1e-2), "variance": (0.03, 0.1, 0.3)}
SETTING = {"lr": 0.01, "weight_decay": 0.05}
SHOWN = {"member_accuracy": "member %", "accuracy": "ensemble %", "cnll": "cNLL", "disagreement": "disagree %"}


def trained(harness: Harness, gauge: str, loss: str, weight: float, seed: int) -> tuple[Any, Any]:
    """What a training leaves, and the images of its seed."""
    task = harness.task(seed, 1.0)
    return hypernetwork(task, **SETTING, gauge=gauge, diversity={loss: weight}), task.parts


def row(harness: Harness, gauge: str, loss: str, seeds: list[int]) -> tuple[float, list[dict[str, float]]]:
    """The weight that was chosen, and the scores of every seed."""
    tried = []
    for weight in WEIGHTS[loss]:
        pairs = [trained(harness, gauge, loss, weight, TUNED_FROM + index) for index in range(2)]
        tried.append(sum(choice(networks, parts.validation) for networks, parts in pairs))
    best = WEIGHTS[loss][int(np.argmin(tried))]
    return best, [scores(*trained(harness, gauge, loss, best, seed), False) for seed in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--gauges", nargs="+", choices=GAUGES, default=list(GAUGES))
    parser.add_argument("--steps", type=int, help="of a training, for a glance")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for logger in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    harness = Harness("digits", Path("unused.jsonl"), unit=options.steps)
    table = Table("loss", "gauge", "weight", *SHOWN.values(), title=f"digits, seeds {options.seeds}, ± a standard error")
    for loss in WEIGHTS:
        for gauge in options.gauges:
            weight, runs = row(harness, gauge, loss, options.seeds)
            found = {name: np.array([run[name] for run in runs]) for name in SHOWN}
            line = {"loss": loss, "gauge": gauge, "weight": weight, **{name: one.tolist() for name, one in found.items()}}
            print(json.dumps(line), flush=True)
            error = max(len(runs), 2) ** -0.5
            told = [f"{v.mean():.4f} ± {error * v.std(ddof=int(len(v) > 1)):.4f}" for v in found.values()]
            table.add_row(loss, gauge, f"{weight:g}", *told)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
