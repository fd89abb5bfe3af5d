"""Other ways to many networks of one target, beside the hypernetwork.

``sgd``: independent networks. ``constant``: weights that SGD at a constant rate passes through, from the first of these on.
``dropout``: dropout kept on (MC-dropout). ``gaussian``, ``mnf`` and ``filter_norms``: variational posteriors, a callback each.
Writes RESULTS/baseline_DATA_KIND_SEED.json.
"""

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call

from data import AUGMENTED, Images, digits, load
from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.analysis import paths
from lightning_hypernet.metrics import MemberAccuracy
from scores import measure, show
from targets import TARGETS
from training import Classifier, fit

VARIATIONAL = {"gaussian": "mean_field", "mnf": "mnf", "filter_norms": "filter_norms"}
KINDS = ("sgd", "constant", "dropout", *VARIATIONAL)
BATCH = 128
MEMBERS = 10
PAIRS = 6


def with_dropout(target: nn.Sequential, p: float) -> nn.Sequential:
    """The target with dropout after every ReLU."""
    layers = [[layer, nn.Dropout(p)] if isinstance(layer, nn.ReLU) else [layer] for layer in target]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


def run_all(target: nn.Module, networks: list[Mapping[str, Tensor]], inputs: Tensor) -> Tensor:
    """Outputs of every network, ``(networks, batch, classes)``."""
    return torch.stack([functional_call(target, dict(weights), (inputs,)) for weights in networks])


def midpoints(hypernet: Hypernet, test: Images) -> dict[str, float]:
    """Mean accuracy in percent of the ends, and halfway between them in weights and in noise."""
    lines = paths(hypernet, test.loader(500, shuffle=False), pairs=PAIRS, points=3)
    found = {"ends": lines.direct[:, [0, -1]], "direct": lines.direct[:, 1], "interpolated": lines.interpolated[:, 1]}
    return {name: round(100 * float(one.mean()), 2) for name, one in found.items()}


def variational(kind: str, target: nn.Module, steps: int) -> tuple[Classifier, HypernetCallback]:
    """A classifier whose weights have a density, and their divergence from a prior in its loss, after a third of the steps."""
    divergence = {"kl": {"warmup": max(1, steps // 3)}}
    callback = HypernetCallback("model", distribution=VARIATIONAL[kind], diversity=divergence, samples=1, gauge="none")
    return Classifier(target, "adam", 3e-3, steps), callback


def sgd(data: str, train: Images, seed: int, steps: int, out: Path) -> tuple[nn.Module, float]:
    """One network by SGD, or the one that lies in `out` already, and the seconds it took."""
    pl.seed_everything(seed, verbose=False)
    module = Classifier(TARGETS[data](), "sgd", 0.05, steps, weight_decay=5e-4)
    journal = fit(module, train, BATCH, out / f"{data}_sgd_{seed}")
    return module.model.eval(), journal.seconds


def scores_of(target: nn.Module, networks: list[Mapping[str, Tensor]], test: Images) -> dict[str, Any]:
    """Every metric of the networks, and the accuracies of each and of the mean of their weights."""
    mean = {name: torch.stack([weights[name] for weights in networks]).mean(0) for name in networks[0]}
    accuracies = MemberAccuracy("none").to(test.images.device)
    show([accuracies], partial(run_all, target, [*networks, mean]), test)
    *each, average = (round(float(value), 5) for value in accuracies.compute())
    together = measure(partial(run_all, target, networks), test)
    return together | {"member_accuracies": each, "average_of_weights_accuracy": average}


class Snapshots(pl.Callback):
    """Keeps the weights at equal distances of a training.

    Args:
        every: Steps between two.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.networks: list[Mapping[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Keep them."""
        if trainer.global_step % self.every == 0:
            model: nn.Module = pl_module.model  # type: ignore[assignment]
            self.networks.append({name: value.detach().clone() for name, value in model.named_parameters()})

    def state_dict(self) -> dict[str, Any]:
        """The networks so far."""
        return {"networks": self.networks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from those networks."""
        self.networks = state_dict["networks"]


def constant_rate(
    first: nn.Module, data: str, train: Images, seed: int, steps: int, out: Path
) -> tuple[list[Mapping[str, Tensor]], float]:
    """Ten networks of a training that goes on from `first` at a constant rate, and the seconds it took."""
    pl.seed_everything(seed, verbose=False)
    snapshots = Snapshots(steps // MEMBERS)
    module = Classifier(first, "sgd", 0.02, steps, "constant")
    journal = fit(module, train, BATCH, out / f"{data}_constant_{seed}", [snapshots])
    return snapshots.networks[:MEMBERS], journal.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("data", choices=tuple(TARGETS))
    parser.add_argument("--data-dir", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000, help="of 128 images, for each network that is trained")
    parser.add_argument("--networks", type=int, default=MEMBERS, help="of `sgd`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    data, seed, steps = options.data, options.seed, options.steps
    train, test = digits() if data == "digits" else load(data, options.data_dir, **AUGMENTED[data])
    pl.seed_everything(seed, verbose=False)
    target = TARGETS[data]()
    result: dict[str, Any] = {"kind": options.kind, "data": data, "seed": seed, "images": BATCH * steps}
    count = {"sgd": options.networks, "constant": 1}.get(options.kind, 0)
    independent = [sgd(data, train, seed * options.networks + index, steps, options.out) for index in range(count)]
    seconds = sum(one for _, one in independent)
    networks = [dict(module.named_parameters()) for module, _ in independent]
    if options.kind == "sgd":
        result["images"] *= options.networks
        result |= scores_of(target, networks, test)
    elif options.kind == "constant":
        networks, more = constant_rate(independent[0][0], data, train, seed, steps, options.out)
        seconds += more
        result["images"] *= 2
        result |= scores_of(target, networks, test)
    elif options.kind == "dropout":
        module = Classifier(with_dropout(target, 0.1), "adam", 3e-3, steps)
        seconds = fit(module, train, BATCH, options.out / f"{data}_dropout_{seed}").seconds
        pl.seed_everything(seed, verbose=False)  # a training that lay there already must not change the draws
        model = module.model.train()
        result |= measure(lambda inputs: torch.stack([model(inputs) for _ in range(MEMBERS)]), test)
    else:
        module, callback = variational(options.kind, target, steps)
        seconds = fit(module, train, BATCH, options.out / f"{data}_{options.kind}_{seed}", [callback]).seconds
        hypernet = callback.hypernet.eval()
        weights = hypernet.sample(MEMBERS).weights
        networks = [{name: value[index] for name, value in weights.items()} for index in range(MEMBERS)]
        result |= scores_of(target, networks, test)
        result["paths_midpoint"] = midpoints(hypernet, test)
    result["seconds"] = round(seconds, 1)
    text = json.dumps(result, indent=2)
    (options.results / f"baseline_{data}_{options.kind}_{seed}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
