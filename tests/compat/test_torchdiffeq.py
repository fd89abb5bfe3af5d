"""Blocks of ordinary differential equations, differentiated through the solver and by the adjoint."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from tests.compat.exercise import MARKS, Case, curves, exercise
from tests.test_callback import QUIET

torchdiffeq = pytest.importorskip("torchdiffeq")
pytestmark = MARKS
SOLVERS = {"direct": torchdiffeq.odeint, "adjoint": torchdiffeq.odeint_adjoint}


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


class Block(nn.Module):
    def __init__(self, solver, **options):
        super().__init__()
        self.field, self.solver, self.options = Field(), solver, options

    def forward(self, x):
        return SOLVERS[self.solver](self.field, x, torch.linspace(0, 1, 5), **self.options)[-1]


class Flow(pl.LightningModule):
    def __init__(self, solver, **options):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, 4), Block(solver, **options), nn.Linear(4, 2))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", F.mse_loss(self.model(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def turned(count):
    torch.manual_seed(5)
    return [(x, x.flip(1).sin()) for x in torch.randn(count, 8, 2)]


ADAPTIVE, FIXED = {"rtol": 1e-5, "atol": 1e-6}, {"method": "rk4", "options": {"step_size": 0.125}}
HOW = pytest.mark.parametrize("how", [ADAPTIVE, FIXED], ids=["adaptive", "fixed"])


@HOW
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("deal", ["inputs", "batch"])
def test_a_block(deal, solver, how, tmp_path):
    exercise(Case(lambda: Flow(solver, **how), turned(2), lambda batch: batch[:1], options={"deal": deal}), tmp_path)


class Seen(pl.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {name: one.grad.clone() for name, one in pl_module.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("deal", ["inputs", "batch"])
def test_the_adjoint_gives_the_gradients_of_the_direct_solver(deal):
    found = []
    for solver in SOLVERS:
        case = Case(lambda solver=solver: Flow(solver, **FIXED), turned(2), lambda batch: batch[:1], options={"deal": deal})
        seen = Seen()
        trainer = pl.Trainer(**QUIET, max_steps=2, limit_val_batches=0, callbacks=[case.callback(), seen])
        trainer.fit(case.module(), case.loader)
        found.append(seen.gradients)
    direct, adjoint = found
    assert direct.keys() == adjoint.keys()
    for name, one in direct.items():
        torch.testing.assert_close(adjoint[name], one, rtol=1e-3, atol=1e-5, msg=name)
    assert sum(one.abs().sum() for name, one in direct.items() if "weight_generators" in name) > 0


def test_a_block_learns_as_the_plain_one():
    plain, ours = curves(Case(lambda: Flow("adjoint", **FIXED), turned(4), lambda batch: batch[:1], options={"samples": 2}), 60)
    assert sum(plain[-8:]) < 0.5 * sum(plain[:8])
    assert sum(ours[-8:]) < 0.5 * sum(ours[:8])
