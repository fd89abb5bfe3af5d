"""Distillation in the trainers of both class trees."""

import inspect
import subprocess
import sys

import lightning.pytorch as lp
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet
from lightning_hypernet.distillation import Distillation

TREES = {"pytorch_lightning": pl, "lightning.pytorch": lp}


def small():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def loader():
    return DataLoader(TensorDataset(torch.randn(32, 6), torch.randint(0, 3, (32,))), batch_size=8)


def fitted(tree, make=Distillation, folder=None, **options):
    torch.manual_seed(0)
    module = make(Hypernet(small(), members=2, execution="loop").ensemble(3), small())
    data = loader()
    trainer = tree.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=folder is not None, default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return module, trainer, data


def test_both_trainers_train_the_same_student():
    (one, first, _), (other, second, _) = (fitted(tree) for tree in TREES.values())
    losses = [trainer.callback_metrics["distillation_loss"] for trainer in (first, second)]
    assert torch.equal(*losses) and losses[0] > 0
    assert first.global_step == second.global_step == 8
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(value, again) for value, again in pairs)


class Own(Distillation):
    """Hooks of its own, some of which call those they override."""

    def __init__(self, ensemble, student):
        super().__init__(ensemble, student)
        self.save_hyperparameters(ignore=["ensemble", "student"])
        self.seen = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.seen.append(float(self.trainer.callback_metrics["distillation_loss"]))

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.seen.append("step")

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self(batch[0]).argmax(-1) == batch[1]).float().mean())

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_what_a_subclass_overrides_is_called(tree):
    module, trainer, data = fitted(tree, Own)
    assert module.seen.count("step") == 8 and len(module.seen) == 10
    (metrics,) = trainer.validate(module, data, verbose=False)
    assert set(metrics) == {"accuracy"}
    predicted = torch.cat(trainer.predict(module, data))
    assert torch.allclose(predicted, module(torch.cat([batch[0] for batch in data])), atol=1e-6)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_its_checkpoints_are_loaded_and_resumed(tree, tmp_path):
    module, trainer, data = fitted(tree, folder=tmp_path)
    path = trainer.checkpoint_callback.best_model_path
    for other in TREES.values():
        again = Distillation.load_from_checkpoint(path, ensemble=module._teacher[0], student=small(), weights_only=True)
        assert isinstance(again, (pl.LightningModule, lp.LightningModule))
        pairs = zip(again.state_dict().values(), module.state_dict().values(), strict=True)
        assert all(torch.equal(value, before) for value, before in pairs)
        resumed = other.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        )  # fmt: skip
        told = {"weights_only": True} if "weights_only" in inspect.signature(resumed.fit).parameters else {}
        resumed.fit(again, data, ckpt_path=path, **told)
        assert resumed.global_step == 12


def test_one_after_the_other_trainer():
    module, _, data = fitted(pl)
    for tree in (lp, pl):
        trainer = tree.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(module, data)
        assert trainer.global_step == 4


def test_without_the_other_tree():
    hide = "import sys, importlib.util; find = importlib.util.find_spec\n"
    hide += "importlib.util.find_spec = lambda name, *rest: None if name == 'lightning' else find(name, *rest)\n"
    hide += "sys.modules['lightning'] = None\n"
    code = hide + (
        "from lightning_hypernet.distillation import Distillation, pl\nprint(Distillation.__mro__[1] is pl.LightningModule)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
