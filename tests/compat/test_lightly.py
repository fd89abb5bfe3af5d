"""The methods of lightly's examples for Lightning, with small backbones."""

import copy
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tests.compat.exercise import MARKS, Case, exercise
from tests.test_callback import QUIET

pytest.importorskip("lightly")
from lightly.data import LightlyDataset
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models import modules as heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform, SimCLRTransform, VICRegTransform
from torch.utils.data import default_collate
from torchvision.datasets import FakeData

pytestmark = MARKS
SMALL = {"input_size": 16}


def views(transform):
    """Batches of views, labels and names, as lightly's data sets give them."""
    torch.manual_seed(5)
    images = LightlyDataset.from_torch_dataset(FakeData(16, (3, 24, 24), 4), transform=transform)
    return [default_collate([images[index] for index in range(start, start + 8)]) for start in (0, 8)]


def backbone():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip


class Joint(pl.LightningModule):
    """SimCLR and VICReg: a loss over the embeddings of two views of the whole batch."""

    def __init__(self, head, criterion):
        super().__init__()
        self.backbone = backbone()
        self.projection_head = head
        self.criterion = criterion

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def training_step(self, batch, batch_index):
        x0, x1 = batch[0][:2]
        loss = self.criterion(self(x0), self(x1))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_index):
        x0, x1 = batch[0][:2]
        self.log("loss", self.criterion(self(x0), self(x1)), batch_size=len(x0))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)


def simclr():
    return Joint(heads.SimCLRProjectionHead(12, 16, 8), NTXentLoss())


def vicreg():
    return Joint(heads.heads.VICRegProjectionHead(12, 16, 8, num_layers=2), VICRegLoss())


WAYS = [(target, "batch", validation) for target in ("backbone", ".") for validation in ("ensemble", "members")]


@pytest.mark.parametrize(("target", "deal", "validation"), WAYS)
@pytest.mark.parametrize(
    ("make", "transform"),
    [(simclr, SimCLRTransform(**SMALL, gaussian_blur=0.0)), (vicreg, VICRegTransform(**SMALL, gaussian_blur=0.0))],
)
def test_a_loss_over_the_batch(make, transform, target, deal, validation, tmp_path):
    options = {"deal": deal, "validation": validation}
    exercise(Case(make, views(transform), lambda batch: (batch[0][0],), target, options), tmp_path)


class Byol(pl.LightningModule):
    """The copies are moved at the beginning of each step."""

    momentum = 0.99

    def __init__(self):
        super().__init__()
        self.backbone = backbone()
        self.projection_head = heads.BYOLProjectionHead(12, 16, 8)
        self.prediction_head = heads.BYOLPredictionHead(8, 16, 8)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x):
        return self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))

    def forward_momentum(self, x):
        y = self.backbone_momentum(x).flatten(start_dim=1)
        return self.projection_head_momentum(y).detach()

    def loss(self, batch):
        x0, x1 = batch[0]
        p0, z0, p1, z1 = self(x0), self.forward_momentum(x0), self(x1), self.forward_momentum(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))

    def training_step(self, batch, batch_idx):
        self.move(self.momentum)
        return self.loss(batch)

    def move(self, momentum):
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.criterion(self(batch[0][0]), self(batch[0][1])), batch_size=len(batch[0][0]))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=0.06)


class Between(Byol):
    """The copies are moved between steps, not in them: each network of a dealt out batch runs the step."""

    momentum = 1.0

    def on_train_batch_start(self, batch, batch_idx):
        self.move(0.99)


def small_byol():
    blur = {**SMALL, "gaussian_blur": 0.0}
    return views(BYOLTransform(BYOLView1Transform(**blur), BYOLView2Transform(**blur)))


@pytest.mark.parametrize(("make", "deal"), [(Byol, "inputs"), (Between, "inputs"), (Between, "batch")])
def test_byol(make, deal, tmp_path):
    """Dealt out by inputs, the heads normalise the joined outputs, which no plain network has."""
    options = {"deal": deal, "copies": ("backbone_momentum",)}
    exercise(Case(make, small_byol(), lambda batch: (batch[0][0],), "backbone", options, replay=deal == "batch"), tmp_path)


@pytest.mark.filterwarnings("ignore:You defined a")
@pytest.mark.parametrize(("deal", "times"), [("inputs", 1), ("batch", 2)])
def test_the_momentum_copy_moves(deal, times):
    """Where the step moves it, once for each time that the step runs."""

    class Average(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            students = [one.detach().clone() for one in pl_module.backbone.generator.parameters()]
            means = getattr(self, "means", students)
            for _ in range(times):
                means = [0.99 * mean + 0.01 * one for mean, one in zip(means, students, strict=True)]
            self.means = means

    average, case = Average(), Case(Byol, small_byol(), tuple, "backbone", {"deal": deal})
    callback = case.callback()
    trainer = pl.Trainer(**QUIET, max_epochs=4, callbacks=[callback, average], limit_val_batches=0)
    module = case.module()
    with pytest.warns(UserWarning, match="training_step moves backbone_momentum") if deal == "batch" else nullcontext():
        trainer.fit(module, case.loader)
    assert [twin is module.backbone_momentum for twin in callback.twins] == [True]  # found without being named
    for one, mean in zip(module.backbone_momentum.generator.parameters(), average.means, strict=True):
        torch.testing.assert_close(one, mean, rtol=1e-5, atol=1e-6)
