"""`backward="two_pass"`: the gradients of one pass, while a few networks at a time have weights."""

import copy
import gc
import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import HypernetCallback
from lightning_hypernet.diversity import DiversityLoss
from lightning_hypernet.generator import Generator
from lightning_hypernet.groups import GroupedPopulation
from lightning_hypernet.markers import hookimpl
from lightning_hypernet.target.networks import Networks
from tests.targets import Tied

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
         "enable_model_summary": False, "log_every_n_steps": 1}  # fmt: skip


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6),
    )  # fmt: skip


class Module(pl.LightningModule):
    """A target, with a trained layer behind it and a trained condition."""

    def __init__(self, target, width=6, step=None):
        super().__init__()
        self.model, self.head = target, nn.Linear(width, 3)
        self.condition = nn.Parameter(torch.tensor([0.3, -0.7]))
        self.double()
        self.own, self.grads, self.losses, self.logged = step, [], [], {}

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.head(self.model(batch[0])), batch[1])
        self.log("seen", loss)
        return loss if self.own is None else self.own(self, loss)

    def on_before_optimizer_step(self, optimizer):
        self.grads.append({name: one.grad.clone() for name, one in self.named_parameters() if one.grad is not None})

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach())
        self.logged = {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def batches(count, shape, sizes=(14, 14)):
    torch.manual_seed(7)
    return [(torch.randn(size, *shape, dtype=torch.float64), torch.randint(0, 3, (size,))) for size in sizes * count]


def fit(backward, make, data, *, accumulate=1, step=None, **options):
    torch.manual_seed(0)
    module = Module(make(), 5 if make is Tied else 6, step)
    if "context_dim" in options:
        options["context"] = lambda batch: module.condition * batch[0].mean()
    callback = HypernetCallback(backward=backward, **{"deal": "batch", "samples": 7, "latent_dim": 5, **options})
    trainer = pl.Trainer(max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[callback], **QUIET)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no gauge is fixed")
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    return module, callback


@pytest.fixture(params=[1, 3])
def size(request, monkeypatch):
    monkeypatch.setattr("lightning_hypernet.two_passes.group_size", lambda hypernet: request.param)
    return request.param


def compare(make, data, **options):
    (one, first), (two, second) = (fit(backward, make, data, **options) for backward in ("one_pass", "two_pass"))
    assert len(one.grads) == len(two.grads) > 0
    for ours, theirs in zip(two.grads, one.grads, strict=True):
        assert ours.keys() == theirs.keys()
        largest = max(float(grad.abs().max()) for grad in theirs.values())
        for name, grad in theirs.items():
            assert torch.allclose(ours[name], grad, rtol=1e-6, atol=1e-12 * largest), name
    assert torch.allclose(torch.stack(one.losses), torch.stack(two.losses), rtol=1e-9)
    assert one.logged.keys() == two.logged.keys()
    for name, value in one.logged.items():
        assert two.logged[name] == pytest.approx(value, rel=1e-6), name
    for (name, ours), theirs in zip(second.hypernet.generator.named_buffers(), first.hypernet.generator.buffers(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9), name
    return two, second


IMAGES = (2, 6, 6)


def test_gradients_with_components_gauge_entropy_and_accumulation(size):
    module, callback = compare(
        conv, batches(2, IMAGES), accumulate=2, components=2, diversity={"entropy": {"weight": 0.1, "coordinates": 60}}
    )
    assert any(name.startswith("head") for name in module.grads[0])
    assert not callback.hypernet.symmetries.unread and callback.hypernet.symmetries.groups.count


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"components": 3, "generator": {"start": "mean_code"}},
        {"components": 2, "generator": {"shared": False, "hidden": [4]}},
        {"generator": {"start": "paper", "shared": False, "hidden": [5, 4], "extractor": "mlp", "code_size": 3}},
        {"generator": "adapter"},
        {"generator": "pretrained", "components": 2},
        {"context_dim": 2},
        {"exclude": ["8.*"], "generator": {"norm": "layer"}},
        {"prior": {"name": "mixture"}, "components": 2},
    ],
)
def test_generators(options, size):
    compare(conv, batches(1, IMAGES), diversity={"entropy": 0.1}, **options)


@pytest.mark.parametrize(
    "diversity",
    [
        {"variance": 0.1},
        {"repulsion": {"space": "weights", "weight": 0.1}},
        {"mutual_information": {"weight": 0.1}, "entropy": 0.2},
        None,
    ],
)
@pytest.mark.parametrize("gauge", ["auto", "permutation", "none"])
def test_diversity_losses(diversity, gauge, size):
    compare(conv, batches(1, IMAGES), diversity=diversity, gauge=gauge)


