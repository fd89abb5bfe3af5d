"""A compiled step computes what the step computes, and its graphs have no breaks."""

import copy
import pickle

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch._dynamo.exc import RestartAnalysis
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.diversity import Entropy


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def conv():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.4), nn.Flatten(), nn.Linear(64, 5))


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 5))


def resnet18():
    return pytest.importorskip("timm").create_model("resnet18", num_classes=5)


class Counter(CompileCounterWithBackend):
    """Counts graphs; what torch analyses anew, since a number in it is better fixed, is one."""

    def __call__(self, graph, inputs):
        known = self.frame_count
        try:
            return super().__call__(graph, inputs)
        except RestartAnalysis:
            self.frame_count = known
            raise


def twins(make, shape, backend="aot_eager", **options):
    """A Hypernet, one that is compiled, and the backend, which counts graphs."""
    torch.manual_seed(0)
    plain = Hypernet(make().double(), example_inputs=torch.randn(2, *shape).double(), samples=4, members=2, **options).train()
    compiled, counter = copy.deepcopy(plain), Counter(backend)
    compiled.compile(backend=counter, fullgraph=True)
    return plain, compiled, counter


def step(hypernet, x, y, seed):
    """All that a training step computes."""
    torch.manual_seed(seed)
    with hypernet.step():
        outputs = hypernet(x)
        loss = F.cross_entropy(outputs, y) + 1e-2 * Entropy()(hypernet.population)
        loss.backward()
        changed = hypernet.population.networks.stacked_buffers(list(hypernet.executor.replicas.habits.changing or ()))
    gradients = {name: one.grad for name, one in hypernet.named_parameters() if one.grad is not None}
    buffers = dict(hypernet.generator.named_buffers())
    hypernet.zero_grad()
    return {"outputs": outputs, "loss": loss, **changed, **buffers, **{f"d {name}": one for name, one in gradients.items()}}


def batch(size, shape, seed=0):
    torch.manual_seed(seed)
    return torch.randn(size, *shape).double(), torch.randint(5, (size,))


def assert_same(one, other):
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


SMALL = [(conv, (3, 6, 6), "loop", {}), (mlp, (6,), "batched", {})]
RARE = [(mlp, (6,), "loop", {"context_dim": 2, "generator": "compact"}), (conv, (3, 6, 6), "blocked", {"components": 2})]


def same_steps(plain, compiled, shape, sizes):
    for hypernet in (plain, compiled):
        hypernet.train()
    for seed, size in enumerate(sizes):
        data = batch(size, shape, seed)
        assert_same(step(compiled, *data, seed), step(plain, *data, seed))


def same_evaluation(plain, compiled, shape, sizes):
    for hypernet in (plain, compiled):
        hypernet.eval()
    for seed, size in enumerate(sizes):
        x, _ = batch(size, shape, seed)
        assert_same(compiled(x), plain(x))
        with torch.no_grad():
            assert_same(compiled(x), plain(x))


@pytest.mark.parametrize(
    ("make", "shape", "execution", "options"), [pytest.param(*SMALL[0], marks=pytest.mark.slow), *SMALL[1:]]
)
def test_a_step_is_four_graphs_and_computes_the_same(make, shape, execution, options):
    plain, compiled, counter = twins(make, shape, "eager", execution=execution, **options)
    same_steps(plain, compiled, shape, [16, 16, 16])  # the first run of a kind is watched, and not compiled
    assert counter.frame_count == 4  # the generator, all networks together, the gauge and the entropy
    same_steps(plain, compiled, shape, [13])
    same_evaluation(plain, compiled, shape, [16])


@pytest.mark.slow
@pytest.mark.parametrize(("make", "shape", "execution", "options"), [*SMALL, *RARE, (resnet18, (3, 32, 32), "loop", {})])
def test_every_change_of_mode_and_size(make, shape, execution, options):
    plain, compiled, counter = twins(make, shape, execution=execution, **options)
    same_steps(plain, compiled, shape, [16, 16, 16])
    assert counter.frame_count == (2 if make is resnet18 else 4)  # a large target's entropy reads other coordinates every time
    same_steps(plain, compiled, shape, [13, 16, 13])
    same_evaluation(plain, compiled, shape, [16, 16, 7])
    known = counter.frame_count
    same_steps(plain, compiled, shape, [16, 13])
    assert counter.frame_count == known


