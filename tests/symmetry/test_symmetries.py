import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet
from lightning_hypernet.diversity import Entropy
from lightning_hypernet.symmetry import order, scale
from lightning_hypernet.symmetry.gauge import ComposedGauge, PermutationGauge, ScaleGauge, permutation_gauge, scale_gauge
from lightning_hypernet.symmetry.graph import SymmetryError, export
from lightning_hypernet.symmetry.order import propose_blocks
from lightning_hypernet.symmetry.scale import read_groups
from lightning_hypernet.symmetry.shadow import components
from lightning_hypernet.symmetry.symmetries import Symmetries
from tests.symmetry.examination import (
    examine,
    holds,
    names_of,
    prepared,
    random_weights,
    relative,
    run,
    shuffled,
    symmetries_of,
)
from tests.symmetry.test_scale import MODULES


def mlp():
    make, shape, _ = MODULES["mlp"]
    return make().double(), torch.randn(shape).double()


def read(module, *inputs):
    return Symmetries.read(module, inputs, {}, names_of(module))


class Auxiliary(nn.Module):
    """Training returns what a second head sees, too."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.conv, self.head = nn.Conv2d(4, 5, 3), nn.Linear(5, 3)
        self.auxiliary = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x):
        h = self.norm(self.stem(x)).relu()
        out = self.head(self.conv(h).relu().mean((2, 3)))
        return (out, self.auxiliary(h.mean((2, 3)))) if self.training else out


class Frozen(nn.Module):
    """A norm layer that never leaves evaluation mode."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.conv, self.last = (
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 5, 1),
            nn.Conv2d(5, 2, 1),
        )
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.last(self.conv(self.norm(self.stem(x)).relu()).relu())


class Constants(nn.Module):
    """What is made of constants in the shape of activations holds no channel."""

    def __init__(self, buffer):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("buffer", buffer)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x + self.buffer.type_as(x).view_as(self.buffer).expand_as(x))


