"""Ways to ten networks of one small classifier: each kind is a function of training images and labels, and a number of steps.

It returns a function from images ``(batch, 64)`` to the ten networks' logits ``(10, batch, 10)``.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import HypernetCallback
from linearised import Linearised
from noisy import NaturalGradient
from noisy_adam import NoisyAdam
from noisy_kfac import NoisyKFAC
from swag import SWAG

MEMBERS, BATCH = 10, 100
WHOLE = 400
"""Images of a step of the hypernetwork, which deals them out to its networks."""
Members = Callable[[Tensor], Tensor]


def network(dropout: float = 0.0) -> nn.Sequential:
    """The classifier, of 1,210 weights."""
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 10))


def order(count: int, steps: int, batch: int = BATCH) -> list[Tensor]:
    """The numbers of the images of so many batches, each image once before any comes again."""
    size = min(batch, count)
    rounds = [torch.randperm(count)[: count // size * size].split(size) for _ in range(1 + steps // (count // size))]
    return [chosen for one in rounds for chosen in one][:steps]


def batches(images: Tensor, labels: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches."""
    return ((images[chosen], labels[chosen]) for chosen in order(len(labels), steps))


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Down to zero along a cosine."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def fit(module: nn.Module, images: Tensor, labels: Tensor, steps: int, lr: float = 1e-2) -> None:
    """Adam along a cosine."""
    optimizer = torch.optim.Adam(module.parameters(), lr)
    scheduler = cosine(optimizer, steps)
    for x, y in batches(images, labels, steps):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
        scheduler.step()


def several(draw: Callable[[], Any], module: nn.Module) -> Members:
    """Ten draws of a module's weights, kept."""
    kept = []
    for _ in range(MEMBERS):
        draw()
        kept.append({name: one.detach().clone() for name, one in module.named_parameters()})
    return lambda images: torch.stack([functional_call(module, weights, (images,)) for weights in kept])


def ten_networks(images: Tensor, labels: Tensor, steps: int, lr: float = 1e-2) -> Members:
    """Independent networks by Adam, each with images of its own: ten times the training."""
    modules = [network() for _ in range(MEMBERS)]
    weights, _ = stack_module_state(modules)
    run = vmap(lambda one, x: functional_call(modules[0], one, (x,)), randomness="different")
    optimizer = torch.optim.Adam(weights.values(), lr)
    scheduler = cosine(optimizer, steps)
    for pairs in zip(*[batches(images, labels, steps) for _ in modules], strict=True):
        x, y = (torch.stack(part) for part in zip(*pairs, strict=True))
        optimizer.zero_grad()
        (MEMBERS * F.cross_entropy(run(weights, x).flatten(0, 1), y.flatten())).backward()
        optimizer.step()
        scheduler.step()
    return lambda images: run({name: one.detach() for name, one in weights.items()}, images.expand(MEMBERS, -1, -1))


def noisy(optimizer: NaturalGradient, module: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Members:
    """Ten draws from what a natural gradient fits, its curvature from labels that the network draws."""
    scheduler = cosine(optimizer, steps)
    for x, y in batches(images, labels, steps):

        def sampled(x: Tensor = x) -> Tensor:
            logits = module(x)
            drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
            return F.cross_entropy(logits, drawn, reduction="none")

        optimizer.step(lambda x=x, y=y: F.cross_entropy(module(x), y, reduction="none"), sampled)
        scheduler.step()
    return several(optimizer.draw, module)


def noisy_adam(images: Tensor, labels: Tensor, steps: int, **options: Any) -> Members:
    """Noisy Adam: independent weights."""
    module = network()
    given = {"lr": 3e-2, "kl": 0.01, "variance": 0.1, "damping": 1e-2, "betas": (0.9, 0.999)} | options
    return noisy(NoisyAdam(module.parameters(), examples=len(labels), **given), module, images, labels, steps)


def noisy_kfac(images: Tensor, labels: Tensor, steps: int, **options: Any) -> Members:
    """Noisy K-FAC: a Kronecker product in each layer."""
    module = network()
    given = {"lr": 1e-2, "kl": 0.03, "variance": 0.1, "damping": 1e-2, "betas": (0.9, 0.99)} | options
    return noisy(NoisyKFAC(module, examples=len(labels), **given), module, images, labels, steps)


def swag(images: Tensor, labels: Tensor, steps: int, lr: float = 0.1, share: float = 0.25) -> Members:
    """SWAG: SGD at a constant rate for the last part of the steps, its weights collected every fourth."""
    module = network()
    last = round(share * steps)
    fit(module, images, labels, steps - last)
    optimizer, collected = torch.optim.SGD(module.parameters(), lr, momentum=0.9), SWAG(module)
    for step, (x, y) in enumerate(batches(images, labels, last)):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
        if step % 4 == 3:
            collected.collect()
    return several(collected.draw, module)


def dropout(images: Tensor, labels: Tensor, steps: int, rate: float = 0.05) -> Members:
    """MC-dropout: ten passes with dropout left on, each with masks of its own for every image."""
    module = network(rate)
    fit(module, images, labels, steps)
    return lambda images: torch.stack([module.train()(images) for _ in range(MEMBERS)])


def laplace(images: Tensor, labels: Tensor, steps: int, temperature: float = 0.03) -> Members:
    """Laplace around one network, colder than the exact one; where laplace-torch is installed."""
    module = network()
    fit(module, images, labels, steps)
    return Linearised(module, images, labels, MEMBERS, temperature)


class Classifier(pl.LightningModule):
    """An ordinary LightningModule, trained as `fit` does."""

    def __init__(self, steps: int, lr: float) -> None:
        super().__init__()
        self.model, self.steps, self.lr = network(), steps, lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam along a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine(optimizer, self.steps), "interval": "step"}}


def ours(images: Tensor, labels: Tensor, steps: int, lr: float = 3e-3, **options: Any) -> Members:
    """The hypernetwork: the callback as it is, on the module that has one network otherwise."""
    callback = HypernetCallback("model", **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer = pl.Trainer(
            max_steps=steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        loader = DataLoader(TensorDataset(images, labels), batch_size=None, sampler=order(len(labels), steps, WHOLE))  # type: ignore[arg-type]
        trainer.fit(Classifier(steps, lr), loader)
    return callback.hypernet.eval().ensemble(MEMBERS).members


def ours_manifold(images: Tensor, labels: Tensor, steps: int, **options: Any) -> Members:
    """The hypernetwork with a loss that keeps its networks apart, which the package has as a preset."""
    return ours(images, labels, steps, preset="manifold", **options)


def ours_deep_ensemble(images: Tensor, labels: Tensor, steps: int, **options: Any) -> Members:
    """The hypernetwork with ten components, which the package has as a preset."""
    return ours(images, labels, steps, preset="deep_ensemble", **options)


KINDS: dict[str, Callable[..., Members]] = {
    "ten_networks": ten_networks, "noisy_adam": noisy_adam, "noisy_kfac": noisy_kfac, "swag": swag,
    "laplace": laplace, "dropout": dropout,
    "ours": ours, "ours_manifold": ours_manifold, "ours_deep_ensemble": ours_deep_ensemble,
}  # fmt: skip
A_STEP = {kind: WHOLE if kind.startswith("ours") else BATCH for kind in KINDS} | {"ten_networks": MEMBERS * BATCH}
"""Images that a step of each kind sees."""
