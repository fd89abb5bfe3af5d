"""Ensembles are exported and traced as one module of their members; a Hypernet does not stop what traces it."""

import copy
import inspect
import io
import pickle
import subprocess
import sys

import lightning.pytorch as lp
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_hypernet import Hypernet, HypernetCallback
from tests.targets import KINDS, leaves

REDUCTIONS = ("mean", "log_mean_prob", "majority", None)
pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


def convnet():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def images(count=4):
    return torch.randn(count, 1, 6, 6)


def ensemble_of(reduce="mean", **options):
    hypernet = Hypernet(convnet(), samples=2, members=2, reduce=reduce, **options)
    hypernet.update_statistics([images(16) + 1])
    ensemble = hypernet.eval().ensemble(3)
    ensemble.update_statistics([images(16) * 2])
    return ensemble


def saved_and_loaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_an_ensemble_is_exported(reduce, plain):
    ensemble = ensemble_of(reduce, exclude=["4.bias"])
    module = ensemble.to_module() if plain else ensemble
    x = images()
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    loaded = saved_and_loaded(program)
    program.run_decompositions()
    for inputs in (x, images(7)):
        torch.testing.assert_close(program.module()(inputs), ensemble(inputs), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(loaded(inputs), ensemble(inputs), atol=1e-6, rtol=1e-6)
    assert ensemble.target[0].weight is None and ensemble.target[1].running_mean.abs().sum() == 0
    assert (len(program.state_dict) == 3 * 9) if plain else ("statistics.1/running_mean" in program.state_dict)


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # of a plain recurrent layer too
@pytest.mark.parametrize("kind", ["mlp", "weight_norm", "tied", "tokens", "lstm", "structured", "embedding", "odd_layer"])
def test_what_targets_there_are(kind):
    torch.manual_seed(0)
    inputs = KINDS[kind].inputs()
    hypernet = Hypernet(KINDS[kind].make().double(), samples=2, members=2)
    ensemble = hypernet.eval().ensemble(2)
    for module in (ensemble, ensemble.to_module()):
        program = torch.export.export(module, inputs)
        pairs = zip(leaves(program.module()(*inputs)), leaves(ensemble(*inputs)), strict=True)
        assert all(torch.allclose(exported, own, atol=1e-6) for exported, own in pairs)


def test_many_members_are_exported():
    hypernet = Hypernet(nn.Linear(3, 2), members=2).eval()
    ensemble = hypernet.ensemble(70)
    x = torch.randn(4, 3)
    torch.testing.assert_close(torch.export.export(ensemble, (x,)).module()(x), ensemble(x))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_the_plain_module(reduce):
    ensemble = ensemble_of(reduce)
    module, x = ensemble.to_module(), images()
    torch.testing.assert_close(module(x), ensemble(x))
    assert {name.split(".")[0] for name in module.state_dict()} == {"networks"} and not module.training
    assert len(list(module.parameters())) == 3 * 6 and all(one.requires_grad for one in module.parameters())
    other = ensemble_of(reduce).to_module()
    other.load_state_dict(module.state_dict())
    for again in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(x), module(x))
    before = ensemble(x)
    nn.init.zeros_(module.networks[0][4].weight)
    assert torch.equal(ensemble(x), before)
    assert (
        list(inspect.signature(module.forward).parameters) == list(inspect.signature(ensemble.forward).parameters) == ["input"]
    )
    assert torch.equal(ensemble(input=x), before)


def test_the_plain_module_is_exported_strictly_and_compiled():
    ensemble, x = ensemble_of(), images()
    module = ensemble.to_module()
    torch.testing.assert_close(torch.export.export(module, (x,), strict=True).module()(x), ensemble(x))
    for one in (module, ensemble):
        torch.testing.assert_close(torch.compile(one, backend="eager")(x), ensemble(x))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_an_ensemble_is_traced(reduce, plain):
    ensemble = ensemble_of(reduce)
    traced = torch.jit.trace(ensemble.to_module() if plain else ensemble, images())
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    x = images(7)
    torch.testing.assert_close(torch.jit.load(file)(x), ensemble(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ensemble.members(x), ensemble[:].members(x))


@pytest.mark.parametrize("reduce", [pytest.param("mean", marks=pytest.mark.slow), "log_mean_prob"])
@pytest.mark.parametrize("plain", [False, True])
def test_onnx(reduce, plain):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    ensemble, x = ensemble_of(reduce), images()
    module = ensemble.to_module() if plain else ensemble
    program = torch.onnx.export(
        module, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), verbose=False
    )
    graph = program.model_proto
    for inputs in (x, images(7)):
        (output,) = reference.ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), ensemble(inputs).detach(), atol=1e-5, rtol=1e-5)


