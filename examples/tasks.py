"""Networks for tasks: an encoder reads the images of a task, and makes all weights of a variational autoencoder for them.

A task is one class of scikit-learn's digits or a mixture of two, turned by a multiple of 90 degrees; 50 images of it are at
hand. 64 tasks are seen in training, eight are not. Beside it one autoencoder for all tasks, and one for each task, trained on
the same images. Printed are the negative evidence lower bound on test images, how well it tells images of other tasks, and how
long a task's code is. About five minutes on one core.
"""

import argparse
import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_hypernet import HypernetCallback

SEEN, UNSEEN, IMAGES, SUPPORT = 64, 8, 50, 20
Pair = tuple[Tensor, Tensor]


class VAE(nn.Module):
    """A variational autoencoder: binary images ``(n, 64)`` to minus the evidence lower bound of each, ``(n,)``, in nats."""

    def __init__(self, hidden: int = 32, codes: int = 4) -> None:
        super().__init__()
        self.to_code = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 2 * codes))
        self.to_image = nn.Sequential(nn.Linear(codes, hidden), nn.ReLU(), nn.Linear(hidden, 64))

    def forward(self, images: Tensor) -> Tensor:
        """The loss of every image."""
        mean, log_std = self.to_code(images).chunk(2, dim=1)
        log_std = log_std.clamp(-5, 3)
        logits = self.to_image(mean + log_std.exp() * torch.randn_like(mean))
        reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum(1)
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
        return reconstruction + divergence


class Model(pl.LightningModule):
    """An ordinary LightningModule; a batch is a task, or images alone."""

    def __init__(self, steps: int, lr: float) -> None:
        super().__init__()
        self.steps, self.lr = steps, lr
        self.model = VAE()

    def training_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> Tensor:
        """Minus the mean evidence lower bound."""
        images = batch if isinstance(batch, Tensor) else batch[1]
        return self.model(images).mean()

    def configure_optimizers(self) -> dict[str, object]:
        """Adam along a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@dataclass
class Task:
    """Images of one task: those at hand ``(50, 64)``, and others of it and of other tasks, to test with."""

    images: Tensor
    test: Tensor
    others: Tensor


class Episodes(Dataset[list[Tensor]]):
    """Support and query images of every task, drawn anew each time."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> list[Tensor]:
        images = self.tasks[index].images
        order = torch.randperm(len(images))
        return [images[order[:SUPPORT]], images[order[SUPPORT:]]]


def made(seed: int) -> tuple[list[Task], list[Task]]:
    """Tasks that are seen in training, and tasks that are not."""
    source = torch.Generator().manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    images, labels = (torch.tensor(x).view(-1, 8, 8) > 7).float(), torch.tensor(y)
    order = torch.randperm(len(images), generator=source)
    train, test = order[:1200], order[1200:]
    kinds: list[tuple[tuple[int, ...], int]] = []
    while len(kinds) < SEEN + UNSEEN:
        count = 1 + int(torch.randint(2, (), generator=source))
        classes = tuple(sorted(torch.randperm(10, generator=source)[:count].tolist()))
        kind = (classes, int(torch.randint(4, (), generator=source)))
        if kind not in kinds:
            kinds.append(kind)

    def of(rows: Tensor, classes: tuple[int, ...], turn: int, count: int, inside: bool = True) -> Tensor:
        chosen = torch.isin(labels[rows], torch.tensor(classes))
        found = rows[chosen if inside else ~chosen]
        found = found[torch.randperm(len(found), generator=source)[:count]]
        return images[found].rot90(turn, (1, 2)).reshape(-1, 64)

    tasks = [Task(of(train, *kind, IMAGES), of(test, *kind, 40), of(test, *kind, 40, inside=False)) for kind in kinds]
    return tasks[:SEEN], tasks[SEEN:]


def fit(module: Model, loader: DataLoader[object], callbacks: list[pl.Callback]) -> None:
    """Train for the module's number of steps."""
    trainer = pl.Trainer(
        max_steps=module.steps, max_epochs=-1, callbacks=callbacks, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)


