"""The bake-off: every diversity loss at three weights and mixtures of one to eight components, at matched images seen.

Appends a line of JSON for every setting to RESULTS/diversity_DATA.jsonl; settings that are there already are left out.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from data import Images, digits, load
from lightning_hypernet import HypernetCallback
from lightning_hypernet.metrics import SymmetryDistance
from scores import measure
from targets import TARGETS
from training import Classifier

WEIGHTS = {
    "entropy": (1e-4, 1e-3, 1e-2),
    "variance": (1e-3, 1e-2, 1e-1),
    "output_entropy": (1e-4, 1e-3, 1e-2),
    "ensemble": (0.1, 0.3, 1.0),
    "mutual_information": (0.01, 0.1, 1.0),
    "repulsion": (0.01, 0.1, 1.0),
}
KERNELS = tuple((method, space) for space in ("outputs", "weights") for method in ("kde", "svgd", "gfsf"))
BETTER = (("entropy", 1e-3), ("entropy", 1e-2), ("variance", 1e-2), ("variance", 1e-1), ("ensemble", 0.3))
TOGETHER = (
    {"variance": 1e-1, "entropy": 1e-3},
    {"variance": 1e-1, "ensemble": 0.3},
    {"entropy": 1e-3, "ensemble": 0.3},
)
COMPONENTS = (1, 2, 4, 8)
SHOWN = ("member_accuracy", "ensemble_accuracy", "ensemble_nll", "disagreement", "seconds")


def settings() -> Iterator[dict[str, Any]]:
    """Components alone, by either start; mean weights with the better losses, alone and in pairs; one mean code with all."""
    for start in ("mean_code", "mean_weights"):
        for components in COMPONENTS:
            yield {"start": start, "components": components, "diversity": {}}
    for losses in [*({name: weight} for name, weight in BETTER), *TOGETHER]:
        yield {"start": "mean_weights", "components": 4, "diversity": losses}
    for name, weight in BETTER:
        yield {"start": "mean_weights", "components": 1, "diversity": {name: weight}}
    for name, weights in WEIGHTS.items():
        for weight in weights:
            yield {"start": "mean_code", "components": 1, "diversity": {name: weight}}
    for method, space in KERNELS[1:]:
        for weight in WEIGHTS["repulsion"]:
            loss = {"weight": weight, "method": method, "space": space}
            yield {"start": "mean_code", "components": 1, "diversity": {"repulsion": loss}}


def run(setting: dict[str, Any], seed: int, data: str, steps: int, batch: int, sets: tuple[Images, Images]) -> dict[str, Any]:
    """Train one setting, eight networks a step, and measure ten members."""
    pl.seed_everything(seed, verbose=False)
    train, test = sets
    start = time.perf_counter()
    module = Classifier(TARGETS[data](), "adam", 3e-3, steps)
    callback = HypernetCallback(
        target="model",
        components=setting["components"],
        samples=8,
        generator={"hidden": (128, 128), "start": setting["start"]},
        example_inputs=train[0][0][None],
        diversity=setting["diversity"],
    )
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(module, train.loader(batch, shuffle=True))
    seconds = time.perf_counter() - start
    hypernet = callback.hypernet.eval()
    values = measure(hypernet.ensemble(10).members, test)
    distance = SymmetryDistance(hypernet)
    distance.update(hypernet.sample(10))
    return {
        **setting,
        "seed": seed,
        "images": steps * batch,
        "seconds": round(seconds, 1),
        "symmetry_distance": round(float(distance.compute()), 4),
        **values,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("digits", "mnist"))
    parser.add_argument("--data-dir", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"diversity_{options.data}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = [(line["start"], line["components"], line["diversity"], line["seed"], line["images"]) for line in lines]
    sets = digits() if options.data == "digits" else load("mnist", options.data_dir)
    batch = 128 if options.data == "digits" else 512
    for seed in options.seeds:
        for setting in settings():
            if (*setting.values(), seed, options.steps * batch) in done:
                continue
            result = run(setting, seed, options.data, options.steps, batch, sets)
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(setting, {key: result[key] for key in SHOWN}, flush=True)


if __name__ == "__main__":
    main()
