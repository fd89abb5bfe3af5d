"""Is the manifold of networks one? Members of one family, how they differ, and the ways between them.

For several weights of the variance, and one gauge: the members and their ensemble, on how many test images they disagree, and
the accuracy on the way between two networks, straight in weights and straight in latents. Beside them stand as many
independent networks as the problem's `independent-3` has, at the same images.

    python manifold.py mnist5k --seeds 0 1 2 --data-dir DATA
    python manifold.py mnist5k --seeds 0 1 2 3 4 5 6 7 8 9 --families "the preset" --data-dir DATA
"""

import argparse
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from frontier import Harness
from frontier_methods import METHODS
from frontier_ours import fit_quietly, quiet
from frontier_scores import scores
from frontier_table import spread
from frontier_training import MEMBERS, Trained
from lightning_hypernet import HypernetCallback
from lightning_hypernet.analysis import paths

SETTING = {"lr": 0.01, "weight_decay": 0.05}
OPTIONS: dict[str, Mapping[str, Any]] = {
    "variance 0.03": {"diversity": {"variance": 0.03}},
    "the preset": {"preset": "manifold"},
    "variance 0.3": {"diversity": {"variance": 0.3}},
    "variance 1": {"diversity": {"variance": 1.0}},
    "variance 1, gauge softmax": {"diversity": {"variance": 1.0}, "gauge": "softmax"},
}
WAYS = ("direct", "interpolated")
TOLD = ("member_accuracy", "accuracy", "cnll", "disagreement")
BATCHES, PAIRS, POINTS = 4, 6, 5
"""Batches of 500 test images, pairs of networks and points on each way."""


def family(harness: Harness, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of one family and the mean accuracies on both ways, in percent."""
    task = harness.task(seed, 1.0)
    callback = HypernetCallback("model", **options)
    fit_quietly(task, **SETTING, callbacks=[callback])
    hypernet = callback.hypernet.eval()
    ensemble = hypernet.ensemble(MEMBERS, loader=task.calm())
    images = list(islice(task.parts.test.loader(500, shuffle=False), BATCHES))
    ways = paths(hypernet, images, PAIRS, POINTS)
    found = {name: value for name, value in scores(Trained(ensemble.members), task.parts).items() if name in TOLD}
    return found | {name: (100 * getattr(ways, name).mean(0)).tolist() for name in WAYS}


def apart(harness: Harness, seed: int) -> dict[str, Any]:
    """The scores of three networks that know nothing of each other."""
    task = harness.task(seed, 1.0)
    return scores(METHODS["independent-3"].train(task, **SETTING), task.parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=("digits", "mnist5k"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--families", nargs="+", choices=tuple(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--steps", type=int, help="of a training, for a glance")
    parser.add_argument("--data-dir", type=Path, default=Path())
    options = parser.parse_args()
    quiet()
    harness = Harness(options.problem, Path("unused.jsonl"), options.data_dir, options.steps)
    for name in ("independent-3", *options.families):
        chosen = OPTIONS.get(name)
        runs = [apart(harness, seed) if chosen is None else family(harness, seed, chosen) for seed in options.seeds]
        line = {key: [one.round(4).tolist() for one in spread(runs, key)] for key in (*TOLD, *WAYS) if key in runs[0]}
        print(json.dumps({"family": name, "seeds": options.seeds, **line}), flush=True)


if __name__ == "__main__":
    main()
