"""A training whose networks and examples are the same on one rank and on two: rank r has its half of both."""

import os
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_hypernet import HypernetCallback, hookimpl
from lightning_hypernet.generator import NormalPrior

WORLD, RANK = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
DRAWN = 4  # networks of a step, on all ranks together


class Shares(NormalPrior):
    """Training steps draw the same networks whatever the number of ranks, each its share."""

    def draw(self, n, component=None):
        latents = super().draw(n, component)
        if n == DRAWN // WORLD:
            random = torch.Generator().manual_seed(self.draws)
            latents.z.copy_(torch.randn(DRAWN, self.latent_dim, generator=random)[RANK * n : (RANK + 1) * n])
        return latents


class SharesPlugin:
    @hookimpl
    def hypernet_register_priors(self, register):
        register("shares", Shares)


class Model(pl.LightningModule):
    """The target, layers before it that are not generated, and a bias in it that is not either."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.net = nn.Sequential(nn.Linear(6, 15), nn.ReLU(), nn.Linear(15, 3))
        self.losses = []
        self.double()  # rounding of float32 grows to 1e-2 within eight steps of Adam

    def forward(self, x):
        return self.net(self.first(x))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("validation", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def data():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=random, dtype=torch.float64)
    y = x[:, :3].argmax(1)
    shares = [tuple(part[first : first + 16].chunk(WORLD)[RANK] for part in (x, y)) for first in range(0, 64, 16)]
    return DataLoader(shares, batch_size=None)


class Seeding(pl.Callback):
    """What is made in `setup` is made of the same random numbers; rank 1 has others, and must take those of rank 0."""

    def setup(self, trainer, pl_module, stage):
        pl.seed_everything(RANK, verbose=False)


def callback_of(diversity=(), norm="layer", **options):
    return HypernetCallback(
        target="net", samples=DRAWN // WORLD, members=3, latent_dim=16, diversity=diversity, generator={"norm": norm},
        exclude=["2.bias"], prior="shares", plugins=[SharesPlugin()], **options,
    )  # fmt: skip


def trainer_of(callback, strategy="auto", **options):
    given = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **options}
    return pl.Trainer(
        accelerator="cpu", devices=WORLD, strategy=strategy, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, callbacks=[Seeding(), callback], **given,
    )  # fmt: skip


def sharding(**options):
    return ModelParallelStrategy(data_parallel_size=WORLD, tensor_parallel_size=1, **options)


def trained(strategy="auto", diversity=(), norm="layer", **options):
    """A training, its losses and figures averaged over the ranks."""
    pl.seed_everything(RANK if WORLD == 1 or strategy != "auto" else 0, verbose=False)
    model, callback = Model(), callback_of(diversity, norm)
    with torch.no_grad():  # rank 1 begins elsewhere
        for parameter in model.first.parameters():
            parameter.add_(RANK)
    trainer = trainer_of(callback, strategy, **options)
    trainer.fit(model, data(), data())
    losses = torch.stack(model.losses)
    if WORLD > 1:
        distributed.all_reduce(losses)
        losses /= WORLD
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return model, trainer, losses, figures


def resumed(path, strategy="auto"):
    """One more epoch of a training, and its losses averaged over the ranks."""
    model = Model()
    trainer = trainer_of(callback_of(), strategy, max_epochs=3)
    trainer.fit(model, data(), ckpt_path=path, weights_only=False)
    losses = torch.stack(model.losses)
    if WORLD > 1:
        distributed.all_reduce(losses)
        losses /= WORLD
    return model, trainer, losses


class Sharded(Model):
    """Shards in its own `configure_model`."""

    def __init__(self, *names):
        super().__init__()
        self.names = names

    def configure_model(self):
        for name in self.names:
            fully_shard(self.get_submodule(name), mesh=self.device_mesh["data_parallel"])


def refused(model, strategy=None, callback=None):
    """The sentence with which a training is refused."""
    try:
        trainer_of(callback or callback_of(), strategy or sharding(), max_epochs=1).fit(model, data())
    except ValueError as error:
        return str(error)
    return "nothing"


def refusals():
    return {
        "target": refused(Sharded("net")),
        "layers": refused(Model(), ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)),
        "passes": refused(Model(), callback=callback_of(deal="batch", backward="two_pass")),
        "density": refused(Model(), callback=callback_of(distribution="noisy")),
        "other": refused(Sharded("first")),
    }


def report(folder, name, trainer, losses, figures):
    trainer.save_checkpoint(Path(folder) / f"{name}.ckpt")
    if RANK == 0:
        torch.save({"losses": losses, "figures": figures}, Path(folder) / f"{name}.pt")


def main(folder, only=""):
    whole = {"save_distributed_checkpoint": False}
    for name, strategy, norm, diversity in (
        ("sharded", sharding(**whole), "layer", ()),
        ("sharded_entropy", sharding(**whole), "batch", {"entropy": 1e-2}),
        ("ddp_entropy", "ddp", "batch", {"entropy": 1e-2}),
    )[: 1 if only else None]:
        model, trainer, losses, figures = trained(strategy, diversity, norm)
        report(folder, name, trainer, losses, figures)
        if name == "sharded":
            parts = list(model.net.generator.parameters())
            assert all(hasattr(part, "to_local") for part in parts)
            numbers = torch.tensor(sum(part.to_local().numel() for part in parts))
            assert numbers < 0.7 * sum(part.numel() for part in parts), "a rank holds more than its part"
            weights = model.net.sample(2).weights
            assert not any(hasattr(value, "to_local") for value in weights.values()), "generated weights are not local"
            trainer.validate(model, data())
    model, trainer, losses = resumed(Path(folder) / "sharded.ckpt", sharding())
    report(folder, "resumed", trainer, losses, {})
    told = refusals()
    if RANK == 0:
        torch.save(told, Path(folder) / "refusals.pt")
    print("done", RANK)


if __name__ == "__main__":
    main(*sys.argv[1:])
