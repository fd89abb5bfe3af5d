"""The pages under docs: their code runs, the site builds, and whatever has a name of its own has its paragraph."""

import dataclasses
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_hypernet.analysis
import lightning_hypernet.metrics
import lightning_hypernet.search
import lightning_hypernet.tasks
from lightning_hypernet import Ensemble, Hypernet, HypernetCallback, hookspecs
from lightning_hypernet.plugins import Plugins

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
TEXT = "\n".join([*PAGES.values(), (ROOT / "README.md").read_text()])
SHORT = partial(
    pl.Trainer, max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, num_sanity_val_steps=0,
)  # fmt: skip


LONG = ("densities", "tasks", "uncertainty")


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.Dropout(0.1), nn.Linear(16, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Query(Classifier):
    """A module whose batch is one task."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.model(x).flatten(0, -2), y.flatten())


def common():
    """What the pages speak of without saying where it comes from: data, a module, a trained Hypernet."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(40, 64), torch.arange(40) % 10
    loader = DataLoader(TensorDataset(inputs, labels), 20)
    callback, module = HypernetCallback("model", samples=2, members=3, execution="loop"), Classifier()
    SHORT(callbacks=[callback]).fit(module, loader)
    return {
        "__name__": "docs", "pl": SimpleNamespace(Trainer=SHORT, LightningModule=pl.LightningModule), "torch": torch, "nn": nn,
        "F": F, "inputs": inputs[:8], "images": inputs, "labels": labels, "loader": loader, "train_loader": loader,
        "val_loader": loader, "validation_loader": loader, "data": TensorDataset(inputs, labels), "callback": callback,
        "module": Classifier(), "hypernet": callback.hypernet.eval(), "ensemble": callback.hypernet.ensemble(3),
        "Classifier": Classifier, "Hypernet": Hypernet, "HypernetCallback": HypernetCallback, "Ensemble": Ensemble,
    }  # fmt: skip


def of_densities(names):
    callback = HypernetCallback("model", distribution="mean_field", diversity="kl", members=3)
    SHORT(callbacks=[callback]).fit(Classifier(), names["loader"])
    return {"hypernet": callback.hypernet.eval()}


def of_no_gradient(names):
    from lightning_hypernet.estimators import Control, controlled, relaxed_bernoulli, square

    logits = torch.zeros(5, 3, requires_grad=True)
    known = {"Control": Control, "controlled": controlled, "relaxed_bernoulli": relaxed_bernoulli, "square": square}
    return {**known, "logits": logits, "k": 3, "f": lambda drawn: (drawn - 0.4).square().sum(-1)}


def of_tasks(names):
    x, y = torch.randn(8, 12, 64), torch.arange(12).repeat(8, 1) % 10
    rows = (names["images"], names["labels"])
    mean, log_std = torch.randn(6, 3), torch.zeros(6, 3)
    return {
        "module": Query(), "tasks": TensorDataset(x, y), "images": x[0], "labels": y[0], "validation": rows, "test": rows,
        "probes": x[1], "mean": mean, "log_std": log_std, "z": mean, "dataset": range(60), "reconstruction": torch.zeros(()),
        "all_means": mean, "all_log_stds": log_std, "x": x[0], "y": y[0],
        "likelihood": lambda outputs, targets: outputs.log_softmax(-1)[..., 0],
    }  # fmt: skip


def of_time(names):
    pytest.importorskip("torchdiffeq")
    field = nn.Linear(2, 2)
    from torchdiffeq import odeint_adjoint

    class Field(nn.Module):
        def forward(self, t, z):
            return -z

    return {"odeint_adjoint": odeint_adjoint, "Field": Field, "field": field, "z": torch.randn(3, 2),
            "hypernet": Hypernet(field, context_dim=1)}  # fmt: skip


GIVEN = {"densities": of_densities, "no_gradient": of_no_gradient, "tasks": of_tasks, "time": of_time}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "page",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name, text in PAGES.items() if blocks(text)],
)
def test_the_code_of_a_page_runs_in_one_go(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = common()
    names |= GIVEN.get(page, lambda names: {})(names)
    for index, block in enumerate(blocks(PAGES[page])):
        exec(compile(block, f"docs/{page}.md, block {index}", "exec"), names)


@pytest.mark.parametrize("wing", ["metrics", "analysis", "search", "tasks"])
def test_every_public_name_of_a_wing_has_a_page(wing):
    chosen = getattr(lightning_hypernet, wing)
    names = [name for name in chosen.__all__ if not dataclasses.is_dataclass(getattr(chosen, name))]  # what a function returns
    assert [name for name in names if not re.search(rf"\b{name}\b", TEXT)] == []


def test_every_hook_loss_and_prior_is_named():
    plugins = Plugins()
    assert [name for name in vars(hookspecs) if name.startswith("hypernet_") and name not in TEXT] == []
    assert [name for name in plugins.losses if f"`{name}`" not in TEXT] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert {*re.findall(r": (\S+\.md)", navigation)} == pages


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)

    def validation_step(self, batch, batch_idx):
        return self.net(batch).sum()


PROVOKED = [
    lambda: HypernetCallback("net", diversity="entropi"),
    lambda: HypernetCallback("net", componets=4),
    lambda: SHORT(callbacks=[HypernetCallback("model")]).validate(Module(), [torch.zeros(1, 4)]),
    lambda: Hypernet(nn.ReLU()),
    lambda: Hypernet(nn.Linear(4, 2), generate=["head.*"]),
    lambda: Hypernet(torch.jit.script(nn.Linear(4, 2))),
    lambda: HypernetCallback("net").hypernet,
    lambda: Hypernet(nn.Linear(4, 2)).weight.grad,
    lambda: torch.export.export(Hypernet(nn.Linear(4, 2)).eval(), (torch.zeros(1, 4),)),
    lambda: Hypernet(nn.Linear(4, 2), distribution="mean_field", components=2),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", range(len(PROVOKED)))
def test_errors_say_what_the_page_says_they_do(place):
    said = re.findall(r"^\|[^|]*\| `(.*?)` \|", PAGES["gotchas"].partition("## What errors say")[2], re.MULTILINE)
    assert len(said) == len(PROVOKED)
    with pytest.raises((ValueError, TypeError, RuntimeError, AttributeError)) as error:
        PROVOKED[place]()
    assert said[place] in str(error.value)