# A Hypernet


@pytest.mark.parametrize("training", [True, False])
def test_a_hypernet_is_not_exported(training):
    hypernet = Hypernet(convnet(), samples=2).train(training)
    message = r"can't be exported: export hypernet.ensemble\(n\)"
    for module in (hypernet, nn.Sequential(hypernet, nn.Linear(3, 3))):
        with pytest.raises(RuntimeError, match=message):
            torch.export.export(module, (images(),))
    hypernet.train()(images())


def test_a_hypernet_is_traced():
    hypernet = Hypernet(convnet(), samples=2, members=3)
    hypernet.update_statistics([images(16)])
    x = images(7)
    with torch.no_grad():
        traced = torch.jit.trace(hypernet.eval(), images())
        torch.testing.assert_close(traced(x), hypernet(x))
    torch.jit.trace(hypernet.train(), images(), check_trace=False)
    assert hypernet.target[1].num_batches_tracked == 0
    hypernet(x).sum().backward()


def test_whoever_asks_for_every_attribute_gets_an_answer():
    hypernet = Hypernet(convnet(), samples=2)
    hypernet.update_statistics([images(16)])
    ensemble = hypernet.ensemble(2)
    for module in (hypernet, ensemble, ensemble.to_module(), hypernet[0], hypernet.target):
        for name in dir(module):
            hasattr(module, name)


def model(tree):
    class Model(tree.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = convnet()
            self.example_input_array = images()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return self(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(images(16), batch_size=8)

    return Model()


def fitted(tree, **options):
    callback = HypernetCallback(target="net", samples=2, members=2)
    trainer = tree.Trainer(
        max_epochs=1, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False, log_every_n_steps=1,
        callbacks=[callback, *options.pop("callbacks", ())], **options,
    )  # fmt: skip
    module = model(tree)
    trainer.fit(module)
    return module.eval(), callback


@pytest.mark.parametrize("tree", [pl, lp])
def test_a_lightning_module_becomes_torchscript(tree):
    module, _ = fitted(tree, logger=False, enable_model_summary=True)
    x = images(7)
    with torch.no_grad():
        script = module.to_torchscript(method="trace", example_inputs=images())
        torch.testing.assert_close(script(x), module(x))


class TracingLogger(pl.loggers.CSVLogger):
    """Traces as TensorBoard's logger does, in its absence."""

    def log_graph(self, model, input_array=None):
        with pl.core.module._jit_is_scripting():
            training = model.training
            model.eval()
            torch.jit.trace(model, model.example_input_array, strict=False)
            model.train(training)


def test_a_logger_traces_before_a_fit(tmp_path):
    module, _ = fitted(pl, logger=TracingLogger(tmp_path))
    assert isinstance(module.net, Hypernet)


@pytest.mark.parametrize("tree", [pl, lp])
def test_tensorboard_logs_the_graph(tree, tmp_path):
    pytest.importorskip("tensorboard")
    logger = tree.loggers.TensorBoardLogger(tmp_path, log_graph=True)
    module, _ = fitted(tree, logger=logger)
    assert module.net.training is False and list(tmp_path.rglob("events*"))


def test_an_exported_program_runs_without_this_package(tmp_path):
    ensemble, x = ensemble_of(), images()
    torch.export.save(torch.export.export(ensemble, (x,)), tmp_path / "ensemble.pt2")
    torch.save((x, ensemble(x).detach()), tmp_path / "expected.pt")
    code = (
        "import sys, torch; sys.modules['lightning_hypernet'] = None; x, y = torch.load('expected.pt')\n"
        "print(torch.allclose(torch.export.load('ensemble.pt2').module()(x), y, atol=1e-6))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