def test_tied_parameters_and_fewer_parts_than_networks(size):
    compare(Tied, batches(1, (8,), (14, 2, 5)), diversity={"entropy": 0.1}, components=2)


def some_without(module, loss):
    module.count = getattr(module, "count", -1) + 1
    return None if module.count % 7 in (0, 4) else {"loss": loss, "other": loss * 2, "note": "kept"}


def test_networks_without_a_loss(size):
    compare(conv, batches(1, IMAGES), step=some_without, diversity={"entropy": 0.1, "mutual_information": 0.1})
    compare(conv, batches(1, IMAGES), step=some_without)


class Plain(DiversityLoss):
    """Reads parameters as they are, and latents."""

    reads_outputs = False

    def forward(self, population):
        weights = population.weights["0.weight"].flatten(1)
        return (weights - weights.mean(0)).square().sum() * population.latents.z.square().mean() + population.vectors.mean()


class Silent(DiversityLoss):
    def forward(self, population):
        return population.outputs.mean()


class Own(Generator):
    def forward(self, latents):
        return {name: value + 1 for name, value in super().forward(latents).items()}


class Plugin:
    @hookimpl
    def hypernet_register_diversity(self, register):
        register("plain", Plain)
        register("silent", Silent)

    @hookimpl
    def hypernet_register_distributions(self, register):
        register("own", Own)


def test_a_loss_of_a_plugin(size):
    compare(conv, batches(1, IMAGES), diversity={"plain": 0.1}, plugins=[Plugin()])


def checkpointed():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = conv()[:3], conv()[3:]

        def forward(self, x):
            return self.rest(torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=True))

    return Checkpointed()


def test_activation_checkpoints_and_two_calls_a_step(size):
    def step(module, loss):
        return loss + module.model(torch.ones(2, *IMAGES, dtype=torch.float64)).square().mean()

    compare(checkpointed, batches(1, IMAGES), step=step, diversity={"entropy": 0.1})


def test_a_teacher_has_the_networks_of_the_group(size):
    class Taught(Module):
        def __init__(self, target, width=6, step=None):
            super().__init__(target, width, step)
            self.teacher = copy.deepcopy(target).requires_grad_(False)

        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                wanted = self.teacher(batch[0] + 0.1)
            return {"loss": F.mse_loss(self.model(batch[0]), wanted)}

    grads = []
    for backward in ("one_pass", "two_pass"):
        torch.manual_seed(0)
        module = Taught(conv())
        callback = HypernetCallback(backward=backward, deal="batch", samples=7, latent_dim=5, copies=["teacher"])
        trainer = pl.Trainer(max_epochs=1, callbacks=[callback], **QUIET)
        trainer.fit(module, torch.utils.data.DataLoader(batches(1, IMAGES), batch_size=None))
        grads.append(module.grads)
    for one, two in zip(*grads, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.allclose(two[name], grad, rtol=1e-6, atol=1e-14) for name, grad in one.items())


def test_bfloat16():
    torch.manual_seed(0)
    module = Module(conv()).float()
    callback = HypernetCallback(backward="two_pass", deal="batch", samples=7, latent_dim=5, diversity="entropy")
    data = [(x.float(), y) for x, y in batches(2, IMAGES)]
    trainer = pl.Trainer(max_epochs=1, precision="bf16-mixed", callbacks=[callback], **QUIET)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    assert all(grad.dtype == torch.float32 and bool(grad.isfinite().all()) for grad in module.grads[-1].values())


def test_one_group_at_a_time_is_alive(size):
    alive = []

    def step(module, loss):
        gc.collect()
        population = module.model.population
        assert isinstance(population, GroupedPopulation) and len(population) == len(population.latents) == 7
        rows = sum(
            len(one) for one in gc.get_objects() if type(one) is Networks and one.replicas is population.networks.replicas
        )
        alive.append(rows)
        return loss

    fit("two_pass", conv, batches(1, IMAGES), step=step, diversity={"entropy": 0.1})
    assert max(alive) == size


def test_auto():
    assert not fit("auto", conv, batches(1, IMAGES))[1].takes_two_passes


