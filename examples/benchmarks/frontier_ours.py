"""Ours in the frontier: the callback as it is, in a trainer that says nothing, on the module that has one network otherwise."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frontier_problems import Task
from frontier_training import MEMBERS, Trained, adam, standard
from lightning_hypernet import HypernetCallback
from timing import DEVICE

OURS: dict[str, Mapping[str, Any]] = {
    "ours": {},
    "ours_ensemble": {"preset": "ensemble"},
    "ours_manifold": {"preset": "manifold"},
    "ours_branch": {"components": 3, "branch": 0.3},
    "ours_deep_ensemble": {"preset": "deep_ensemble"},
    "ours_two": {"components": 2},
    "ours_three": {"components": 3},
    "ours_shared_spread": {"preset": "ensemble", "diversity": {"variance": 0.1}},
    "ours_spread": {"components": 2, "diversity": {"variance": 0.1}},
    "ours_pretrained": {"generator": "pretrained"},
    "ours_pretrained_three": {"preset": "finetune"},
    "ours_adapter": {"generator": "adapter", "components": 3},
    "ours_reproduce": {"preset": "reproduce"},
    "ours_near": {"distribution": {"name": "rank_one", "start": "near_one"}, "components": 4},
}
"""Options of `HypernetCallback`, by the name of the method; the target and what is not told is as it is by default."""
AVERAGED = 100
"""Networks of one component whose weights are averaged into one."""


class Classifier(pl.LightningModule):
    """An ordinary classifier; it knows nothing of hypernetworks.

    Args:
        model: Images -> logits.
        task: Whose steps it trains for.
        lr: Of the optimizer.
        weight_decay: Of the optimizer.
    """

    def __init__(self, model: nn.Module, task: Task, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.model, self.task, self.lr, self.weight_decay = model, task, lr, weight_decay

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch, whose images count as seen."""
        images, labels = batch
        self.task.note(len(labels))
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> Any:
        """The optimizer and the schedule of every method."""
        optimizer, steps = adam(self.parameters(), self.lr, self.weight_decay), self.task.steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: standard(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def quiet() -> None:
    """One core, and no word from the trainer."""
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def fit_quietly(task: Task, lr: float, weight_decay: float, callbacks: list[pl.Callback]) -> Classifier:
    """Train a classifier for all steps of a task."""
    module = Classifier(task.network(), task, lr, weight_decay)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer = pl.Trainer(
            max_steps=task.steps, max_epochs=-1, callbacks=callbacks, accelerator="gpu" if DEVICE.type == "cuda" else "cpu",
            devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, task.parts.train.loader(task.problem.batch, shuffle=True))
    return module.to(DEVICE)


def hypernetwork(task: Task, lr: float, weight_decay: float, **options: Any) -> Trained:
    """A hypernetwork with these options of the callback: ten of its networks, and the average of a hundred of one component.

    Components that branched from one network are averaged together.
    """
    callback = HypernetCallback("model", **options)
    fit_quietly(task, lr, weight_decay, [callback])
    hypernet = callback.hypernet.eval()
    ensemble = hypernet.ensemble(MEMBERS, loader=task.calm())
    averaged = hypernet.ensemble(AVERAGED, component=None if options.get("branch") else 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the members belong to several components")
        return Trained(ensemble.members, averaged.average(task.calm()).eval())


def variational(task: Task, lr: float, kl: float, distribution: str) -> Trained:
    """A density for the weights, its divergence from a prior in the loss after a third of the steps, tempered."""
    divergence = {"kl": {"weight": kl, "warmup": max(1, task.steps // 3)}}
    return hypernetwork(task, lr, 0.0, distribution=distribution, diversity=divergence, gauge="none")
