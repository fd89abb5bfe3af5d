"""What the paper shows of a trained hypernetwork, as JSON and pictures, from a checkpoint of one of the three targets."""

import argparse
import json
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from cifar_resnet import resnet32
from data import Images, load, outside
from lightning_hypernet import Hypernet
from lightning_hypernet.analysis import accuracies, adversarial, averaging, filter_images, ood, paths, scatter
from lightning_hypernet.metrics import (
    EnsembleAccuracy,
    MemberAccuracy,
    SymmetryDistance,
    WeightCosine,
)
from mnist import PAPERS
from scores import BATCH, measure, show
from targets import TARGETS

EPSILONS = (0.05, 0.1, 0.15, 0.2)
AVERAGES = 8


def some(images: Images, count: int) -> Images:
    """So many images of a set, evenly spread over it."""
    step = max(1, len(images) // count)
    return Images(images.images[::step], images.labels[::step], images.mean.flatten(), images.std.flatten())


def many_ensembles(hypernet: Hypernet, images: Images, ensembles: int, members: int) -> tuple[dict[str, Any], Tensor]:
    """Accuracies of ensembles by majority and by mean probability, and of all their members."""
    majorities, means, singles = [], [], []
    for _ in range(ensembles):
        ensemble = hypernet.ensemble(members)
        kinds = (EnsembleAccuracy("majority"), EnsembleAccuracy(), MemberAccuracy("none"))
        metrics = [metric.to(images.images.device) for metric in kinds]
        show(metrics, ensemble.members, images)
        majority, mean, single = (metric.compute() for metric in metrics)
        majorities.append(float(majority))
        means.append(float(mean))
        singles.append(single.cpu())
    members_own = torch.cat(singles)
    mode = float((1000 * members_own).round().mode().values) / 10
    return {
        "ensembles": ensembles,
        "members": members,
        "images": len(images),
        "majority_mean": round(100 * float(np.mean(majorities)), 3),
        "majority_least": round(100 * min(majorities), 3),
        "mean_probability_mean": round(100 * float(np.mean(means)), 3),
        "member_mean": round(100 * float(members_own.mean()), 3),
        "member_least": round(100 * float(members_own.min()), 3),
        "member_best": round(100 * float(members_own.max()), 3),
        "member_mode": mode,
    }, members_own


@torch.no_grad()
def noise(hypernet: Hypernet, component: int | None, images: Images) -> dict[str, float]:
    """The control: one network with Gaussian noise on each weight, as large as the spread of a hundred sampled networks.

    Two such networks lie on a line through noise, so that the path between them is the same in weights and in noise.
    """
    spread = {name: value.std(0) for name, value in hypernet.sample(100, component).weights.items()}
    repeated = hypernet.sample(1, component)[torch.zeros(10, dtype=torch.long)]
    weights = {name: value + spread[name] * torch.randn_like(value) for name, value in repeated.weights.items()}
    middle = {name: (value[:5] + value[5:]) / 2 for name, value in weights.items()}
    noisy = replace(repeated, networks=repeated.networks.others(weights))
    halfway = replace(repeated[:5], networks=repeated.networks.others(middle))
    found = {"spread": round(float(torch.cat([value.flatten() for value in spread.values()]).square().mean().sqrt()), 5)}
    scores = measure(partial(hypernet.run, noisy), images)
    found |= {name: round(100 * scores[name], 2) for name in ("member_accuracy", "majority_accuracy", "disagreement")}
    between = accuracies(hypernet, halfway, images.loader(BATCH, shuffle=False))
    return found | {"paths_midpoint": round(100 * float(between.mean()), 2)}


def save(figure: Any, path: Path) -> None:
    """Write a picture."""
    figure.savefig(path, dpi=80)
    plt.close(figure)


def analyse(hypernet: Hypernet, images: Images, other: Path, training: list[Tensor], name: str, folder: Path) -> dict[str, Any]:
    """Paths, scatter, filters, attacks, detection, averages."""
    few = some(images, 1000)
    found: dict[str, Any] = {}
    for component in (0, None) if hypernet.components > 1 else (0,):
        where = "within_a_component" if component == 0 else "anywhere"
        lines = paths(hypernet, few.loader(BATCH, shuffle=False), pairs=6, points=11, component=component)
        found[f"paths_midpoint_{where}"] = {
            "direct": round(100 * float(lines.direct[:, 5].mean()), 2),
            "interpolated": round(100 * float(lines.interpolated[:, 5].mean()), 2),
            "ends": round(100 * float(lines.direct[:, [0, -1]].mean()), 2),
        }
        save(lines.plot()[0], folder / f"{name}_paths_{where}.png")
        found[f"noise_{where}"] = noise(hypernet, component, few)
    kernels = [key for key, shape in hypernet.banks.shapes.items() if len(shape) == 4]
    save(scatter(hypernet, samples=600, dimensions=4).plot()[0], folder / f"{name}_scatter.png")
    save(filter_images(hypernet, kernels[0]).plot()[0], folder / f"{name}_filters.png")
    size = float(1 / images.std.mean())
    for kind, attacked in (("targeted", 1), ("targeted", 10), ("fgsm", 1), ("pgd", 1)):
        loader = few.loader(100, shuffle=False)
        attack = adversarial(hypernet, loader, [size * one for one in EPSILONS], kind, attacked, ensemble=50)
        attack = replace(attack, sizes=torch.tensor(EPSILONS))
        found[f"adversarial_{kind}_on_{attacked}"] = {
            str(epsilon): {"attacked": round(100 * float(one), 2), "ensemble_of_50": round(100 * float(fifty), 2)}
            for epsilon, one, fifty in zip(EPSILONS, attack.attacked, attack.transferred, strict=True)
        }
        if (kind, attacked) == ("targeted", 1):
            save(attack.plot()[0], folder / f"{name}_adversarial.png")
    if other.exists():
        inside, outer = (one.loader(BATCH, shuffle=False) for one in (images, some(outside(other, images), 5000)))
        detection = ood(hypernet.ensemble(10).members, inside, outer)
        found["ood"] = {score: {key: round(value, 4) for key, value in one.items()} for score, one in detection.results.items()}
        save(detection.plot()[0], folder / f"{name}_ood.png")
    draws = [
        averaging(hypernet.ensemble(100, component=0), few.loader(BATCH, shuffle=False), training=training)
        for _ in range(AVERAGES)
    ]
    average = 100 * torch.stack([draw.average for draw in draws])
    ensemble = 100 * torch.stack([draw.ensemble for draw in draws]).mean(0)
    found["averaging_of_one_component"] = {
        str(count): {"averages": [round(value, 2) for value in values], "ensemble": round(many, 2)}
        for count, values, many in zip(draws[0].counts, average.T.tolist(), ensemble.tolist(), strict=True)
    }
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(draws[0].counts, average.T, color="tab:blue", alpha=0.5, label=["average of weights", *["_"] * (AVERAGES - 1)])
    axes.plot(draws[0].counts, ensemble, color="tab:orange", label="ensemble")
    axes.set(xlabel="networks", ylabel="accuracy, %", xscale="log")
    axes.legend()
    save(figure, folder / f"{name}_averaging.png")
    save(scatter(hypernet, 600, 4, bank="0").plot()[0], folder / f"{name}_scatter_layer.png")
    save(scatter(hypernet, 600, 4, bank="0", filter=0).plot()[0], folder / f"{name}_scatter_filter.png")
    save(filter_images(hypernet, kernels[1]).plot()[0], folder / f"{name}_filters_2.png")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="at.ckpt in the folder of a run")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--ensembles", type=int, default=20)
    parser.add_argument("--members", type=int, default=20, help="of each of these ensembles")
    parser.add_argument("--images", type=int, default=10_000, help="that these ensembles are tested on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(0)
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.checkpoint.parent.name
    kind, what, _ = name.rsplit("_", 2)
    small = kind == "mnist"
    data = "mnist" if small else "cifar10"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, images = (one.to(device) for one in load(data, options.data_dir, standardise=not (small and what in PAPERS)))
    target, example = (resnet32 if kind == "cifar_resnet" else TARGETS[data])(), images[0][0][None]
    hypernet = Hypernet.from_checkpoint(options.checkpoint, target, gauge="auto", example_inputs=example).to(device)
    training = [inputs for inputs, _ in islice(train.loader(BATCH, shuffle=True), 4)]
    hypernet.update_statistics(training)
    saved = torch.load(options.checkpoint, map_location="cpu")
    line = json.loads((options.checkpoint.parent / "journal.jsonl").read_text().splitlines()[-1])
    step = int(saved["global_step"])
    result: dict[str, Any] = {
        "step": step,
        "images": step * line["images"] // line["step"],
        "seconds": round(saved["callbacks"]["Journal"]["seconds"], 1),
    }
    result["ten_members"] = measure(hypernet.ensemble(10).members, images)
    weights = MetricCollection({"symmetry_distance": SymmetryDistance(hypernet), "cosine": WeightCosine()})
    weights.update(hypernet.sample(10))
    result["weights"] = {key: round(float(value), 4) for key, value in weights.compute().items()}
    print(json.dumps(result, indent=2), flush=True)
    fewer = some(images, options.images)
    result["ensembles"], singles = many_ensembles(hypernet, fewer, options.ensembles, options.members)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    tenths = np.arange(np.floor(1000 * float(singles.min())), np.ceil(1000 * float(singles.max())) + 1) / 10
    axes.hist(100 * singles, bins=tenths - 0.05)
    axes.axvline(result["ensembles"]["majority_mean"], color="tab:red", label="majority of an ensemble")
    axes.set(xlabel="test accuracy, %", ylabel="networks")
    axes.legend()
    save(figure, options.out / f"{name}_accuracy.png")
    other = options.data_dir / ("emnist_letters_test.npz" if small else "cifar100_ood.npz")
    result |= analyse(hypernet, images, other, training, name, options.out)
    if hypernet.components > 1:
        result["ten_members_of_one_component"] = measure(hypernet.ensemble(10, component=0).members, images)
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