class Around(nn.Module):
    def __init__(self, hypernet):
        super().__init__()
        self.before, self.hypernet = nn.Linear(6, 6).double(), hypernet

    def forward(self, x):
        return self.hypernet(self.before(x).tanh()) * 2


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_compiled_around_it_breaks_at_it_alone(inside):
    plain, compiled, _ = twins(mlp, (6,), "eager", execution="loop")
    plain, compiled = Around(plain), Around(compiled if inside else copy.deepcopy(compiled))
    compiled.load_state_dict(plain.state_dict())
    counter = Counter("eager")
    outer = torch.compile(compiled, backend=counter)
    for seed in range(3):
        x, _ = batch(16, (6,))
        torch.manual_seed(seed)
        expected = plain(x)
        torch.manual_seed(seed)
        assert_same(outer(x), expected)
    assert counter.frame_count == 2  # before it and after it
    outer.eval()
    assert_same(outer(x), plain.eval()(x))


def test_replicas_are_used_again():
    _, compiled, _ = twins(mlp, (6,), "eager", execution="loop")
    x, y = batch(16, (6,))
    held = []
    for _ in range(3):
        with compiled.step():
            F.cross_entropy(compiled(x), y).backward()
            held.append(list(compiled.population.networks.hold(4)))
    assert {*map(id, held[0])} == {*map(id, held[1])} == {*map(id, held[2])}


@torch._dynamo.config.patch(recompile_limit=1)
def test_two_hypernets_do_not_count_as_one():
    x, _ = batch(16, (6,))
    for _ in range(2):
        _, compiled, counter = twins(lambda: nn.Linear(6, 5), (6,), "eager", execution="batched")
        for _ in range(2):
            compiled(x)
        assert counter.frame_count == 2


def test_auto_leaves_out_what_is_not_compiled():
    _, compiled, counter = twins(conv, (3, 6, 6), "eager")
    for _ in range(2):
        compiled(batch(16, (3, 6, 6))[0])
    ((signature, made),) = compiled.executor.choices.made.items()
    assert "compiled" in signature and "vmap" not in made and counter.frame_count == 2


class Digits(pl.LightningModule):
    def __init__(self, counter=None):
        super().__init__()
        self.model, self.counter = mlp(), counter

    def on_fit_start(self):
        if self.counter is not None:
            self.model.compile(backend=self.counter, fullgraph=True)

    def training_step(self, batch, index):
        inputs, labels = batch
        return F.cross_entropy(self.model(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.mark.slow
def test_training_in_a_trainer():
    trained = []
    for kind in ("plain", "inside", "around"):
        pl.seed_everything(0, verbose=False)
        counter = Counter("eager")
        module = Digits(counter if kind == "inside" else None)
        data = DataLoader(TensorDataset(torch.randn(100, 6), torch.randint(5, (100,))), batch_size=32)
        callback = HypernetCallback(target="model", samples=4, members=2, diversity={"entropy": 1e-2}, execution="loop")
        trainer = pl.Trainer(
            max_epochs=2, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        trainer.fit(torch.compile(module, backend=counter) if kind == "around" else module, data)
        assert (counter.frame_count > 0) == (kind != "plain")
        trained.append(module.state_dict())
    for other in trained[1:]:
        assert_same([one for one in other.values() if isinstance(one, torch.Tensor)],
                    [one for one in trained[0].values() if isinstance(one, torch.Tensor)])  # fmt: skip


def test_copies_and_files_are_not_compiled():
    _, compiled, counter = twins(mlp, (6,), "eager", execution="batched")
    x, y = batch(16, (6,))
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        for _ in range(2):
            step(other, x, y, 0)
    assert counter.frame_count == 0
