"""Distillation: one network that is taught by an ensemble."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hypernet.ensemble import Ensemble


class Distillation(pl.LightningModule):
    r"""Teaches a network the mean probability of an ensemble.

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
        ValueError: If alpha or the temperature is out of range.
    """

    def __init__(
        self, ensemble: Ensemble, student: nn.Module, lr: float = 1e-3, temperature: float = 2.0, alpha: float = 0.9
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1 or temperature <= 0:
            raise ValueError(f"alpha must lie in 0 to 1 and temperature above 0, not {alpha} and {temperature}")
        self.student = student.train()  # an average comes in evaluation mode, and Lightning leaves modes as they are
        self.lr, self.temperature, self.alpha = lr, temperature, alpha
        self._teacher = [ensemble]  # a list, so that neither checkpoints nor optimizers hold it

    def forward(self, inputs: Tensor) -> Tensor:
        """The student's logits, ``(batch, classes)``."""
        logits: Tensor = self.student(inputs)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch ``(inputs, labels)``."""
        inputs, labels = batch
        logits = self(inputs)
        teacher = self._teacher[0].to(logits.device)
        with torch.no_grad():
            taught = (teacher.members(inputs) / self.temperature).softmax(-1).mean(0)
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
