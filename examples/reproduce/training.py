"""The LightningModule of the reproductions, and training that can be stopped and gone on with."""

import argparse
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from torch import Tensor, nn
from torch.nn import functional as F

from data import Images


def arguments(description: str | None, *settings: str) -> argparse.ArgumentParser:
    """What every script of the paper's targets is asked for; `settings` are those beside the paper's and ours."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("what", choices=("paper", "ours", *settings))
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    return parser


class Classifier(pl.LightningModule):
    """An ordinary classifier; it knows nothing of hypernetworks.

    Args:
        model: Images -> logits.
        optimizer: ``"adam"`` or ``"sgd"``, with Nesterov momentum 0.9.
        lr: Its largest learning rate.
        steps: Length of the training.
        schedule: ``"cosine"``: up in the first hundredth, then down to zero; ``"constant"``; or the factor of each step.
        weight_decay: Of the optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: str,
        lr: float,
        steps: int,
        schedule: str | float = "cosine",
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="model")
        self.model = model
        self.optimizer, self.lr, self.steps, self.schedule, self.weight_decay = optimizer, lr, steps, schedule, weight_decay

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer, with its learning rate set at every step."""
        optimizer: torch.optim.Optimizer
        if self.optimizer == "adam":
            optimizer = torch.optim.Adam(self.parameters(), self.lr, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.SGD(self.parameters(), self.lr, 0.9, nesterov=True, weight_decay=self.weight_decay)
        scheduler: torch.optim.lr_scheduler.LRScheduler
        if self.schedule == "cosine":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, self.lr, self.steps + 1, pct_start=0.01, cycle_momentum=False, final_div_factor=1e4
            )
        else:
            factor = 1.0 if self.schedule == "constant" else float(self.schedule)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Journal(pl.Callback):
    """Writes a line of JSON at every so many steps: step, images seen, seconds, and what was logged.

    Args:
        path: The file; a training that goes on appends to it.
        batch_size: Images a step.
        every: Steps between two lines.
    """

    def __init__(self, path: Path, batch_size: int, every: int) -> None:
        self.path, self.batch_size, self.every = path, batch_size, every
        self.seconds = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Stop the clock, and write."""
        self.seconds += time.perf_counter() - self._start
        if trainer.global_step % self.every:
            return
        logged = {name: round(float(value), 5) for name, value in trainer.logged_metrics.items()}
        step = trainer.global_step
        line = {"step": step, "images": step * self.batch_size, "seconds": round(self.seconds, 1), **logged}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def state_dict(self) -> dict[str, float]:
        """The clock, and what a training that goes on must have in common."""
        return {"seconds": self.seconds, "batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Set the clock.

        Raises:
            ValueError: If the training had another batch size.
        """
        if state_dict["batch_size"] != self.batch_size:
            raise ValueError(f"{self.path} is of {state_dict['batch_size']} images a step, not {self.batch_size}")
        self.seconds = state_dict["seconds"]


def fit(module: Classifier, data: Images, batch_size: int, folder: Path, callbacks: Sequence[pl.Callback] = ()) -> Journal:
    """Train for the module's number of steps; a training that was stopped goes on from its last checkpoint.

    Args:
        module: What is trained.
        data: Training images.
        batch_size: Images a step.
        folder: Where the checkpoint and the journal are kept.
        callbacks: Of the trainer.

    Returns:
        The journal.

    Raises:
        ValueError: If the checkpoint in the folder is of a training with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "at.ckpt"
    if last.exists():
        before = torch.load(last, map_location="cpu", weights_only=True).get("hyper_parameters")
        if before != dict(module.hparams):
            raise ValueError(
                f"{last} was trained with {before}, not {dict(module.hparams)}: choose another --out, or remove it"
            )
    journal = Journal(folder / "journal.jsonl", batch_size, every=max(1, module.steps // 100))
    keep = ModelCheckpoint(
        folder,
        "at",
        train_time_interval=datetime.timedelta(minutes=4),
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    trainer = pl.Trainer(
        max_steps=module.steps,
        max_epochs=-1,
        accelerator="auto",
        devices=1,
        logger=False,
        log_every_n_steps=50,
        enable_model_summary=False,
        callbacks=[RichProgressBar(refresh_rate=20), journal, keep, *callbacks],
    )
    trainer.fit(module, data.loader(batch_size, shuffle=True), ckpt_path=str(last) if last.exists() else None)
    trainer.save_checkpoint(last)
    return journal
