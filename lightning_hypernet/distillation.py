"""Distillation: one network that is taught by an ensemble."""

from __future__ import annotations

import importlib.util
import inspect
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.metrics.base import checked_labels
from lightning_hypernet.values import instance, real

if TYPE_CHECKING or importlib.util.find_spec("lightning") is None:
    _Module = pl.LightningModule
else:
    from lightning.pytorch import LightningModule as _OtherModule
    from lightning.pytorch import Trainer as _OtherTrainer

    class _Inherited:
        """A method of both class trees: that of the tree whose trainer runs the module.

        Args:
            name: Its name.
        """

        def __init__(self, name: str) -> None:
            self.name = name

        def __get__(self, module: Any, owner: Any = None) -> Any:
            trainer = None if module is None else vars(module).get("_trainer")
            tree = _OtherModule if isinstance(trainer, _OtherTrainer) else pl.LightningModule
            return getattr(tree, self.name).__get__(module, owner)

    def _inherited() -> dict[str, Any]:
        """The methods that the trees have each for itself; a trainer would take the other's for ones that the user overrode."""
        trees = (pl.LightningModule, _OtherModule)
        own, others = ({name: inspect.getattr_static(tree, name) for name in dir(tree)} for tree in trees)
        differ = [name for name, method in own.items() if inspect.isfunction(method) and others.get(name, method) is not method]
        return {name: _Inherited(name) for name in differ if not name.startswith("__")}

    _Module = type("_Module", (pl.LightningModule, _OtherModule), _inherited())


class Distillation(_Module):
    r"""Teaches a network the mean probability of an ensemble, in trainers of `pytorch_lightning` and `lightning.pytorch`.

    .. math:: L = (1 - \alpha) \, \mathrm{CE}(y, s) + \alpha T^2 \,
        \mathrm{KL}\Bigl(\tfrac{1}{M} \textstyle\sum_m \mathrm{softmax}(t_m / T) \,\Big\|\, \mathrm{softmax}(s / T)\Bigr)

    References:
        | Distilling the Knowledge in a Neural Network (Hinton et al., 2015)
        | https://arxiv.org/abs/1503.02531

    Args:
        ensemble: The teacher; its members are not trained. It follows the student to its device.
        student: Inputs to logits ``(batch, classes)``; put in training mode. ``ensemble.average()`` or a plain target are good
            starts.
        lr: Learning rate of Adam, which falls to zero along a cosine.
        temperature: T; above 1 the small probabilities count more.
        alpha: Share of the teacher in the loss, 0 to 1.

    Raises:
        TypeError: If there is no ensemble, or the student is no module to train.
        ValueError: If a number is out of range.
    """

    def __init__(
        self, ensemble: Ensemble, student: nn.Module, lr: float = 1e-3, temperature: float = 2.0, alpha: float = 0.9
    ) -> None:
        super().__init__()
        instance("student", student, nn.Module, "a module that gives logits")
        if not any(one.requires_grad for one in student.parameters()):
            raise ValueError(f"the student, {type(student).__name__}, has no parameters to train")
        instance("ensemble", ensemble, Ensemble, "an Ensemble, as hypernet.ensemble(10) gives")
        alpha, temperature = real("alpha", alpha, 0, 1), real("temperature", temperature, 0, above=True)
        lr = real("lr", lr, 0, above=True)
        self.student = student.train()  # an average comes in evaluation mode, and Lightning leaves modes as they are
        self.lr, self.temperature, self.alpha = lr, temperature, alpha
        self._teacher = [ensemble]  # a list, so that neither checkpoints nor optimizers hold it

    def forward(self, inputs: Tensor) -> Tensor:
        """The student's logits, ``(batch, classes)``."""
        logits: Tensor = self.student(inputs)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch ``(inputs, labels)``.

        Raises:
            TypeError: If the labels are no integers.
            ValueError: If the batch is no such pair, a label is no class, or student and teacher give different classes.
        """
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(f"a batch must be (inputs, labels), not a {type(batch).__name__}")
        inputs, labels = batch
        logits = self(inputs)
        teacher = self._teacher[0].to(logits.device)
        with torch.no_grad():
            taught = (teacher.members(inputs) / self.temperature).softmax(-1).mean(0)
        if logits.shape != taught.shape:
            raise ValueError(
                f"the student gives logits {tuple(logits.shape)}, and the ensemble {tuple(taught.shape)}: both need the same "
                "classes"
            )
        labels = checked_labels(labels, logits)
        learnt = F.log_softmax(logits / self.temperature, dim=-1)
        distance = F.kl_div(learnt, taught, reduction="batchmean") * self.temperature**2
        loss = (1 - self.alpha) * F.cross_entropy(logits, labels) + self.alpha * distance
        self.log("distillation_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam with a cosine schedule to zero."""
        optimizer = torch.optim.Adam(self.student.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