def test_auto_takes_two_passes_where_networks_are_large_and_nothing_is_against(monkeypatch):
    monkeypatch.setattr("lightning_hypernet.two_passes.LARGE", 1000)
    data = batches(1, IMAGES)
    assert fit("auto", conv, data)[1].takes_two_passes
    assert not fit("auto", conv, data, deal="inputs")[1].takes_two_passes
    assert not fit("auto", conv, data, diversity="output_entropy")[1].takes_two_passes
    assert not fit("auto", conv, data, distribution="own", plugins=[Plugin()])[1].takes_two_passes
    assert not fit("one_pass", conv, data)[1].takes_two_passes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deal": "inputs"}, r"two passes need each network's own loss: set deal='batch'"),
        ({"diversity": "output_entropy"}, r"'output_entropy' reads outputs.*backward='one_pass'"),
        ({"diversity": {"repulsion": {"space": "outputs"}}}, "'repulsion' reads outputs"),
        ({"diversity": {"mutual_information": {"reads": "outputs"}}}, "'mutual_information' reads outputs"),
        ({"diversity": "silent", "plugins": [Plugin()]}, r"'silent'.*reads_outputs = False"),
        ({"backward": "two_passes"}, "backward must be one of 'one_pass', 'two_pass', 'auto', not 'two_passes'"),
    ],
)
def test_refused_when_the_callback_is_built(options, message):
    with pytest.raises(ValueError, match=message):
        HypernetCallback(**{"backward": "two_pass", "deal": "batch", **options})


def test_other_weight_distributions_are_refused():
    with pytest.raises(ValueError, match=r"distribution='own' is a Own: set distribution='generator', or backward='one_pass'"):
        fit("two_pass", conv, batches(1, IMAGES), distribution="own", plugins=[Plugin()])


def test_scaled_gradients_are_refused(monkeypatch):
    monkeypatch.setattr("lightning_hypernet.callback.is_scaled", lambda trainer: True)
    with pytest.raises(ValueError, match=r"before they are scaled.*precision='bf16-mixed', or backward='one_pass'"):
        fit("two_pass", conv, batches(1, IMAGES))


@pytest.mark.parametrize("read", ["weights", "outputs", "some"])
def test_what_is_read_of_all_networks_in_a_step_has_no_gradient(read):
    def step(module, loss):
        population = module.model.population
        with torch.no_grad():
            assert population.weights["8.bias"].shape == (7, 6)
            assert len(population[:2].vectors) == 2
        extra = {"weights": lambda: population.weights["8.bias"], "some": lambda: population[:2].vectors,
                 "outputs": lambda: population.outputs}[read]()  # fmt: skip
        return loss + extra.square().mean()

    with pytest.raises(RuntimeError, match=r"backward='two_pass' keeps no .*set backward='one_pass'"):
        fit("two_pass", conv, batches(1, IMAGES), step=step)


def test_hooks_on_gradients_are_refused():
    def step(module, loss):
        module.head.weight.register_hook(lambda gradient: gradient)
        return loss

    with pytest.raises(RuntimeError, match=r"a parameter of shape \(3, 6\) has a hook on its gradient"):
        fit("two_pass", conv, batches(1, IMAGES), step=step)


MEASURED = """
    import pathlib, resource, sys
    import pytorch_lightning as pl, timm, torch
    from torch.nn import functional as F
    from lightning_hypernet import HypernetCallback

    networks, backward = int(sys.argv[1]), sys.argv[2]

    def peak():
        status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss starts at that of who started the process
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = timm.create_model("resnet18", num_classes=10)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def on_train_start(self):
            held = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
            self.held, self.before = held, peak()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    torch.manual_seed(0)
    module = Module()
    data = [(torch.randn(2 * networks, 3, 32, 32), torch.randint(0, 10, (2 * networks,)))]
    callback = HypernetCallback(deal="batch", backward=backward, samples=networks, members=1)
    trainer = pl.Trainer(max_steps=1, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    print(peak() - module.held, peak() - module.before)
"""


def measured(networks, backward):
    """MiB that a step takes at most: beyond what is held before it, and beyond the peak before it."""
    call = [sys.executable, "-c", textwrap.dedent(MEASURED), str(networks), backward]
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"}  # what is freed goes back to the system
    held, peak = subprocess.run(call, capture_output=True, text=True, check=True, env=given_back).stdout.split()[-2:]
    return float(held), float(peak)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_hardly_grows_with_the_number_of_networks():
    few, many, one_pass = measured(8, "two_pass"), measured(64, "two_pass"), measured(8, "one_pass")
    for what, (held, peak) in {"8 in two passes": few, "64 in two passes": many, "8 in one pass": one_pass}.items():
        print(f"{what}: {held:.0f} MiB beyond what is held before, {peak:.0f} beyond the peak before")
    assert many[0] <= 1.5 * few[0]
    assert few[0] < 0.7 * one_pass[0]


class Scaled(nn.Module):
    """Has a parameter of a single number without axes."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 6), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.layer(x) * self.scale


def test_a_scalar_parameter_is_a_coordinate(size):
    compare(Scaled, batches(1, (4,)), diversity={"entropy": 0.1, "variance": 0.1})
