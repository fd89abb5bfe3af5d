"""Bad input: the whole public surface answers it with one sentence that says what was found, where, and what to do.

A row of a table is a call, and what its message must hold, in any order and case. It ends in a `TypeError` or `ValueError` of
ours, or in the error that the row names; never in an error from deep inside, in a result, or in waiting.

`GOOD` holds what looks odd and is right: numbers that YAML reads as texts (`1e-3` has no dot), one name or number in place of a
list, numbers of numpy.
"""

import itertools
import json
import math
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributions import Laplace, Normal
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_hypernet import DiversityLoss, Ensemble, GeneratorConfig, Hypernet, HypernetCallback, Latents, hookimpl
from lightning_hypernet.analysis import (
    accuracies,
    adversarial,
    averaging,
    fgsm,
    filter_images,
    ood,
    paths,
    pgd,
    scatter,
)
from lightning_hypernet.distillation import Distillation
from lightning_hypernet.diversity import (
    EnsembleLoss,
    Entropy,
    MutualInformation,
    OutputEntropy,
    Repulsion,
    Variance,
)
from lightning_hypernet.generator import NormalPrior
from lightning_hypernet.metrics import (
    Disagreement,
    DoubleFault,
    EnsembleAccuracy,
    EnsembleBrier,
    EnsembleCalibrationError,
    EnsembleNLL,
    MemberAccuracy,
    MemberNLL,
    PairwiseKL,
    QStatistic,
    SymmetryDistance,
    VariationRatio,
    WeightCosine,
    population_metrics,
)
from lightning_hypernet.plugins import Plugins
from lightning_hypernet.symmetry.gauge import Gauge
from tests.targets import OddLayer

NAN, INF = math.nan, math.inf
OF_OURS = (TypeError, ValueError)
OF_STATE = (RuntimeError, ValueError)
OF_FILES = (OSError, TypeError, ValueError)
LONGEST = 400
SECONDS = 3

SMALL = {"hidden": (4,), "extractor_hidden": (4,), "code_size": 2}
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
NUMBERS = torch.Generator().manual_seed(0)
LOADER = [(torch.randn(6, 4, generator=NUMBERS), torch.randint(3, (6,), generator=NUMBERS)) for _ in range(2)]
X, Y = LOADER[0]
PREDICTIONS = torch.randn(3, 6, 3, generator=NUMBERS)

# What the rows work with


def net(target=None, **options):
    """A small Hypernet in training."""
    sizes = {"latent_dim": 4, "samples": 2, "members": 2, "generator": SMALL, "gauge": "none", "execution": "loop"}
    return Hypernet(target or nn.Linear(4, 3), **{**sizes, **options}).train()


def normed():
    """A target with norm statistics."""
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def setting(value, **attributes):
    """Set attributes of a thing, and return it."""
    for name, one in attributes.items():
        setattr(value, name, one)
    return value


def callback(**options):
    return HypernetCallback(**{"samples": 2, "members": 2, "latent_dim": 4, "generator": SMALL, **options})


