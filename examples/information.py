"""Information, each figure beside its maximum: of latents and networks, of layers, of factors, of a task's codes.

Generators of a small classifier of scikit-learn's digits, with and without a diversity loss, and a mean-field distribution to
compare with; then an autoencoder of the digits with and without a penalty on its codes' total correlation. About two minutes
on one core.
"""

import argparse
import importlib.util
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet import Hypernet, Population
from lightning_hypernet.analysis import latent_information, layer_dependence, mutual_information_gap
from lightning_hypernet.diversity import Variance
from lightning_hypernet.information import RateTerms, drawn, rate_terms
from lightning_hypernet.metrics import Disagreement

TRAIN, COMPONENTS, NOISE = 1000, 4, 0.1


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Images and labels, in random order."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]


def trained(images: Tensor, labels: Tensor, steps: int, seed: int, diversity: float = 0.0, **options: object) -> Hypernet:
    """A Hypernet of a perceptron with three layers, with a weight of the variance loss."""
    torch.manual_seed(seed)
    target = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    if "distribution" not in options:
        options["generator"] = {"pace": 4.0}  # z has to tell
    hypernet = Hypernet(target, example_inputs=images[:2], samples=8, **options)
    variance, optimizer = Variance(), torch.optim.Adam(hypernet.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        at = torch.randint(TRAIN, (128,))
        optimizer.zero_grad()
        loss = F.cross_entropy(hypernet(images[at]), labels[at])
        if diversity:
            loss = loss + diversity * variance(hypernet.population)
        loss.backward()
        optimizer.step()
        schedule.step()
    return hypernet.eval()


class Autoencoder(nn.Module):
    """Codes of four numbers, Gaussian, of images of bits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 64))

    def loss(self, images: Tensor, examples: int, beta: float) -> Tensor:
        """Minus the bound on the evidence, whose rate weighs the total correlation by beta."""
        mean, log_std = self.encoder(images).chunk(2, 1)
        z = drawn(mean, log_std)
        terms = rate_terms(mean, log_std, z, examples)
        lost = F.binary_cross_entropy_with_logits(self.decoder(z[0]), images, reduction="none").sum(1).mean()
        return lost + terms.weighted(beta)


def codes(images: Tensor, steps: int, seed: int, beta: float) -> RateTerms:
    """Train an autoencoder, and take the rate of all its codes apart, by the full sum."""
    torch.manual_seed(seed)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        at = torch.randperm(len(images))[:128]
        optimizer.zero_grad()
        model.loss(images[at], len(images), beta).backward()
        optimizer.step()
    with torch.no_grad():
        mean, log_std = model.encoder(images).double().chunk(2, 1)
        return rate_terms(mean, log_std, drawn(mean, log_std, 5))


@torch.no_grad()
def factors(hypernet: Hypernet, population: Population, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What is measured of networks: the size of each layer, and how many of the eights are found."""
    sizes = {f"norm {bank.name}": bank.flatten(population.weights).flatten(1).norm(dim=1) for bank in hypernet.banks}
    eights = hypernet.run(population, images[labels == 8]).argmax(-1) == 8
    return {**sizes, "eights": eights.double().mean(1)}


@torch.no_grad()
def disagreement(hypernet: Hypernet, images: Tensor, labels: Tensor) -> float:
    """Of the members, in percent."""
    return 100 * float(Disagreement()(hypernet.ensemble(20).members(images).softmax(-1), labels))


def shown(name: str, value: float, maximum: float | str, error: float | None = None) -> None:
    """Print a figure beside its maximum."""
    most = maximum if isinstance(maximum, str) else f"{maximum:.4f}"
    print(f"{name}: {value:.4f}\n{name}_maximum: {most}")
    if error is not None:
        print(f"{name}_standard_error: {error:.4f}")


def main() -> None:
    """Train, measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("information.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = data(args.seed)
    tests, probes, truth = images[TRAIN:], images[TRAIN : TRAIN + 20], labels[TRAIN:]
    fig, axes = plt.subplots(2, 3, figsize=(15, 9), layout="constrained")

    options = {"latent_dim": 8, "components": COMPONENTS}
    generators = {
        name: trained(images, labels, args.steps, args.seed, weight, **options)
        for name, weight in (("plain", 0.0), ("diverse", 0.3))
    }
    told = []
    for name, hypernet in generators.items():

        def predictions(population: Population, hypernet: Hypernet = hypernet) -> Tensor:
            return hypernet.run(population, probes).softmax(-1)

        counts = {"networks": args.networks, "held_out": args.networks // 2, "seed": args.seed}
        found = {
            "component_from_predictions": latent_information(hypernet, predictions, "component", noise=NOISE, **counts),
            "z_from_predictions": latent_information(hypernet, predictions, noise=NOISE, **counts),
            "z_from_weights": latent_information(hypernet, **counts),
        }
        for what, one in found.items():
            shown(f"{name}_{what}", one.bound, "none" if one.maximum == float("inf") else one.maximum, one.error)
        shown(
            f"{name}_z_from_weights_contrastive",
            found["z_from_weights"].contrastive,
            found["z_from_weights"].contrastive_maximum,
        )
        print(f"{name}_disagreement_percent: {disagreement(hypernet, tests, truth):.4f}")
        told.append((name, found))
    for shift, (name, found) in zip((-0.2, 0.2), told, strict=True):
        values = [one.bound for one in found.values()]
        axes[0, 0].bar([place + shift for place in range(3)], values, 0.38, label=name)
        for place, one in enumerate(found.values()):
            if one.maximum != float("inf"):
                axes[0, 0].hlines(one.maximum, place + shift - 0.19, place + shift + 0.19, color="black", linewidth=2)
            else:
                axes[0, 0].annotate("no\nmaximum", (place + shift, one.bound), ha="center", va="bottom", fontsize=8)
    axes[0, 0].set_xticks(range(3), [what.replace("_from_", "\nfrom ") for what in told[0][1]])
    axes[0, 0].set(ylabel="nats, at least (black: maximum)", title="what networks tell of their latents")
    axes[0, 0].margins(y=0.15)
    axes[0, 0].legend()

    diverse = generators["diverse"]
    with torch.no_grad():
        population = diverse.sample(args.networks, component=0)
    gap = mutual_information_gap(population.latents.z, factors(diverse, population, tests, truth), bins=5)
    shown("information_gap", gap.mean, 1.0)
    for index, name in enumerate(gap.factors):
        shown(f"told_of_{name.replace(' ', '_')}", float(gap.matrix[:, index].max()), float(gap.entropies[index]))
    gap.plot(axes[0, 1])

    independent = trained(images, labels, args.steps, args.seed, distribution="mean_field")
    graphs = [("generator", diverse, False), ("mean_field", independent, False)]
    if importlib.util.find_spec("ennemi"):
        graphs.append(("generator_given_the_third", diverse, True))
    for (name, hypernet, conditional), ax in zip(graphs, axes[1], strict=False):
        graph = layer_dependence(hypernet, 2 * args.networks, conditional=conditional, seed=args.seed)
        upper = graph.matrix[torch.triu_indices(3, 3, 1).unbind()]
        shown(f"{name}_most_shared_by_layers", float(upper.max()), graph.maximum)
        shown(f"{name}_least_shared_by_layers", float(upper.min()), graph.maximum)
        print(f"{name}_chance: {graph.chance:.4f}\n{name}_edges: {len(graph.edges)}")
        graph.plot(ax)
        ax.set_title(f"{name.replace('_', ' ')}: {ax.get_title()}", fontsize=9)
    for ax in axes[1, len(graphs) :]:
        ax.axis("off")

    bits = images[:TRAIN].round()
    rates = {beta: codes(bits, 4 * args.steps, args.seed, beta) for beta in (1.0, 6.0)}
    for shift, (beta, terms) in zip((-0.2, 0.2), rates.items(), strict=True):
        parts = {
            "index_code": terms.index_code, "total_correlation": terms.total_correlation, "dimension_wise": terms.dimension_wise
        }  # fmt: skip
        for name, value in parts.items():
            shown(f"beta{beta:.0f}_{name}", float(value), terms.maximum if name == "index_code" else "none")
        axes[0, 2].bar(
            [place + shift for place in range(3)], [float(value) for value in parts.values()], 0.38, label=f"β = {beta:.0f}"
        )
    axes[0, 2].hlines(terms.maximum, -0.4, 0.4, color="black", linewidth=2)
    axes[0, 2].set_xticks(range(3), [name.replace("_", "\n") for name in parts])
    axes[0, 2].set(ylabel="nats (black: maximum)", title="the rate of an autoencoder's codes")
    axes[0, 2].legend()
    fig.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