@torch.no_grad()
def scores(vae: nn.Module, task: Task, draws: int = 20) -> tuple[float, float]:
    """Minus the evidence lower bound of test images, and how well it tells those of other tasks (AUROC)."""
    inside, outside = (torch.stack([vae(images) for _ in range(draws)]).mean(0) for images in (task.test, task.others))
    truth = [0] * len(inside) + [1] * len(outside)
    return float(inside.mean()), float(roc_auc_score(truth, torch.cat([inside, outside]).numpy()))


def mean_scores(vaes: list[nn.Module], tasks: list[Task]) -> tuple[float, float]:
    """The mean of `scores` over tasks."""
    found = torch.tensor([scores(vae, task) for vae, task in zip(vaes, tasks, strict=True)])
    return float(found[:, 0].mean()), float(found[:, 1].mean())


def main() -> None:
    """Train, compare, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("tasks.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seen, unseen = made(args.seed)

    torch.manual_seed(args.seed)
    callback = HypernetCallback(
        "model", latent_dim=32, encoder={"name": "deep_sets", "inputs": 64, "hidden": 128}, deal="batch",
        support=lambda task: task[0], diversity={"rate": {"weight": 0.3, "examples": IMAGES}}, gauge="none", execution="loop",
    )  # fmt: skip
    fit(Model(args.steps, lr=3e-3), DataLoader(Episodes(seen), 16, shuffle=True), [callback])
    hypernet = callback.hypernet.eval()
    with torch.no_grad():
        encoded = {name: hypernet.encode_tasks(*(task.images for task in tasks), sample=False)
                   for name, tasks in (("seen", seen), ("unseen", unseen))}  # fmt: skip
        rows = {name: {"encoder": mean_scores(hypernet.materialize(hypernet.decode(one.latents)), tasks)}
                for (name, one), tasks in zip(encoded.items(), (seen, unseen), strict=True)}  # fmt: skip

    torch.manual_seed(args.seed)
    one = Model(args.steps, lr=2e-3)
    everything = torch.cat([task.images for task in seen])
    fit(one, DataLoader(everything, 480, shuffle=True), [])
    for name, tasks in (("seen", seen), ("unseen", unseen)):
        rows[name]["one for all"] = mean_scores([one.model.eval()] * len(tasks), tasks)
        apart = []
        for task in tasks[:8]:
            own = Model(max(1, args.steps // 6), lr=2e-3)
            fit(own, DataLoader(task.images, 30, shuffle=True), [])
            apart.append(own.model.eval())
        rows[name]["one a task (eight)"] = mean_scores(apart, tasks[:8])

    table = Table("tasks", "autoencoder", "-ELBO, nats", "AUROC", title="test images")
    figures: dict[str, float] = {}
    for name, methods in rows.items():
        for method, (loss, auroc) in methods.items():
            table.add_row(name, method, f"{loss:.2f}", f"{auroc:.3f}")
            short = method.split(" (")[0].replace(" ", "_")
            figures |= {f"{name}_{short}_loss": loss, f"{name}_{short}_auroc": auroc}
        with torch.no_grad():
            figures[f"{name}_rate_bits"] = float(encoded[name].rate().mean()) / math.log(2)
    Console().print(table)

    fig, axes = plt.subplots(2, 8, figsize=(9, 2.6), layout="constrained")
    with torch.no_grad():
        networks = hypernet.materialize(hypernet.decode(encoded["seen"].latents[:8]))
        for column, (task, network) in enumerate(zip(seen, networks, strict=False)):
            drawn = network.to_image(torch.randn(1, 4, generator=torch.Generator().manual_seed(column))).sigmoid()
            for axis, image in zip(axes[:, column], (task.images[0], drawn[0]), strict=True):
                axis.imshow(image.view(8, 8), cmap="gray_r", vmin=0, vmax=1)
                axis.set_axis_off()
    fig.suptitle("an image of a task, and one drawn by the network that was made for it")
    fig.savefig(args.out, dpi=120)
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