class Module(pl.LightningModule):
    """A LightningModule whose step returns what `answer` makes of the loss."""

    def __init__(self, answer=lambda loss: loss, norm=False):
        super().__init__()
        self.model = normed() if norm else nn.Linear(4, 3)
        self.answer = answer

    def training_step(self, batch, batch_idx):
        x, y = batch.values() if isinstance(batch, dict) else batch
        return self.answer(F.cross_entropy(self.model(x), y) if not y.is_floating_point() else F.mse_loss(self.model(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callback, module=None, loader=LOADER):
    """One step of training."""
    trainer = pl.Trainer(max_steps=1, **QUIET, callbacks=[callback])
    trainer.fit(module or Module(), DataLoader(loader, batch_size=None))
    return callback


class BrokenLoss(DiversityLoss):
    """A diversity loss that returns what it is told to."""

    def __init__(self, value="nan"):
        super().__init__()
        self.value = float(value)

    def forward(self, population):
        return population.vectors.sum() * 0 + self.value


class TextLoss(BrokenLoss):
    def forward(self, population):
        return "low"


class BrokenPlugin:
    @hookimpl
    def hypernet_register_diversity(self, register):
        register("broken", BrokenLoss)
        register("text", TextLoss)


class MistypedPlugin:
    @hookimpl
    def hypernet_register_diversitys(self, register):
        register("broken", BrokenLoss)


class WrongPlugin:
    @hookimpl
    def hypernet_register_priors(self, register):
        register("broken", BrokenLoss)


def broken(value):
    return callback(plugins=[BrokenPlugin()], diversity={"broken": {"value": value}})


def step(hypernet, **options):
    with hypernet.step(**options):
        hypernet(X)


def dealt(hypernet, batch, **options):
    return list(hypernet.deal(batch, **options))


def updated(metric, predictions, labels=Y):
    metric.update(predictions, labels)
    return metric


def taught(batch, outputs=3):
    """One step of a distillation."""
    distillation = Distillation(net().ensemble(2), nn.Linear(4, outputs))
    distillation.log = lambda *args, **kwargs: None
    return distillation.training_step(batch, 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files to read, good and bad, under the names that the rows use."""
    folder = tmp_path_factory.mktemp("files")
    trainer = pl.Trainer(max_steps=1, **QUIET, callbacks=[callback(target="model")])
    trainer.fit(Module(), DataLoader(LOADER, batch_size=None))
    trainer.save_checkpoint(folder / "run.ckpt")
    (folder / "text.ckpt").write_text("not a checkpoint")
    torch.save({"state_dict": nn.Linear(4, 3).state_dict()}, folder / "plain.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    (folder / "empty").mkdir()
    for name in ("ensemble", "half", "broken", "list", "keys", "tensors"):
        net().ensemble(2).save(folder / name)
    (folder / "half" / "ensemble.safetensors").unlink()
    (folder / "broken" / "ensemble.json").write_text('{"format": 3, "mem')
    (folder / "list" / "ensemble.json").write_text("[]")
    recipe = json.loads((folder / "keys" / "ensemble.json").read_text())
    del recipe["aliases"], recipe["reduce"]
    (folder / "keys" / "ensemble.json").write_text(json.dumps(recipe))
    (folder / "tensors" / "ensemble.safetensors").write_text("not tensors")
    return folder


# The table


def row(name, call, *essentials, error=OF_OURS):
    return pytest.param(call, essentials, error, id=name)


def near(name):
    return f"did you mean '{name}'"


def shown(value):
    """A value as a message may show it; of several the one that is wrong is enough."""
    entries = value if isinstance(value, (tuple, list)) else ()
    return "|".join(re.escape(str(one)) for one in (value, list(entries) or value, *entries[-1:]))


def each(option, make, values, *essentials):
    """A row for each bad value of an option; the message shows the option and the value."""
    prefix = f"{make.__name__} " if isinstance(make, type) else ""
    return [
        row(
            f"{prefix}{option}={value!r}",
            lambda value=value: make(**{option: value}),
            rf"\b{option}\b",
            shown(value),
            *essentials,
        )
        for value in values
    ]


def config(**fields):
    """A Hypernet with fields of its generator."""
    return net(generator={**SMALL, **fields})


def spoilt(value):
    """A target with a number that is none."""
    layer = nn.Linear(4, 3)
    layer.bias.data[0] = value
    return layer


TARGET = [
    row("none", lambda: Hypernet(None), "target", "None", "Module"),
    row("a class", lambda: Hypernet(nn.Linear), "target", "Linear", "class|instance"),
    row("a function", lambda: Hypernet(lambda x: x), "target", "function", "Module"),
    row("a path", lambda: Hypernet("model"), "target", "'model'", "Module"),
    row("a state dict", lambda: Hypernet(nn.Linear(4, 3).state_dict()), "target", "OrderedDict", "Module"),
    row("no parameters", lambda: Hypernet(nn.ReLU()), "ReLU", "no parameters", "wrap another"),
    row("a Hypernet", lambda: Hypernet(net()), "target", "Hypernet", "wrap"),
    row("lazy", lambda: Hypernet(nn.LazyLinear(3)), "weight", "not initialised", "run"),
    row("nan", lambda: Hypernet(spoilt(NAN)), "bias", "NaN"),
    row("infinite", lambda: Hypernet(spoilt(INF)), "bias", "infinite"),
    row("on meta", lambda: Hypernet(nn.Linear(4, 3, device="meta")), "weight", "meta", "to_empty"),
    row("frozen", lambda: Hypernet(nn.Linear(4, 3).requires_grad_(False)), "Linear", "requires_grad"),
]  # fmt: skip
COUNTS = [
    *each("latent_dim", net, (-1, 0, 1.5, NAN, INF, "many", "0", "2.5", True, [4]), "whole|1 or more"),
    *each("components", net, (-1, 0, 1.5, NAN, INF, None, "many", "0", "2.5", True, [4]), "whole|1 or more"),
    *each("samples", net, (-1, 0, 1.5, NAN, INF, "many", "0", "2.5", True, [4]), "whole|1 or more"),
    *each("members", net, (-1, 0, 1.5, NAN, INF, None, "many", "0", "2.5", True, [4]), "whole|1 or more"),
    *each("context_dim", net, (-1, 1.5, NAN, INF, None, "many", "-1", "2.5", True, [4]), "whole|0 or more"),
]  # fmt: skip
PRIOR = [
    row("normall", lambda: net(prior="normall"), "prior", "'normall'", near("normal")),
    row("cauchy", lambda: net(prior="cauchy"), "prior", "'cauchy'", "mixture, normal"),
    row("a number", lambda: net(prior=3), "prior", "3", "name"),
    row("none", lambda: net(prior=None), "prior", "None", "name"),
    row("no name", lambda: net(prior={"nam": "normal"}), "prior", "'nam'", "'name'"),
    row("a class", lambda: net(prior=NormalPrior), "prior", "NormalPrior", "instance|class"),
    row("a distribution's class", lambda: net(prior=Normal), "prior", "Normal", "instance|class"),
    row("option", lambda: net(prior={"name": "mixture", "seperation": 1}), "'mixture'", "seperation", near("separation")),
    row("separation=-1", lambda: net(prior={"name": "mixture", "separation": -1}), "separation", "-1", "0 or more"),
    row("separation=nan", lambda: net(prior={"name": "mixture", "separation": NAN}), "separation", "nan"),
    row("separation=inf", lambda: net(prior={"name": "mixture", "separation": INF}), "separation", "inf"),
    row("separation=wide", lambda: net(prior={"name": "mixture", "separation": "wide"}), "separation", "'wide'", "number"),
    row("Laplase", lambda: net(prior={"name": "torch", "distribution": "Laplase"}), "'Laplase'", near("Laplace")),
    row("Laplace alone", lambda: net(prior={"name": "torch", "distribution": "Laplace"}), "prior", "Laplace", "loc", "scale"),
    row("scale=-1", lambda: net(prior={"name": "torch", "distribution": "Laplace", "loc": 0, "scale": -1}), "prior", "scale",
        "-1"),
    row("loc=left", lambda: net(prior={"name": "torch", "distribution": "Laplace", "loc": "left", "scale": 1}), "loc",
        "'left'", "number"),
    row("other size", lambda: net(prior=NormalPrior(3)), "3 numbers", "latent_dim=4"),
    row("vectors", lambda: net(prior=Normal(torch.zeros(3), 1.0)), r"\(3,\)", "latent"),
]  # fmt: skip
CHOICES = [
    row("distribution=generater", lambda: net(distribution="generater"), "distribution", "'generater'", near("generator")),
    row("distribution=3", lambda: net(distribution=3), "distribution", "3", "name"),
    row("distribution=none", lambda: net(distribution=None), "distribution", "None", "name"),
    row("distribution option", lambda: net(distribution={"name": "generator", "depth": 2}), "'generator'", "depth"),
    row("gauge=scael", lambda: net(gauge="scael"), "gauge", "'scael'", near("scale")),
    row("gauge=3", lambda: net(gauge=3), "gauge", "3", "name"),
    row("gauge=none", lambda: net(gauge=None), "gauge", "None", "'none'|name"),
    row("gauge a class", lambda: net(gauge=Gauge), "gauge", "Gauge", "instance|class"),
    row("gauge option", lambda: net(gauge={"name": "scale", "eps": 1}), "gauge", "'scale'", "eps"),
    row("execution=vmapp", lambda: net(execution="vmapp"), "execution|backend", "'vmapp'", near("vmap")),
    row("execution=3", lambda: net(execution=3), "execution|backend", "3", "name"),
    row("execution=none", lambda: net(execution=None), "execution|backend", "None", "name"),
    row("execution option", lambda: net(execution={"name": "vmap", "threads": 2}), "'vmap'", "threads"),
    row("execution=auto option", lambda: net(execution={"name": "auto", "rounds": 2}), "'auto'", "rounds|option"),
    row("reduce=mena", lambda: net(reduce="mena"), "reduce", "'mena'", near("mean")),
    row("reduce=3", lambda: net(reduce=3), "reduce", "3", "'mean'"),
    row("reduce=[]", lambda: net(reduce=["mean"]), "reduce", "'mean'"),
    row("reduce option", lambda: net(reduce={"name": "majority", "dims": 1}), "reduce", "dims", near("dim")),
    row("reduce dim", lambda: net(reduce={"name": "majority", "dim": 1.5}), "reduce", "dim", r"1\.5"),
    row("reduce dim of none", lambda: net(reduce={"dim": 1}), "reduce", "name"),
    row("reduce set", lambda: setting(net(), reduce="mena").eval()(X), "reduce", "'mena'", near("mean")),
    row("samples set", lambda: setting(net(), samples=0)(X), "samples", "0", "1 or more"),
]  # fmt: skip
PATTERNS = [
    row("generate=wieght", lambda: net(generate="wieght"), "'wieght'", near("weight")),
    row("exclude=bais", lambda: net(exclude=("bais",)), "'bais'", near("bias")),
    row("generate=3", lambda: net(generate=3), "generate", "3", "pattern"),
    row("exclude=3", lambda: net(exclude=3), "exclude", "3", "pattern"),
    row("generate=(3,)", lambda: net(generate=(3,)), "generate", "3", "pattern"),
    row("generate=none", lambda: net(generate=None), "generate", "None", "pattern"),
    row("generate=()", lambda: net(generate=()), "no parameter", "generate"),
    row("exclude=*", lambda: net(exclude="*"), "no parameter", "exclude"),
    row("generate={}", lambda: net(generate={"weight": True}), "generate", "weight", "pattern|sequence|list"),
]  # fmt: skip
OTHERS = [
    row("sample", lambda: net(sample=3), "sample"),
    row("plugins=3", lambda: net(plugins=3), "plugins", "3", "list|sequence"),
    row("plugins=text", lambda: net(plugins="broken"), "plugins", "'broken'", "list|sequence"),
    row("plugins alone", lambda: net(plugins=BrokenPlugin()), "plugins", "BrokenPlugin", "list|sequence"),
    row("plugins=[class]", lambda: net(plugins=[BrokenPlugin]), "BrokenPlugin", "class", "instance"),
    row("plugins=[object]", lambda: net(plugins=[SimpleNamespace()]), "SimpleNamespace", "no hook", "hookimpl"),
    row("plugins=[text]", lambda: net(plugins=["broken"]), "plug", "'broken'|'str'", "no hook|instance"),
    row("structure=3", lambda: net(structure=3), "structure", "3"),
    row("structure={}", lambda: net(structure={"norm": {}}), "structure", "norm", near("norms")),
    row("structure norms", lambda: net(structure={"norms": 3, "output": None}), "structure", "norms", "3"),
    row("batch_dim=-1", lambda: net(batch_dim=-1), "batch_dim", "-1", "axis"),
    row("batch_dim=1.5", lambda: net(batch_dim=1.5), "batch_dim", r"1\.5", "axis"),
    row("batch_dim=lst", lambda: net(batch_dim="lst"), "batch_dim", "'lst'", "'list'"),
    row("batch_dim=[0]", lambda: net(batch_dim=[0]), "batch_dim", r"\[0\]", "axis"),
    row("batch_dim entry", lambda: net(batch_dim={"input": "lst"}), "batch_dim", "'lst'", "'list'"),
    row("batch_dim argument", lambda: net(batch_dim={"inptu": 0})(X), "batch_dim", "inptu", near("input")),
    row("batch_dim axis", lambda: net(batch_dim={"input": 5})(X), "batch_dim", "5", "'input'", r"\(6, 4\)"),
    row("batch_dim axis of all", lambda: net(batch_dim=5)(X), "batch_dim", "5", r"\(6, 4\)"),
    row("example_inputs=text", lambda: net(example_inputs="x"), "example_inputs", "'x'|str", "tensor"),
    row("example_inputs=3", lambda: net(example_inputs=3), "example_inputs", "3|int", "tensor"),
    row("example_inputs=()", lambda: net(example_inputs=()), "example_inputs", "tensor|empty|argument"),
    row("example_inputs empty", lambda: net(example_inputs=X[:0]), "example_inputs", r"\(0, 4\)"),
    row("example_inputs width", lambda: net(example_inputs=torch.randn(2, 5)), "example_inputs", r"\(2, 5\)|5"),
]  # fmt: skip
GENERATOR = [
    row("compct", lambda: net(generator="compct"), "generator", "'compct'", near("compact")),
    row("a callback's preset", lambda: net(generator="manifold"), "generator", "'manifold'", "preset"),
    row("3", lambda: net(generator=3), "generator", "3", "preset"),
    row("[]", lambda: net(generator=["compact"]), "generator", "compact", "preset"),
    row("a class", lambda: net(generator=GeneratorConfig), "generator", "GeneratorConfig", "instance|class|GeneratorConfig"),
    row("hiden of a config", lambda: GeneratorConfig(hiden=64), "hiden"),
    row("hiden", lambda: net(generator={"hiden": 64}), "hiden", near("hidden")),
    row("presett", lambda: net(generator={"presett": "compact"}), "presett", near("preset")),
    row("preset=3", lambda: net(generator={"preset": 3}), "preset", "3", "compact"),
    row("hidden of other banks", lambda: config(hidden=((4,), (4,), (4,))), "hidden", "3 banks", "1"),
    row("hidden mixed", lambda: config(hidden=((4,), 4)), "hidden", "4"),
    row("extractor=mpl", lambda: config(extractor="mpl"), "extractor", "'mpl'", near("mlp")),
    row("extractor=3", lambda: config(extractor=3), "extractor", "3", "name"),
    row("extractor=none", lambda: config(extractor=None), "extractor", "None", "name"),
    row("extractor option", lambda: config(extractor={"name": "matrix", "depth": 2}), "extractor", "'matrix'", "depth"),
    row("start=pretraind", lambda: config(start="pretraind"), "start", "'pretraind'", near("pretrained")),
    row("activation=relo", lambda: config(activation="relo"), "activation", "'relo'", near("relu")),
    row("norm=bach", lambda: config(norm="bach"), "norm", "'bach'", near("batch")),
    row("norm=3", lambda: config(norm=3), "norm", "3", "none"),
    row("merge=(99,)", lambda: config(merge=(99,)), "merge", "99", "layer"),
    row("merge=(-3,)", lambda: config(merge=(-3,)), "merge", "-3", "layer"),
    row("merge=last", lambda: config(merge="last"), "merge", "'last'", "position|whole|number"),
    row("paper=mnst", lambda: GeneratorConfig.paper("mnst"), "'mnst'", near("mnist")),
    row("paper=3", lambda: GeneratorConfig.paper(3), "target", "3", "mnist"),
    row("pretrained=nan", lambda: GeneratorConfig.pretrained(NAN), "gain", "nan"),
    *each("code_size", config, (0, -1, 1.5, NAN, "many")),
    *each("pace", config, (0, -1, NAN, "fast")),
    *each("hidden", config, (0, (0,), (4, -1), (1.5,), "wide", NAN)),
    *each("extractor_hidden", config, ((0,), "wide", (1.5,), None)),
    *each("spread", config, (NAN, INF, -0.1, "wide", None, True, [0.3])),
    *each("gain", config, (NAN, INF, -0.1, "big", None)),
    *each("slope", config, (NAN, INF, "steep")),
    *each("norm_eps", config, (NAN, -1e-5, "small")),
    *each("norm_momentum", config, (NAN, -0.1, 1.5)),
    *each("start", config, (None, 3)),
    *each("activation", config, (None, nn.ReLU)),
    *each("bias", config, ("maybe", 3, None)),
    *each("residual", config, ("maybe",)),
    *each("merge", config, ((1.5,), None)),
    *each("merge_limit", config, (-1, 1.5, NAN, "many")),
]  # fmt: skip
CALLBACK = [
    row("compnents", lambda: callback(compnents=4), "compnents", near("components")),
    row("sample", lambda: callback(sample=4), "sample", near("samples")),
    row("diversty", lambda: callback(diversty="entropy"), "diversty", near("diversity")),
    row("targt", lambda: callback(targt="model"), "targt", near("target")),
    row(
        "finetune, rank_one",
        lambda: HypernetCallback(preset="finetune", distribution="rank_one"),
        "distribution",
        "'rank_one'",
        "generator=, or the preset",
    ),
    row("target=none", lambda: callback(target=None), "target", "None", "path"),
    row("target=3", lambda: callback(target=3), "target", "3", "path"),
    row("target=''", lambda: callback(target=""), "target", "''", r"'\.'|path"),
    row("target a module", lambda: callback(target=nn.Linear(4, 3)), "target", "Linear", "path"),
    row("target=modle", lambda: fit(callback(target="modle")), "'modle'", near("model")),
    row("target a parameter", lambda: fit(callback(target="model.weight")), "'model.weight'", "set target to|did you mean"),
    row("diversity=3", lambda: callback(diversity=3), "diversity", "3", "name"),
    row("diversity an instance", lambda: callback(diversity=Entropy()), "diversity", "Entropy", "name"),
    row("diversity a class", lambda: callback(diversity=Entropy), "diversity", "Entropy", "name"),
    row("diversity=entropi", lambda: callback(diversity="entropi"), "diversity", "'entropi'", near("entropy")),
    row("diversity=[3]", lambda: callback(diversity=["entropy", 3]), "diversity", "3", "entropy"),
    row("diversity twice", lambda: callback(diversity=["entropy", "entropy"]), "diversity", "'entropy'", "twice|once"),
    row("weight=none", lambda: callback(diversity={"entropy": None}), "'entropy'", "None", "number"),
    row("weight=much", lambda: callback(diversity={"entropy": "much"}), "'entropy'", "'much'", "number"),
    row("weight=-1", lambda: callback(diversity={"entropy": -1}), "'entropy'", "-1", "0 or more|negative|positive"),
    row("weight=nan", lambda: callback(diversity={"entropy": NAN}), "'entropy'", "nan", "weight"),
    row("weight=inf", lambda: callback(diversity={"entropy": INF}), "'entropy'", "inf", "weight"),
    row("weight=true", lambda: callback(diversity={"entropy": True}), "'entropy'", "True", "number"),
    row("weight=[]", lambda: callback(diversity={"entropy": [1e-3]}), "'entropy'", r"\[0\.001\]", "number"),
    row("weight within", lambda: callback(diversity={"entropy": {"weight": NAN}}), "'entropy'", "nan", "weight"),
    row("wieght", lambda: callback(diversity={"entropy": {"wieght": 1}}), "'entropy'", "wieght", near("weight")),
    row("option of a loss", lambda: callback(diversity={"entropy": {"coordinate": 9}}), "'entropy'", near("coordinates")),
    row("value of a loss", lambda: callback(diversity={"entropy": {"p": 3}}), "p must be", "3", "entropy|1 or 2"),
    row("preset=deep_ensembel", lambda: callback(preset="deep_ensembel"), "preset", "'deep_ensembel'", near("deep_ensemble")),
    row("preset=3", lambda: callback(preset=3), "preset", "3", "deep_ensemble"),
    row("preset of generators", lambda: callback(preset="compact"), "preset", "'compact'", "generator"),
    row("context=3", lambda: callback(context=3, context_dim=1), "context", "3", "function"),
    row("context a tensor", lambda: callback(context=torch.zeros(2), context_dim=2), "context", "[Tt]ensor", "function"),
    row("context alone", lambda: callback(context=lambda batch: torch.zeros(2)), "context", "context_dim", "0"),
    row("context shape", lambda: fit(callback(context=lambda _: torch.zeros(3), context_dim=2)), "context", r"\(3,\)",
        r"\(2,\)"),
    row("context text", lambda: fit(callback(context=lambda _: "hot", context_dim=2)), "context", "'hot'|str", "tensor|number"),
    row("context nan", lambda: fit(callback(context=lambda _: torch.full((2,), NAN), context_dim=2)), "context", "NaN"),
    row("deal=batches", lambda: callback(deal="batches"), "deal", "'batches'", near("batch")),
    row("deal=3", lambda: callback(deal=3), "deal", "3", "'batch'"),
    row("deal=none", lambda: callback(deal=None), "deal", "None", "'inputs'"),
    row("deal function", lambda: fit(callback(deal=lambda batch, n: 3)), "deal", "3|int", "parts|list"),
    row("deal nothing", lambda: fit(callback(deal=lambda batch, n: [])), "deal", "parts", "empty|none|no "),
    row("validation=member", lambda: callback(validation="member"), "validation", "'member'", near("members")),
    row("validation=true", lambda: callback(validation=True), "validation", "True", "'ensemble'"),
    row("copies of itself", lambda: fit(callback(copies="model")), "copies", "'model'", "itself"),
    row("infinite weight", lambda: fit(callback(diversity={"entropy": 1e300})), "'entropy'", r"1e\+300", "infinite"),
    row("copies=3", lambda: callback(copies=3), "copies", "3", "path"),
    row("copies=(3,)", lambda: callback(copies=(3,)), "copies", "3", "path"),
    row("copies=teacher", lambda: fit(callback(copies="teacher")), "'teacher'", "no such module", "copies|copy"),
    row("plugins a class", lambda: callback(plugins=BrokenPlugin), "BrokenPlugin", "class|list", "instance|list"),
    row("plugins a text", lambda: callback(plugins="broken"), "plugins", "'broken'", "list|sequence"),
    row("hypernet too early", lambda: callback().hypernet, "Hypernet", "fit", error=RuntimeError),
    *each("samples", callback, (0, "many", NAN)),
    *each("latent_dim", callback, (1.5, "many")),
    *each("context_dim", callback, (-1, "many")),
    row("generator", lambda: callback(generator="compct"), "generator", "'compct'", near("compact")),
    row("gain", lambda: callback(generator={"gain": NAN}), "gain", "nan"),
    row("prior", lambda: callback(prior="normall"), "prior", "'normall'", near("normal")),
    row("gauge", lambda: callback(gauge="scael"), "gauge", "'scael'", near("scale")),
    row("execution", lambda: callback(execution="vmapp"), "execution|backend", "'vmapp'", near("vmap")),
    row("reduce", lambda: callback(reduce="mena"), "reduce", "'mena'", near("mean")),
    row("batch_dim", lambda: callback(batch_dim="lst"), "batch_dim", "'lst'", "'list'"),
    row("generate", lambda: callback(generate=3), "generate", "3", "pattern"),
    row("exclude", lambda: callback(exclude=3), "exclude", "3", "pattern"),
    row("structure", lambda: callback(structure=3), "structure", "3"),
    row("example_inputs", lambda: callback(example_inputs="x"), "example_inputs", "'x'|str", "tensor"),
    row("distribution", lambda: callback(distribution="generater"), "distribution", "'generater'", near("generator")),
    row("distribution option", lambda: callback(distribution={"name": "generator", "depth": 2}), "'generator'", "depth"),
    row("extractor", lambda: callback(generator={"extractor": "mpl"}), "extractor", "'mpl'", near("mlp")),
]  # fmt: skip
DIVERSITY = [
    *each("p", Entropy, (3, None, "three", NAN), "1 or 2"),
    *each("coordinates", Entropy, (0, 1.5, "many", NAN)),
    *each("samples", Entropy, (0, 1, -1, 1.5, "many")),
    *each("p", OutputEntropy, (3,), "1 or 2"),
    *each("softmax", OutputEntropy, ("maybe",)),
    row("loss=cross_entropi", lambda: EnsembleLoss("cross_entropi"), "loss", "'cross_entropi'", near("cross_entropy")),
    row("loss=relu", lambda: EnsembleLoss("relu"), "loss", "'relu'", "targets|no loss"),
    row("loss=3", lambda: EnsembleLoss(3), "loss", "3", "function|name"),
    row("loss=none", lambda: EnsembleLoss(None), "loss", "None", "function|name"),
    row("join=meen", lambda: EnsembleLoss(join="meen"), "join", "'meen'", near("mean")),
    row("dim=1.5", lambda: EnsembleLoss(dim=1.5), "dim", r"1\.5", "axis|integer|whole"),
    row("relative=maybe", lambda: EnsembleLoss(relative="maybe"), "relative", "'maybe'", "true|bool"),
    row("reads=weight", lambda: MutualInformation(reads="weight"), "reads", "'weight'", near("weights")),
    row("latent=continous", lambda: MutualInformation(latent="continous"), "latent", "'continous'", near("continuous")),
    *each("coordinates", MutualInformation, (0, 1.5, "all")),
    *each("hidden", MutualInformation, (0, 1.5, "wide")),
    *each("noise", MutualInformation, (-1, NAN, INF, "loud")),
    row("method=ked", lambda: Repulsion("ked"), "method", "'ked'", near("kde")),
    row("space=weight", lambda: Repulsion(space="weight"), "space", "'weight'", near("weights")),
    *each("eta", Repulsion, (-1, NAN, INF, "small")),
    row("entropy of none", lambda: Entropy()(net().population), "population", "None"),
    row("entropy of a tensor", lambda: Entropy()(X), "population", "Tensor"),
    row("variance of weights", lambda: Variance()(net().sample(4).weights), "population", "dict|Mapping|weights"),
    row("entropy of one", lambda: Entropy()(net().sample(1)), "two networks", "1", "samples"),
    row("a loss that needs examples", lambda: OutputEntropy()(net().sample(2)), "inputs", "training forward"),
]  # fmt: skip
METHODS = [
    *[
        row(f"sample({n!r})", lambda n=n: net().sample(n), r"\bn\b", re.escape(repr(n)))
        for n in (0, -1, 1.5, "three", NAN, None, True)
    ],
    *[
        row(f"component={one!r}", lambda one=one: net(components=2).sample(2, component=one), "component",
            re.escape(repr(one)))
        for one in (5, -1, 1.5, "first", NAN, [0, 1])
    ],
    row("context without", lambda: net().sample(2, context=torch.zeros(3)), "context", r"\(3,\)", "context_dim"),
    row("context shape", lambda: net(context_dim=2).sample(2, context=torch.zeros(3)), "context", r"\(3,\)", r"\(2,\)"),
    row("context text", lambda: net(context_dim=2).sample(2, context="hot"), "context", "'hot'|str", "tensor|number"),
    row("context nan", lambda: net(context_dim=2).sample(2, context=torch.full((2,), NAN)), "context", "NaN"),
    row("decode width", lambda: net().decode(torch.randn(3, 5)), "latents", r"\(3, 5\)", r"\(n, 4\)"),
    row("decode empty", lambda: net().decode(torch.randn(0, 4)), "latents", r"\(0, 4\)", "n > 0"),
    row("decode integers", lambda: net().decode(torch.zeros(2, 4, dtype=torch.long)), "latents", "int64", "float"),
    row("decode nan", lambda: net().decode(torch.full((2, 4), NAN)), "latents", "NaN"),
    row("decode a number", lambda: net().decode(torch.tensor(1.0)), "latents", r"\(\)", r"\(n, 4\)"),
    row("decode truths", lambda: net(components=2).decode(Latents(torch.zeros(1, 4), torch.tensor([True]))), "component",
        "bool"),
    row("decode text", lambda: net().decode("z"), "latents", "'z'|str", "Latents|tensor"),
    row("decode none", lambda: net().decode(None), "latents", "None", "Latents|tensor"),
    row("decode list", lambda: net().decode([[0.0] * 4]), "latents", "list", "Latents|tensor"),
    row("decode component", lambda: net().decode(Latents(torch.zeros(1, 4), torch.tensor([3]))), "component", "3", "0 to 0"),
    row("decode components", lambda: net().decode(Latents(torch.zeros(2, 4), torch.tensor([0]))), "component", r"\b1\b",
        r"\b2\b"),
    row("decode real component", lambda: net().decode(Latents(torch.zeros(1, 4), torch.zeros(1))), "component", "float32",
        "integer"),
    row("decode no component", lambda: net().decode(Latents(torch.zeros(1, 4), None)), "component", "None"),
    row("run 3", lambda: net().run(3, X), "population", "3|int", "sample"),
    row("run none", lambda: net().run(None, X), "population", "None", "sample"),
    row("run weights", lambda: net().run(net().sample(2).weights, X), "population", "dict|Mapping", "sample"),
    row("run inputs first", lambda: net().run(X, net().sample(2)), "population", "Tensor", "sample"),
    row("run another's", lambda: net().run(net(nn.Linear(5, 3)).sample(2), X), "population", "another|other|not of"),
    row("run chunk_size=0", lambda: net(execution="vmap").eval().run(net().sample(2), X, chunk_size=0), "chunk_size", "0"),
    row("run chunk_size=two", lambda: net(execution="vmap").run(net().sample(2), X, chunk_size="two"), "chunk_size", "'two'"),
    row("materialize 3", lambda: net().materialize(3), "population", "3|int", "sample"),
    row("materialize none", lambda: net().materialize(None), "population", "None", "sample"),
    row("materialize another's", lambda: net().materialize(net(nn.Linear(5, 3)).sample(2)), "population",
        "another|other|not of"),
    row("population[0]", lambda: net().sample(2)[0], "population", "slice", "int"),
    row("population[5:]", lambda: net().sample(2)[5:], "population", "2", "empty|no network"),
    row("ensemble(0)", lambda: net().ensemble(0), r"\bn\b", "0", "1 or more"),
    row("ensemble('ten')", lambda: net().ensemble("ten"), r"\bn\b", "'ten'", "whole|1 or more"),
    row("ensemble component", lambda: net().ensemble(2, component=9), "component", "9", "0 to 0"),
    row("ensemble loader=3", lambda: net(normed()).ensemble(2, loader=3), "loader", "3|int", "batches"),
    row("ensemble loader=[]", lambda: net(normed()).ensemble(2, loader=[]), "loader", "no batch|empty"),
    row("statistics of 3", lambda: net(normed()).update_statistics(3), "loader|batches", "3|int"),
    row("statistics of nan", lambda: net(normed()).update_statistics([(X * NAN, Y)]), "1.running_mean", "NaN", "loader"),
    row("members of nan", lambda: members(normed()).update_statistics([(X * NAN, Y)]), "1.running_mean", "NaN", "loader"),
    row("decode nan condition", lambda: net(context_dim=1).decode(Latents(torch.zeros(1, 4), torch.tensor([0]),
        torch.full((1, 1), NAN))), "context", "NaN"),
    row("complex condition", lambda: net(context_dim=1).sample(2, context=torch.tensor([1j])), "context", "complex64"),
    row("statistics of 3, none there", lambda: net().update_statistics(3), "loader|batches", "3|int"),
    row("statistics of []", lambda: net(normed()).update_statistics([]), "loader|batch", "no batch|empty"),
    row("statistics of a tensor", lambda: net(normed()).update_statistics(X), "loader|batches", "[Tt]ensor"),
    row("statistics of text", lambda: net(normed()).update_statistics("train"), "loader|batches", "'train'|str"),
    row("statistics without end", lambda: net(normed()).update_statistics(itertools.repeat((X, Y))), "loader|batches",
        "end|islice"),
    row("statistics in a circle", lambda: net(normed()).update_statistics(itertools.cycle(LOADER)), "loader|batches",
        "end|islice"),
    row("statistics of nothing", lambda: net(normed()).update_statistics(), "loader", error=OF_STATE),
    row("statistics population", lambda: net(normed()).update_statistics(LOADER, population=3), "population", "3|int"),
    row("statistics inputs", lambda: net(normed()).update_statistics(LOADER, inputs=3), "inputs", "3|int", "function"),
    row("statistics numbers", lambda: net(normed()).update_statistics([1, 2]), "loader|batch", "1|int", "inputs|tensor"),
    row("member_context", lambda: setting(net(context_dim=2), member_context=torch.zeros(3)), "context", r"\(3,\)", r"\(2,\)"),
    row("member_context text", lambda: setting(net(context_dim=2), member_context="hot"), "context", "'hot'|str"),
    row("member_context none", lambda: setting(net(context_dim=2), member_context=None), "context", "None"),
    row("member_context nan", lambda: setting(net(context_dim=2), member_context=torch.full((2,), NAN)), "context", "NaN"),
    row("step context", lambda: step(net(context_dim=2), context=torch.zeros(3)), "context", r"\(3,\)", r"\(2,\)"),
    row("step context text", lambda: step(net(context_dim=2), context="hot"), "context", "'hot'|str"),
    row("step in evaluation", lambda: step(net().eval(), context=torch.zeros(0)), "evaluation", "member_context",
        error=RuntimeError),
    row("deal 3", lambda: dealt(net(), 3), "batch", "3|int|nothing", "tensor|deal="),
    row("deal {}", lambda: dealt(net(), {}), "batch", "nothing|empty"),
    row("deal empty", lambda: dealt(net(), (X[:0], Y[:0])), "batch", "nothing|empty"),
    row("deal split=3", lambda: dealt(net(), (X, Y), split=3), "split", "3|int", "function"),
    row("deal split to 3", lambda: dealt(net(), (X, Y), split=lambda batch, n: 3), "split", "3|int", "parts|list"),
    row("deal split to []", lambda: dealt(net(), (X, Y), split=lambda batch, n: []), "split", "parts", "empty|none|no "),
    row("call without a batch", lambda: net()("text"), "batch", "str", "tensors"),
    row("diversity_loss", lambda: net().diversity_loss(), "diversity", "callback|forward", error=RuntimeError),
]  # fmt: skip


def read(path="run.ckpt", target=None, **options):
    return Hypernet.from_checkpoint(path, nn.Linear(4, 3) if target is None else target, **options)


CHECKPOINTS = [
    row("missing", lambda: read("missing.ckpt"), r"missing\.ckpt", "no such|not exist|no file", error=OF_FILES),
    row("a folder", lambda: read("empty"), "empty", "folder|directory", error=OF_FILES),
    row("text", lambda: read("text.ckpt"), r"text\.ckpt", "checkpoint"),
    row("other contents", lambda: read("list.ckpt"), r"list\.ckpt", "checkpoint", "list|Hypernet"),
    row("no Hypernet", lambda: read("plain.ckpt"), r"plain\.ckpt", "no Hypernet"),
    row("an ensemble", lambda: read("ensemble"), "ensemble", "Ensemble.load|folder|directory", error=OF_FILES),
    row("path=3", lambda: read(3), "path", "3"),
    row("path=none", lambda: read(None), "path", "None"),
    row("name=modle", lambda: read(name="modle"), "'modle'", near("model")),
    row("name=3", lambda: read(name=3), "3", "'model'"),
    row("target=none", lambda: Hypernet.from_checkpoint("run.ckpt", None), "target", "None", "Module"),
    row("target a class", lambda: read(target=nn.Linear), "target", "Linear", "instance|class"),
    row("another target", lambda: read(target=nn.Linear(5, 3)), "Linear", "weight", r"\b15\b", r"\b18\b", error=OF_STATE),
    row("gage", lambda: read(gage="none"), "gage", near("gauge")),
    row("gauge=scael", lambda: read(gauge="scael"), "gauge", "'scael'", near("scale")),
    row("latent_dim=9", lambda: read(latent_dim=9), "latent_dim", "4", "9", error=OF_STATE),
    row("loader=3", lambda: read(loader=3), "loader|batches", "3|int"),
]  # fmt: skip


def load(folder="ensemble", target=None, **options):
    return Ensemble.load(folder, nn.Linear(4, 3) if target is None else target, **options)


def members(target=None, n=2, **options):
    return net(target, **options).ensemble(n, loader=LOADER)


ENSEMBLE = [
    row("[0]", lambda: members()[0], "slice", "int", "materialize"),
    row("['a']", lambda: members()["a"], "slice", "str"),
    row("[5:]", lambda: members()[5:], "2", "empty|no member"),
    row("reduce", lambda: setting(members(), reduce="mena")(X), "reduce", "'mena'", near("mean")),
    *[
        row(f"chunk_size={one!r}", lambda one=one: members(execution="vmap").members(X, chunk_size=one), "chunk_size",
            repr(one))
        for one in (0, -1, 1.5, "two")
    ],
    row("load missing", lambda: load("missing"), "missing", "no such|not exist|no ensemble|save", error=OF_FILES),
    row("load empty", lambda: load("empty"), "empty", "ensemble.json|no ensemble", error=OF_FILES),
    row("load a file", lambda: load("run.ckpt"), r"run\.ckpt", "folder|directory", error=OF_FILES),
    row("load without tensors", lambda: load("half"), "half", "safetensors", error=OF_FILES),
    row("load broken json", lambda: load("broken"), "broken", "ensemble.json|JSON|recipe"),
    row("load a list", lambda: load("list"), "list", "ensemble.json|recipe|format"),
    row("load without keys", lambda: load("keys"), "keys", "aliases"),
    row("load broken tensors", lambda: load("tensors"), "tensors/|tensors'|folder", "safetensors"),
    row("load folder=3", lambda: load(3), "folder", "3"),
    row("load without target", lambda: Ensemble.load("ensemble"), "ensemble", "recipe", "target="),
    row("load target=3", lambda: load(target=3), "target", "3|int", "Module"),
    row("load target a class", lambda: load(target=nn.Linear), "target", "Linear", "instance|class"),
    row("load another target", lambda: load(target=nn.Linear(5, 3)), "Linear", "weight", r"2, 3, 4\)", r"2, 3, 5\)"),
    row("load another module", lambda: load(target=nn.Conv1d(4, 3, 1)), "Conv1d", "weight", r"2, 3, 4\)"),
    row("save to a file", lambda: members().save("text.ckpt"), r"text\.ckpt", "folder|directory", error=OF_FILES),
    row("save to 3", lambda: members().save(3), "folder", "3"),
    row("save recipe of numpy", lambda: members().save("new", recipe={"class_path": "a.B", "init_args": {"x": np.int64(3)}}),
        "recipe", "plain values", "int64"),
    row("save recipe=3", lambda: members().save("new", recipe=3), "recipe", "3", "class_path"),
    row("save recipe without path", lambda: members().save("new", recipe={"classpath": "a.B"}), "recipe", near("class_path")),
    row("save recipe of objects", lambda: members().save("new", recipe={"class_path": nn.Linear}), "recipe|class_path",
        "Linear"),
    row("save recipe unknown", lambda: members().save("new", recipe={"class_path": "Linear"}), "class_path|recipe",
        "'?Linear'?"),
    row("average without", lambda: members(normed()).average(), "loader", "statistics"),
    row("average of []", lambda: members(normed()).average([]), "loader", "no batch|empty"),
    row("average of 3", lambda: members(normed()).average(3), "loader", "3|int"),
    row("average of 3, no need", lambda: members().average(3), "loader", "3|int"),
    row("average of 0 batches", lambda: members(normed()).average(LOADER, batches=0), r"\bbatches\b", "0"),
    row("average of -1 batches", lambda: members(normed()).average(LOADER, batches=-1), r"\bbatches\b", "-1"),
    row("average of two batches", lambda: members(normed()).average(LOADER, batches="two"), r"\bbatches\b", "'two'"),
    row("average without end", lambda: members(normed()).average(itertools.cycle(LOADER)), "loader", "batches="),
    row("statistics of []", lambda: members(normed()).update_statistics([]), "loader", "no batch|empty"),
    row("statistics of 3", lambda: members(normed()).update_statistics(3), "loader", "3|int"),
    row("statistics of none", lambda: members(normed()).update_statistics(None), "loader", "None"),
    row("statistics without end", lambda: members(normed()).update_statistics(itertools.repeat((X, Y))), "loader", "batches="),
]  # fmt: skip
UNUSED = (
    MemberAccuracy, EnsembleAccuracy, MemberNLL, EnsembleNLL, EnsembleBrier, lambda: EnsembleCalibrationError(3), Disagreement,
    PairwiseKL, VariationRatio, DoubleFault, QStatistic, WeightCosine,
)  # fmt: skip
LABELLED = (MemberAccuracy, EnsembleAccuracy, EnsembleNLL, EnsembleBrier, Disagreement, DoubleFault)
METRICS = [
    *[
        row(f"compute {make().__class__.__name__}", lambda make=make: make().compute(), make().__class__.__name__, "update",
            error=UserWarning)  # of torchmetrics, which tells it
        for make in UNUSED
    ],
    *[
        row(f"labels=7 {make.__name__}", lambda make=make: updated(make(), PREDICTIONS, Y.new_full((6,), 7)), "labels", "7",
            "3 classes|0 to 2")
        for make in LABELLED
    ],
    *[
        row(f"labels=-1 {make.__name__}", lambda make=make: updated(make(), PREDICTIONS, Y.new_full((6,), -1)), "labels", "-1",
            "3 classes|0 to 2")
        for make in LABELLED[:3]
    ],
    *[
        row(f"real labels {make.__name__}", lambda make=make: updated(make(), PREDICTIONS, Y.float()), "labels", "float32",
            "integer")
        for make in LABELLED[:3]
    ],
    row("empty batch", lambda: updated(EnsembleNLL(), PREDICTIONS[:, :0], Y[:0]), "empty|no example", "batch"),
    row("no members", lambda: updated(EnsembleNLL(), PREDICTIONS[:0]), "member", r"\(0, 6, 3\)|empty|no member|0 members"),
    row("one class", lambda: updated(EnsembleNLL(), PREDICTIONS[..., :1], Y * 0), "classes", "1", "two"),
    row("two axes", lambda: updated(EnsembleNLL(), PREDICTIONS[0]), r"\(members, batch, classes\)", r"\(6, 3\)"),
    row("votes", lambda: updated(EnsembleNLL(), PREDICTIONS.argmax(-1)), r"\(members, batch, classes\)", r"\(3, 6\)"),
    row("integers", lambda: updated(EnsembleNLL(), (PREDICTIONS * 9).long()), "predictions", "int64", "probabilities|logits"),
    row("nan", lambda: updated(EnsembleAccuracy(), PREDICTIONS * NAN), "predictions", "NaN"),
    row("infinite", lambda: updated(EnsembleNLL(), PREDICTIONS * INF), "predictions", "infinite|inf"),
    row("list", lambda: updated(EnsembleAccuracy(), PREDICTIONS.tolist()), "predictions", "list", "tensor"),
    row("none", lambda: updated(EnsembleAccuracy(), None), "predictions", "None", "tensor"),
    row("labels none", lambda: updated(EnsembleAccuracy(), PREDICTIONS, None), "labels", "None", "tensor"),
    row("one-hot labels", lambda: updated(EnsembleAccuracy(), PREDICTIONS, F.one_hot(Y, 3)), "labels", r"\(6, 3\)"),
    row("fewer labels", lambda: updated(EnsembleAccuracy(), PREDICTIONS, Y[:4]), "labels", r"\(4,\)"),
    row("other classes", lambda: updated(EnsembleCalibrationError(5), PREDICTIONS), "classes", "5", "3"),
    row("reduce=mena", lambda: MemberAccuracy("mena"), "reduce", "'mena'", near("mean")),
    row("vote=majorty", lambda: EnsembleAccuracy("majorty"), "vote", "'majorty'", near("majority")),
    row("classes=0", lambda: population_metrics(0), "classes", "0"),
    row("classes=three", lambda: population_metrics("three"), "classes", "three"),
    row("classes=1", lambda: population_metrics(1), "classes", "1", "2|two|larger"),
    row("bins=0", lambda: EnsembleCalibrationError(3, bins=0), "bins", "0"),
    row("cosine of 3", lambda: WeightCosine().update(3), "population", "3|int"),
    row("cosine of weights", lambda: WeightCosine().update(net().sample(2).weights), "population", "dict|Mapping"),
    row("cosine of one", lambda: WeightCosine().update(net().sample(1)), "two", "1"),
    row("distance of another's", lambda: SymmetryDistance(net()).update(net(nn.Linear(5, 3)).sample(2)), "population",
        "another"),
    row("infinite logits", lambda: updated(EnsembleNLL(), PREDICTIONS - INF), "predictions", "infinit"),
    row("distance of 3", lambda: SymmetryDistance(3), "hypernet", "3|int", "Hypernet"),
]  # fmt: skip
ANALYSIS = [
    row("accuracies of []", lambda: accuracies(net(), net().sample(2), []), "loader", "empty"),
    row("accuracies of 3", lambda: accuracies(net(), net().sample(2), 3), "loader", "3|int", "batches"),
    row("accuracies no population", lambda: accuracies(net(), 3, LOADER), "population", "3|int"),
    row("accuracies no hypernet", lambda: accuracies(nn.Linear(4, 3), net().sample(2), LOADER), "hypernet", "Linear"),
    row("accuracies no labels", lambda: accuracies(net(), net().sample(2), [X]), "loader|batch", "labels"),
    row("accuracies dicts", lambda: accuracies(net(), net().sample(2), [{"x": X, "y": Y}]), "loader|batch", "inputs, labels"),
    row("accuracies real labels", lambda: accuracies(net(), net().sample(2), [(X, Y.float())]), "labels", "float32", "integer"),
    row("accuracies labels=7", lambda: accuracies(net(), net().sample(2), [(X, Y * 0 + 7)]), "labels", "7", "3 classes|0 to 2"),
    row("accuracies fewer labels", lambda: accuracies(net(), net().sample(2), [(X, Y[:1])]), "labels", r"\(1,\)"),
    row("accuracies columns", lambda: accuracies(net(), net().sample(2), [(X, Y[:, None])]), "labels", r"\(6, 1\)"),
    row("accuracies nan", lambda: accuracies(net(), net().sample(2), [(X * NAN, Y)]), "NaN", "inputs"),
    row("averaging fewer labels", lambda: averaging(members(), [(X, Y[:1])]), "labels", r"\(1,\)"),
    row("averaging nan", lambda: averaging(members(), [(X * NAN, Y)]), "NaN", "inputs"),
    row("averaging a generator", lambda: averaging(members(normed()), LOADER, training=(one for one in LOADER)), "training",
        "generator", "list"),
    row("adversarial nan", lambda: adversarial(net(), [(X * NAN, Y)], ensemble=2), "NaN", "inputs"),
    row("paths of a generator", lambda: paths(net(), (one for one in LOADER)), "loader", "generator", "list"),
    row("accuracies without end", lambda: accuracies(net(), net().sample(2), itertools.cycle(LOADER)), "loader", "end|islice"),
    row("sizes=0.1", lambda: adversarial(net(), LOADER, sizes=0.1), "sizes", r"0\.1", r"list|sequence|\(0\.1,\)|several"),
    row("sizes=()", lambda: adversarial(net(), LOADER, sizes=()), "sizes", "empty|none|one or more|no "),
    row("sizes=nan", lambda: adversarial(net(), LOADER, sizes=(NAN,)), "sizes", "nan"),
    row("sizes=-0.1", lambda: adversarial(net(), LOADER, sizes=(-0.1,)), "sizes", r"-0\.1"),
    row("sizes=big", lambda: adversarial(net(), LOADER, sizes="big"), "sizes", "'big'|'b'"),
    row("attack=fgsn", lambda: adversarial(net(), LOADER, attack="fgsn"), "attack", "'fgsn'", near("fgsm")),
    row("attack=none", lambda: adversarial(net(), LOADER, attack=None), "attack", "None", "fgsm"),
    row("attacked=0", lambda: adversarial(net(), LOADER, attacked=0), r"\battacked\b", "0", "1 or more"),
    row("ensemble=0", lambda: adversarial(net(), LOADER, ensemble=0), r"\bensemble\b", "0", "1 or more"),
    row("ensemble=many", lambda: adversarial(net(), LOADER, ensemble="many"), r"\bensemble\b", "'many'"),
    row("adversarial []", lambda: adversarial(net(), []), "loader", "empty"),
    row("adversarial 3", lambda: adversarial(net(), 3), "loader", "3|int"),
    row("adversarial ensemble", lambda: adversarial(members(), LOADER), "hypernet", "Ensemble"),
    row("pgd steps=0", lambda: pgd(nn.Linear(4, 3), X, Y, 0.1, steps=0), "steps", "0", "1 or more"),
    row("fgsm size=nan", lambda: fgsm(nn.Linear(4, 3), X, Y, NAN), "size", "nan"),
    row("counts=()", lambda: averaging(members(), LOADER, counts=()), "counts", "1"),
    row("counts=(99,)", lambda: averaging(members(), LOADER, counts=(99,)), "counts", "2 members"),
    row("counts=(0, 1)", lambda: averaging(members(), LOADER, counts=(0, 1)), "counts", "0", "1"),
    row("counts=5", lambda: averaging(members(), LOADER, counts=5), "counts", "5", r"list|sequence|\(5,\)"),
    row("counts=1.5", lambda: averaging(members(), LOADER, counts=(1.5,)), "counts", r"1\.5"),
    row("averaging []", lambda: averaging(members(), []), "loader", "empty"),
    row("averaging a Hypernet", lambda: averaging(net(), LOADER), "ensemble", "Hypernet", r"ensemble\("),
    row("averaging no training", lambda: averaging(members(normed()), LOADER), "training|loader", "statistics"),
    row("filter of wieght", lambda: filter_images(net(), "wieght"), "'wieght'", near("weight")),
    row("filter of bias", lambda: filter_images(net(), "bias"), "'bias'", "two or four axes"),
    row("filter of 3", lambda: filter_images(net(), 3), "parameter|weight", "3"),
    row("filter=9", lambda: filter_images(net(nn.Conv2d(1, 2, 3)), "weight", filter=9), "filter", "9", "0 to 1"),
    row("filter=first", lambda: filter_images(net(nn.Conv2d(1, 2, 3)), "weight", filter="first"), "filter", "'first'"),
    row("filter samples=0", lambda: filter_images(net(), "weight", samples=0), "samples", "0", "1 or more"),
    row("ood []", lambda: ood(members().members, [], LOADER), "inside", "empty"),
    row("ood outside []", lambda: ood(members().members, LOADER, []), "outside", "empty"),
    row("ood 3", lambda: ood(members().members, LOADER, 3), "outside", "3|int"),
    row("ood joined", lambda: ood(members(), LOADER, LOADER), "members", r"\(6, 3\)", r"\(members, batch, classes\)|\.members"),
    row("ood no function", lambda: ood(3, LOADER, LOADER), "members", "3|int", "function|Ensemble"),
    row("ood infinite", lambda: ood(lambda x: x.expand(2, 6, 4) / 0, LOADER, LOADER), "inside", "infinite"),
    row("ood nan", lambda: ood(members().members, LOADER, [X * NAN]), "outside", "NaN"),
    row("pairs=0", lambda: paths(net(), LOADER, pairs=0), "pairs", "0", "1 or more"),
    row("points=0", lambda: paths(net(), LOADER, points=0), "points", "0", "or more"),
    row("points=many", lambda: paths(net(), LOADER, points="many"), "points", "'many'"),
    row("paths component", lambda: paths(net(), LOADER, component=9), "component", "9", "0 to 0"),
    row("paths []", lambda: paths(net(), [], points=2), "loader", "empty"),
    row("scatter samples=0", lambda: scatter(net(), samples=0), "samples", "0"),
    row("scatter samples=many", lambda: scatter(net(), samples="many"), "samples", "'many'"),
    row("scatter dimensions=0", lambda: scatter(net(), samples=4, dimensions=0), "dimensions", "0", "1 or more"),
    row("scatter dimensions=-1", lambda: scatter(net(), samples=4, dimensions=-1), "dimensions", "-1", "1 or more"),
    row("scatter bank", lambda: scatter(net(), samples=4, bank="wieght"), "bank", "'wieght'", "there are"),
    row("scatter filter alone", lambda: scatter(net(), samples=4, filter=0), "filter", "bank"),
    row("scatter an ensemble", lambda: scatter(members(), samples=4), "hypernet", "Ensemble"),
]  # fmt: skip


def distilled(**options):
    given = {"ensemble": members(), "student": nn.Linear(4, 3), **options}
    return Distillation(**given)


DISTILLATION = [
    *each("alpha", distilled, (2, -0.1, NAN, "much", None)),
    *each("temperature", distilled, (0, -1, NAN, INF, "hot", None)),
    *each("lr", distilled, (0, -1, NAN, "fast", None)),
    row("ensemble=3", lambda: distilled(ensemble=3), "ensemble", "3|int", "Ensemble"),
    row("ensemble a Hypernet", lambda: distilled(ensemble=net()), "ensemble", "Hypernet", r"ensemble\("),
    row("temprature", lambda: distilled(temprature=3), "temprature"),
    row("student=none", lambda: distilled(student=None), "student", "None", "Module"),
    row("student a class", lambda: distilled(student=nn.Linear), "student", "Linear", "instance|class"),
    row("student without parameters", lambda: distilled(student=nn.ReLU()), "student", "ReLU", "parameters"),
    row("student of one output", lambda: taught(LOADER[0], outputs=1), "student", r"\(6, 1\)|\b1\b",
        r"\(2, 6, 3\)|\(6, 3\)|\b3\b"),
    row("student of ten outputs", lambda: taught(LOADER[0], outputs=10), "student", "10", r"\b3\)?"),
    row("no labels", lambda: taught(X), "batch", "labels"),
    row("real labels", lambda: taught((X, Y.float())), "labels", "float32", "integer"),
    row("labels=7", lambda: taught((X, Y * 0 + 7)), "labels", "7", "3 classes|0 to 2"),
]  # fmt: skip
PLUGINS = [
    row("3", lambda: Plugins(3), "plug", "3", "list|sequence"),
    row("a class", lambda: Plugins([BrokenPlugin]), "BrokenPlugin", "class", "instance"),
    row("unknown hook", lambda: Plugins([MistypedPlugin()]), "MistypedPlugin", near("hypernet_register_diversity")),
    row("a wrong thing", lambda: Plugins([WrongPlugin()]), "WrongPlugin", "prior 'broken'", "subclass of Prior"),
]  # fmt: skip


def changed(position, value):
    """A loader whose first batch holds a value that is not finite."""
    batch = [X.clone(), torch.zeros(6, 3)] if position else [X.clone(), Y]
    batch[position][2, 1] = value
    return [tuple(batch)]


TRAINING = [
    row("nan in inputs", lambda: fit(callback(), loader=changed(0, NAN)), "NaN", r"batch\[0\]"),
    row("infinite inputs", lambda: fit(callback(), loader=changed(0, INF)), "infinite", r"batch\[0\]"),
    row("nan in targets", lambda: fit(callback(), loader=changed(1, NAN)), "NaN", r"batch\[1\]"),
    row("nan by name", lambda: fit(callback(), loader=[{"x": X * NAN, "y": Y}]), "NaN", r"batch\['x'\]"),
    row("nan in inputs, dealt", lambda: fit(callback(deal="batch"), loader=changed(0, NAN)), "NaN", r"batch\[0\]"),
    row("nan with norms", lambda: fit(callback(), Module(norm=True), changed(0, NAN)), "NaN", r"batch\[0\]"),
    row("nan with entropy", lambda: fit(callback(diversity="entropy"), loader=changed(0, NAN)), "NaN", r"batch\[0\]"),
    row("nan in the loss", lambda: fit(callback(), Module(lambda loss: loss * NAN)), "loss", "NaN", "learning rate"),
    row("infinite loss", lambda: fit(callback(), Module(lambda loss: loss * INF)), "loss", "infinite", "learning rate"),
    row("nan in a dict", lambda: fit(callback(), Module(lambda loss: {"loss": loss * NAN})), "loss", "NaN", "learning rate"),
    row("a loss of a float", lambda: fit(callback(), Module(lambda loss: loss.item())), "training_step", "tensor", "float"),
    row("a loss of a text", lambda: fit(callback(), Module(str)), "training_step", "tensor", "str"),
    row("a detached loss", lambda: fit(callback(), Module(lambda loss: loss.detach())), "loss", "no gradient", "detached"),
    row("a dict without loss", lambda: fit(callback(), Module(lambda loss: {"los": loss})), "training_step", "'loss'", "'los'"),
    row("a loss per example", lambda: fit(callback(), Module(lambda loss: loss.expand(6))), "loss", r"\(6,\)", "scalar|mean"),
    row("nan in a diversity", lambda: fit(broken("nan")), "diversity", "'broken'", "NaN"),
    row("infinite diversity", lambda: fit(broken("inf")), "diversity", "'broken'", "infinite"),
    row("text of a diversity", lambda: fit(callback(plugins=[BrokenPlugin()], diversity="text")), "diversity", "'text'",
        "scalar", "str"),
    row("a diversity of one", lambda: fit(callback(samples=1, diversity="entropy")), "'entropy'", "two", "samples",
        error=OF_STATE),
    row("variance of ones", lambda: fit(callback(components=2, diversity="variance")), "'variance'", "samples", "components",
        error=OF_STATE),
    row("information of one", lambda: fit(callback(diversity={"mutual_information": {"latent": "component"}})),
        "components > 1"),
    row("an ensemble of none", lambda: fit(callback(diversity="ensemble"), loader=[{"x": X, "z": Y}]), "'ensemble'", "targets",
        error=OF_STATE),
]  # fmt: skip

PARTS = {
    "target": TARGET, "count": COUNTS, "prior": PRIOR, "choice": CHOICES, "pattern": PATTERNS, "option": OTHERS,
    "generator": GENERATOR, "callback": CALLBACK, "diversity": DIVERSITY, "method": METHODS, "checkpoint": CHECKPOINTS,
    "ensemble": ENSEMBLE, "metric": METRICS, "analysis": ANALYSIS, "distillation": DISTILLATION, "plugin": PLUGINS,
    "training": TRAINING,
}  # fmt: skip
BAD = [pytest.param(*one.values, id=f"{part}: {one.id}") for part, rows in PARTS.items() for one in rows]


class _Hang(BaseException):
    """A call that does not end."""


@pytest.fixture
def limit():
    """Stop what does not end."""

    def stop(*_):
        raise _Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("call", "essentials", "error"), BAD)
def test_bad_input_is_told(call, essentials, error, files, limit, monkeypatch):
    monkeypatch.chdir(files)
    try:
        result = call()
    except error as raised:
        message = str(raised)
    except _Hang:
        pytest.fail(f"it does not end within {SECONDS} seconds")
    else:
        pytest.fail(f"nothing was told; it gave {result!r:.200}")
    missing = [one for one in essentials if not re.search(one, message, re.IGNORECASE)]
    assert not missing, f"{missing} in: {message}"
    assert "\n" not in message
    assert len(message) < LONGEST * (1 + message.count(";"))  # what lists several faults of a file has a part for each


# What looks odd and is right


def field(name, value, expected):
    """A field of the generator, given to Hypernet, is read as expected."""
    return pytest.param(
        lambda: net(generator={**SMALL, name: value}).options["generator"][name], expected, id=f"generator: {name}={value!r}"
    )


def option(name, value, expected, **others):
    """An option of Hypernet is read as expected, and kept so for checkpoints."""
    return pytest.param(lambda: net(**{name: value}, **others).options[name], expected, id=f"option: {name}={value!r}")


def good(name, call, expected):
    return pytest.param(call, expected, id=name)


def weights(diversity):
    """The weights of the losses of a fit."""
    return fit(callback(diversity=diversity)).hypernet.diversity.weights


def continued(module, **options):
    """Fit, and fit again with the same options as numbers."""
    fit(callback(**options), module)
    return fit(callback(samples=2, members=2), module).hypernet.samples


GOOD = [
    option("latent_dim", "64", 64),
    option("components", "2", 2),
    option("samples", "4", 4),
    option("members", "3", 3),
    option("context_dim", "2", 2),
    option("samples", np.int64(4), 4),
    option("batch_dim", "1", 1),
    option("batch_dim", {"input": "0"}, {"input": 0}),
    option("batch_dim", "list", "list"),
    option("reduce", None, None),
    option("reduce", {"name": "log_mean_prob", "dim": "1"}, {"name": "log_mean_prob", "dim": 1}),
    option("reduce", {"name": "log_mean_prob", "dim": -1}, {"name": "log_mean_prob", "dim": -1}),
    option("gauge", {"name": "none"}, "none"),
    option("execution", {"name": "auto"}, "auto"),
    good("samples as drawn", lambda: len(net(samples="4").training_population()), 4),
    good("latents as drawn", lambda: net(latent_dim="5").sample(2).latents.z.shape, (2, 5)),
    good("components as drawn", lambda: net(components="3").sample(6, component=2).latents.component.tolist(), [2] * 6),
    good("one pattern", lambda: list(net(generate="weight").banks.shapes), ["weight"]),
    good("one excluded", lambda: list(net(exclude="bias").banks.shapes), ["weight"]),
    good("example inputs", lambda: net(example_inputs=X).eval()(X).shape, (6, 3)),
    good("example inputs in a tuple", lambda: net(example_inputs=(X,)).eval()(X).shape, (6, 3)),
    good("generator by name", lambda: net(generator="compact").options["generator"]["extractor"], "matrix"),
    good("generator by preset",
        lambda: net(generator={"preset": "compact", "code_size": "4"}).options["generator"]["code_size"], 4),
    good("generator none", lambda: net(generator=None).options["generator"]["gain"], 0.3),
    good("generator {}", lambda: net(generator={}).options["generator"]["gain"], 0.3),
    good("config of a width", lambda: GeneratorConfig(hidden=64).hidden, (64,)),
    good("config of texts", lambda: (GeneratorConfig(gain="3e-1").gain, GeneratorConfig(code_size="4").code_size), (0.3, 4)),
    good("pretrained of a text", lambda: GeneratorConfig.pretrained("5e-2").gain, 0.05),
    field("spread", "0.3", 0.3),
    field("gain", "3e-1", 0.3),
    field("gain", 0, 0),
    field("spread", 0, 0),
    field("hidden", 64, [64]),
    field("hidden", "64", [64]),
    field("hidden", ["8", 4], [8, 4]),
    field("hidden", (), []),
    field("extractor_hidden", 8, [8]),
    field("code_size", "8", 8),
    field("code_size", None, None),
    field("hidden", None, None),
    field("pace", "2", 2.0),
    field("pace", None, None),
    field("norm", None, None),
    field("slope", "1e-1", 0.1),
    field("norm_eps", "1e-5", 1e-5),
    field("norm_momentum", "0.1", 0.1),
    field("merge", -1, [-1]),
    field("merge", ["-1"], [-1]),
    field("merge", (), []),
    field("merge_limit", "100", 100),
    good("merge by default, no layers", lambda: net(OddLayer()).banks.weights, 24),
    good("separation", lambda: net(prior={"name": "mixture", "separation": "1e-1"}).prior.mean.shape, (1, 4)),
    good("prior of texts",
        lambda: net(prior={"name": "torch", "distribution": "Laplace", "loc": "0", "scale": "1e-1"}).latent_dim, 4),
    good("prior alone in a mapping", lambda: type(net(prior={"name": "normal"}).prior), NormalPrior),
    good("distribution of numbers", lambda: net(prior=Laplace(0.0, 1.0)).sample(2).latents.z.shape, (2, 4)),
    good("distribution of vectors", lambda: net(prior=Normal(torch.zeros(4), 1.0)).sample(2).latents.z.shape, (2, 4)),
    good("weight", lambda: weights({"entropy": "1e-3"}), {"entropy": 0.001}),
    good("weight within", lambda: weights({"entropy": {"weight": "1e-3", "p": "2"}}), {"entropy": 0.001}),
    good("weight of zero", lambda: weights({"entropy": 0}), {"entropy": 0.0}),
    good("excluded by a generator", lambda: list(net(exclude=(one for one in ["bias"])).banks.shapes), ["weight"]),
    good("discrete numbers",
        lambda: net(prior={"name": "torch", "distribution": "Poisson", "rate": 1}).sample(2).latents.z.dtype, torch.float32),
    good("classes of a text", lambda: EnsembleCalibrationError("3", bins="10").num_classes, 3),
    good("small integers", lambda: [float(updated(make(), PREDICTIONS, Y.to(torch.uint8)).compute()) >= 0
        for make in (EnsembleNLL, EnsembleBrier)], [True, True]),
    good("several by name", lambda: list(weights(("entropy", "variance"))), ["entropy", "variance"]),
    good("norm of a text", lambda: Entropy(p="2").p, 2),
    good("coordinates of a text", lambda: Entropy(coordinates="1000", samples="4").samples, 4),
    good("eta of a text", lambda: Repulsion(eta="1e-1").eta, 0.1),
    good("width of a text", lambda: MutualInformation(hidden="8").hidden, 8),
    good("noise of a text", lambda: MutualInformation(noise="1e-1").noise, 0.1),
    good("an empty batch", lambda: net()(X[:0]).shape, (0, 3)),
    good("none", lambda: weights(None), {}),
    good("callback", lambda: fit(callback(samples="4", latent_dim="8")).hypernet.samples, 4),
    good("callback with a preset",
        lambda: fit(callback(preset="deep_ensemble", components="2", samples="3")).hypernet.components, 2),
    good("callback of a generator",
        lambda: fit(callback(generator="compact")).hypernet.options["generator"]["start"], "mean_code"),
    good("fit again", lambda: continued(Module(), samples="2", members="2"), 2),
    good("sample of a text", lambda: len(net().sample("3")), 3),
    good("sample", lambda: len(net().sample(np.int64(3))), 3),
    good("component", lambda: net(components=2).sample(2, component=np.int64(1)).latents.component.tolist(), [1, 1]),
    good("one number as context", lambda: net(context_dim=1).sample(2, context=0.5).latents.context[1].tolist(), [0.5]),
    good("parts one by one", lambda: len(dealt(net(), (X, Y), split=lambda batch, n: (batch for _ in range(n)))), 2),
    good("context", lambda: net(context_dim=2).sample(2, context=[0.5, -1]).latents.context[0].tolist(), [0.5, -1.0]),
    good("member context", lambda: setting(net(context_dim=2), member_context=[0.5, -1]).member_context[0].tolist(),
        [0.5, -1.0]),
    good("some of no end", lambda: members(normed()).update_statistics(itertools.cycle(LOADER), batches=2), None),
    good("average of some", lambda: type(members(normed()).average(itertools.repeat((X, Y)), batches=2)), nn.Sequential),
    good("an iterator", lambda: net(normed()).update_statistics(itertools.islice(itertools.cycle(LOADER), 3)), None),
    good("a generator", lambda: net(normed()).update_statistics(batch for batch in LOADER), None),
    good("load by a path", lambda: len(load(Path("ensemble"))), 2),
    good("load by a text", lambda: len(load("ensemble")), 2),
    good("checkpoint", lambda: read(Path("run.ckpt"), samples="4").samples, 4),
    good("checkpoint by name", lambda: read("run.ckpt", name="model").samples, 2),
    good("labels of int32", lambda: float(updated(EnsembleNLL(), PREDICTIONS, Y.int()).compute()) > 0, True),
    good("one member", lambda: float(updated(Disagreement(), PREDICTIONS[:1]).compute()), 0.0),
    good("variance of a text", lambda: float(members().predict(X, task="regression", variance="2.5e-1").aleatoric[0, 0]), 0.25),
    good("axis of a text", lambda: members().predict(X, dim="1").mean.shape, (6, 3)),
    good("half", lambda: float(updated(EnsembleNLL(), PREDICTIONS.half()).compute()) > 0, True),
    good("counts beyond", lambda: averaging(members(), LOADER, counts=(1, 2, 99)).counts, [1, 2]),
    good("sizes", lambda: adversarial(net(), LOADER, sizes=np.array([0.1, 0.2]), ensemble=2).sizes.tolist(),
        pytest.approx([0.1, 0.2])),
    good("distillation's rate", lambda: distilled(lr="1e-3").lr, 1e-3),
    good("distillation's temperature", lambda: distilled(temperature="2").temperature, 2.0),
    good("distillation's share", lambda: distilled(alpha="0.9").alpha, 0.9),
]  # fmt: skip


@pytest.mark.parametrize(("call", "expected"), GOOD)
def test_what_looks_odd_and_is_right(call, expected, files, limit, monkeypatch):
    monkeypatch.chdir(files)
    assert call() == expected