class Depth(nn.Module):
    """Stochastic depth, dropout and a norm layer: what training does at random scales with what it acts on."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.conv, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        y = self.conv(x).relu()
        if self.training:
            y = y * y.new_empty(len(y), 1).bernoulli_(0.9).div_(0.9)
        return self.last(nn.functional.dropout(x + y, 0.1, self.training))


def test_a_gauge_leaves_the_outputs_of_training_alone():
    module, x = prepared(Auxiliary()), torch.randn(4, 2, 7, 7).double()
    symmetries = read(module, x)
    blocks = symmetries.blocks(lambda: (module, (x,), {}))
    weights = random_weights(module)
    scaled = symmetries.groups.transform(weights, torch.rand(1, symmetries.groups.count).double() + 0.5)
    before = run(module, weights, (x,))
    gauge = ComposedGauge(ScaleGauge(symmetries.groups), PermutationGauge(blocks))
    for same in (scaled, shuffled(blocks, weights), gauge(weights)):
        assert relative(run(module, same, (x,)), before) < 1e-10
    assert symmetries.groups.count == 4 + 5
    assert symmetries.groups.pinned["training"] == 4
    assert [block.size for block in symmetries.proposed] == [5]


def test_what_training_pins_is_no_symmetry_there():
    module, x = prepared(Auxiliary()), torch.randn(4, 2, 7, 7).double()
    graph = export(module, (x,), {}).evaluation
    groups, blocks = read_groups(graph, names_of(module)), propose_blocks(graph, names_of(module))
    weights = random_weights(module)
    scaled = groups.transform(weights, torch.rand(1, groups.count).double() + 0.5)
    before = run(module, weights, (x,))
    for changed in (scaled, shuffled(blocks, weights)):
        main, auxiliary = run(module, changed, (x,)).split(4 * 3)
        assert relative(main, before[: 4 * 3]) < 1e-10
        assert relative(auxiliary, before[4 * 3 :]) > 1e-3


def test_a_norm_layer_that_stays_frozen_is_a_fixed_map():
    report = examine(Frozen(), torch.randn(4, 2, 5, 5))
    assert holds(report), report
    assert (report.groups.count, report.groups.pinned["training"], report.channels) == (4 + 5, 4, 5)


@pytest.mark.parametrize("module", [Depth(), Auxiliary().eval(), Frozen()], ids=["depth", "auxiliary", "frozen"])
def test_a_module_is_left_as_it_was(module):
    x = torch.randn(4, 3) if isinstance(module, Depth) else torch.randn(2, 2, 7, 7)
    modes, state = [one.training for one in module.modules()], copy.deepcopy(module.state_dict())
    numbers = torch.get_rng_state()
    read(module, x)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [one.training for one in module.modules()] == modes
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in state.items())


def test_what_a_run_keeps_does_not_reach_the_module():
    class Keeping(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    module = Keeping(3, 2)
    read(module, torch.randn(2, 3))
    assert "calls" not in vars(module)


def test_random_depth_and_dropout_lose_nothing():
    module = Depth().double()
    symmetries = read(module, torch.randn(4, 3).double())
    assert (
        symmetries.groups.count
        == read_groups(export(module, (torch.randn(4, 3).double(),), {}).evaluation, names_of(module)).count
    )
    assert symmetries.groups.count == 8
    assert "training" not in symmetries.groups.pinned
    assert [block.size for block in symmetries.proposed] == [4]


@pytest.mark.parametrize(
    "buffer", [torch.rand(1, 4), torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 1)], ids=["float", "integer", "one"]
)
def test_constants_in_the_shape_of_activations_are_pinned(buffer):
    report = examine(Constants(buffer), torch.randn(5, 3))
    assert holds(report), report
    assert report.groups.count == 0


class Shown:
    """Symmetries with an example, as gauges read them."""

    def __init__(self, symmetries, example):
        self.symmetries, self.example, self.scales = symmetries, example, None

    @property
    def groups(self):
        return self.symmetries.groups

    @property
    def blocks(self):
        return self.symmetries.blocks(self.example)


def test_one_export_in_each_mode(monkeypatch):
    modes = []
    plain = torch.export.export

    def counted(module, *args, **kwargs):
        modes.append(module.training)
        return plain(module, *args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    module, x = mlp()
    symmetries = read(module, x)
    assert symmetries.structure.output == "4.weight"
    assert symmetries.blocks(lambda: (module, (x,), {}))
    permutation_gauge(Shown(symmetries, lambda: (module, (x,), {})))
    weights = random_weights(module)
    assert symmetries.distance(weights, weights, lambda: (module, (x,), {})).max() < 1e-6
    assert modes == [False, True]


def test_blocks_are_certified_once_and_when_asked_for():
    module, x = mlp()
    symmetries, asked = read(module, x), []

    def example():
        asked.append(1)
        return module, (x,), {}

    assert isinstance(scale_gauge(Shown(symmetries, example)), ScaleGauge)
    assert not asked
    permutation_gauge(Shown(symmetries, example))
    assert symmetries.blocks(example) is symmetries.blocks(example)
    assert len(asked) == 1


def test_symmetries_are_copied_and_pickled():
    module, x = mlp()
    symmetries = read(module, x)
    blocks = symmetries.blocks(lambda: (module, (x,), {}))
    weights = random_weights(module)
    for other in (copy.deepcopy(symmetries), pickle.loads(pickle.dumps(symmetries))):
        assert other.structure == symmetries.structure
        assert [block.channels() for block in other.blocks(None)] == [block.channels() for block in blocks]
        one, same = (permutation_gauge(Shown(each, None))(weights) for each in (symmetries, other))
        assert all(torch.equal(one[name], same[name]) for name in one)


def test_no_weight_of_the_target_is_held():
    example = mlp()
    symmetries = read(*example)
    symmetries.blocks(lambda: (example[0], example[1:], {}))
    held = [weakref.ref(one) for one in (*example, *example[0].parameters())]
    example = ()
    gc.collect()
    assert [one() for one in held] == [None] * len(held)
    assert symmetries.groups.count == 13


def test_a_target_that_can_be_exported_in_evaluation_alone():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    symmetries = read(module, torch.randn(1, 3))
    assert symmetries.groups.count == 4 + 4
    assert symmetries.unread.startswith("Sequential cannot be exported in training mode: ValueError Expected more than 1 value")
    assert read(module, torch.randn(2, 3)).unread is None


def broken(*_):
    return [][1]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (scale.HANDLERS, "the graph can't be read at 'linear': IndexError"),
        (order.PERMUTING, "the graph can't be read at 'linear'"),
    ],
    ids=["scale", "order"],
)
def test_an_error_of_a_rule_is_told(monkeypatch, rules, message):
    monkeypatch.setitem(rules, "linear", broken)
    module, x = mlp()
    with pytest.raises(SymmetryError, match=message):
        read(module, x)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("scale._levels", "the scale of channels can't be read: IndexError list index out of range"),
        ("order._contexts", "the order of channels can't be read: IndexError"),
        ("structure._layer_behind", "the structure of filters can't be read: IndexError"),
    ],
)
def test_an_error_behind_the_rules_is_told(monkeypatch, place, message):
    monkeypatch.setattr(f"lightning_hypernet.symmetry.{place}", broken)
    module, x = mlp()
    with pytest.raises(SymmetryError, match=message):
        read(module, x)


def test_a_rule_that_gives_another_shape_pins(monkeypatch):
    monkeypatch.setitem(scale.HANDLERS, "relu", lambda shadow, args, kwargs, meta: args[0].__class__(args[0].ids[0]))
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert read(module, torch.randn(2, 3)).groups.pinned["relu"] == 4


def test_components_are_named_by_their_least_node():
    edges = [torch.tensor([[5, 4], [4, 2]]), torch.tensor([[6], [1]]), torch.zeros(2, 0, dtype=torch.long)]
    assert components(8, edges).tolist() == [0, 1, 2, 3, 2, 2, 1, 7]
    assert components(3, []).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["residual_norm", "dense", "gated", "transformer", "unet"])
def test_groups_that_are_left_out_are_pinned_and_the_others_hold(name):
    make, shape, _ = MODULES[name]
    module, x = prepared(make()), torch.randn(shape).double()
    groups, _ = symmetries_of(module, x)
    some = groups.restrict(torch.arange(groups.count) % 3 == 0)
    assert some.count == len(range(0, groups.count, 3))
    assert torch.cat([level.groups for level in some.levels]).tolist() == list(range(some.count))
    weights = random_weights(module)
    scaled = some.transform(weights, torch.rand(1, some.count).double() + 0.5)
    gauge = ScaleGauge(some)
    one, other, before = gauge(weights), gauge(scaled), run(module, weights, (x,))
    assert max(relative(run(module, same, (x,)), before) for same in (scaled, one)) < 1e-9
    assert max(relative(other[key], one[key]) for key in one) < 1e-9


def test_a_gauge_that_was_first_used_in_inference_trains():
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    hypernet = Hypernet(target, example_inputs=torch.randn(4, 8), samples=4).eval()
    with torch.inference_mode():
        hypernet.sample(3).distance()
    hypernet.train()
    (hypernet(torch.randn(8, 8)).sum() + Entropy()(hypernet.population)).backward()
    assert all(one.grad is not None for one in hypernet.generator.parameters())


def test_a_scalar_parameter_is_a_coordinate():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.tensor(1.5)), nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x) * self.scale

    hypernet = Hypernet(Scaled(), samples=4, execution="loop").train()
    hypernet(torch.randn(8, 4))
    assert hypernet.population.gauged.shape == hypernet.population.vectors.shape == (4, 11)
    Entropy()(hypernet.population).backward()
