"""How noisy a step's gradient is, by how its networks are drawn: the variance over draws of one hypernetwork on one batch.

The latents of a step independent or in pairs of opposite signs, and its components by chance or evenly, as the prior draws
them. A hypernetwork is trained on scikit-learn's digits as in `frontier.py digits` for a sixth of the steps (at the end a few
draws hold nearly all of the variance); then the gradient of the cross-entropy is taken for many draws of its networks on one
batch. Printed is the sum of its variances, relative to the first way. With one component the first way and the last are the
same, so that their ratio shows what chance does.

    python rates.py --seeds 0 1 2
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from frontier import Harness
from frontier_ours import fit_quietly, quiet
from lightning_hypernet import Hypernet, HypernetCallback, Latents

NETWORKS, LR = 12, 0.01


def independent(hypernet: Hypernet) -> Latents:
    """Components evenly, as the prior draws them, and z independent."""
    return hypernet.prior.draw(NETWORKS)


def opposite(hypernet: Hypernet) -> Latents:
    """Pairs of z and -z of one component, components evenly."""
    half = hypernet.prior.draw(NETWORKS // 2)
    return Latents(torch.cat([half.z, -half.z]), half.component.repeat(2))


def by_chance(hypernet: Hypernet) -> Latents:
    """Components by chance, and z independent."""
    return Latents(hypernet.prior.draw(NETWORKS).z, torch.randint(hypernet.components, (NETWORKS,)))


WAYS: dict[str, Callable[[Hypernet], Latents]] = {
    "components evenly, z independent": independent, "components evenly, z in opposite pairs": opposite,
    "components by chance, z independent": by_chance,
}  # fmt: skip


def noise(hypernet: Hypernet, batch: tuple[Tensor, Tensor], way: Callable[[Hypernet], Latents], draws: int) -> float:
    """The sum of the variances of the gradient's numbers over draws of the networks."""
    images, labels = batch
    parameters = [parameter for parameter in hypernet.parameters() if parameter.requires_grad]
    total, square = [torch.zeros_like(one) for one in parameters], 0.0
    for _ in range(draws):
        with hypernet.step(latents=way(hypernet)):
            gradient = torch.autograd.grad(F.cross_entropy(hypernet(images), labels), parameters, materialize_grads=True)
        torch._foreach_add_(total, gradient)
        square += sum(float(one.square().sum()) for one in gradient)
    return square / draws - sum(float((one / draws).square().sum()) for one in total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--steps", type=int, default=100, help="of the training")
    options = parser.parse_args()
    quiet()
    for components in (1, 3):
        found: dict[str, list[float]] = {name: [] for name in WAYS}
        for seed in options.seeds:
            task = Harness("digits", Path("unused.jsonl"), unit=options.steps).task(seed, 1.0)
            chosen = {"samples": NETWORKS, "diversity": {"variance": 0.1}, "generator": {"pace": 4.0}}
            callback = HypernetCallback("model", components=components, **chosen)
            fit_quietly(task, LR, 0.05, [callback])
            hypernet, batch = callback.hypernet.train(), task.calm(1)[0]
            for name, way in WAYS.items():
                found[name].append(noise(hypernet, batch, way, options.draws))
        first = found[next(iter(WAYS))]
        for name, values in found.items():
            ratios = torch.tensor(values) / torch.tensor(first)
            print(f"{components} component(s), {name}: {ratios.mean():.2f}, seeds {[round(float(one), 2) for one in ratios]}")


if __name__ == "__main__":
    main()
