import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import Hypernet
from lightning_hypernet.diversity import Entropy
from lightning_hypernet.symmetry import gauge as gauges
from lightning_hypernet.symmetry.gauge import ScaleGauge, own_scales
from lightning_hypernet.symmetry.graph import SymmetryError
from tests.symmetry.examination import names_of, prepared, random_weights, relative, run, shuffled, symmetries_of
from tests.symmetry.test_scale import MODULES, Unreadable

SMALL = {"samples": 4, "generator": {"hidden": (8,), "extractor_hidden": (8,)}}


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def broken(*args, **kwargs):
    raise KeyError("no such thing")


def steps(hypernet, x, n=3):
    """Steps of training with a loss that reads gauge-fixed weights."""
    for _ in range(n):
        with hypernet.step():
            loss = hypernet(x).square().mean() + Entropy()(hypernet.population)
            loss.backward()


def told(record):
    return [str(one.message) for one in record if "gauge" in str(one.message) or "symmetries" in str(one.message)]


class Unrunnable(nn.Sequential):
    """It is exported, and runs in single precision alone, so that nothing can be certified."""

    def forward(self, x):
        return super().forward(x.float())


def test_a_target_that_cannot_be_exported_has_no_groups_and_says_so_once():
    hypernet = Hypernet(Unreadable(3, 2), **SMALL).train()
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        steps(hypernet, torch.randn(8, 3))
        groups, blocks = hypernet.symmetries.groups, hypernet.symmetries.blocks
        hypernet.summary()
        steps(hypernet, torch.randn(8, 3))
    assert (groups.count, groups.producers, groups.consumers, groups.levels, list(blocks)) == (0, {}, {}, [], [])
    weights = hypernet.sample(2).weights
    assert all(torch.equal(groups.transform(weights, torch.ones(2, 0))[name], weights[name]) for name in weights)
    assert len(told(record)) == 1
    assert told(record)[0].startswith("no gauge is fixed: Unreadable cannot be exported")
    assert "symmetries not read: Unreadable cannot be exported" in hypernet.summary()
    with pytest.raises(SymmetryError, match="Unreadable cannot be exported"):
        hypernet.symmetries.distance(weights, weights)


@pytest.mark.parametrize("gauge", ["scale", "permutation", "softmax"])
def test_a_gauge_that_is_asked_for_and_cannot_be_had_is_an_error_whatever_was_read_before(gauge):
    with pytest.warns(UserWarning, match="the order of the modules shows the filters"):
        hypernet = Hypernet(Unreadable(3, 2), torch.randn(8, 3), gauge=gauge, **SMALL)
    with pytest.warns(UserWarning, match="no symmetries are known: Unreadable cannot be exported"):
        assert hypernet.symmetries.groups.count == 0
    assert list(hypernet.symmetries.blocks) == []
    for _ in range(2):
        with pytest.raises(SymmetryError, match="Unreadable cannot be exported"):
            _ = hypernet.sample(2).gauged


def test_orders_that_cannot_be_certified_are_none():
    hypernet = Hypernet(Unrunnable(*mlp()), torch.randn(8, 3), **SMALL)
    assert hypernet.symmetries.groups.count == 4
    with pytest.warns(UserWarning, match="no gauge is fixed: Unrunnable can't be run in double precision"):
        assert list(hypernet.symmetries.blocks) == []
    assert hypernet.symmetries.groups.count == 4


def test_symmetries_asked_for_before_there_are_inputs_are_an_error():
    hypernet = Hypernet(mlp(), **SMALL)
    for ask in (lambda: hypernet.symmetries.groups, lambda: hypernet.symmetries.blocks):
        with pytest.raises(SymmetryError, match="give example_inputs, or call the target itself"):
            ask()
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(3):
            _ = hypernet.sample(2).gauged
    assert len(told(record)) == 1
    hypernet.train()(torch.randn(8, 3))
    assert hypernet.symmetries.groups.count == 4


PLACES = {
    "exporting": ("torch.export.export", True),
    "reading": ("lightning_hypernet.symmetry.symmetries.read_groups", True),
    "drawing a network": ("lightning_hypernet.sampler.Sampler._network", False),
    "making": ("lightning_hypernet.symmetry.gauge.ScaleGauge.__init__", True),
    "applying": ("lightning_hypernet.symmetry.gauge.ScaleGauge.select", True),
    "scaling": ("lightning_hypernet.symmetry.scale.ChannelGroups.transform", True),
}


@pytest.mark.parametrize("given", [True, False], ids=["examples", "batch"])
@pytest.mark.parametrize("place", PLACES)
def test_whatever_goes_wrong_is_one_warning(monkeypatch, place, given):
    path, always = PLACES[place]
    monkeypatch.setattr(path, broken)
    x = torch.randn(8, 3)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        hypernet = Hypernet(mlp(), x if given else None, **SMALL).train()
        steps(hypernet, x)
    mine = [one for one in told(record) if one.startswith("no gauge is fixed")]
    assert len(mine) == (always or not given)
    assert all("no such thing" in one for one in mine)
    if mine:
        population = hypernet.sample(2)
        assert torch.equal(population.gauged, population.vectors)


@pytest.mark.parametrize("place", ["exporting", "reading", "making", "applying"])
def test_whatever_goes_wrong_with_a_gauge_that_was_asked_for_is_an_error(monkeypatch, place):
    monkeypatch.setattr(PLACES[place][0], broken)
    hypernet = Hypernet(mlp(), gauge="scale", **SMALL).train()
    with pytest.raises((KeyError, SymmetryError), match="no such thing"):
        steps(hypernet, torch.randn(8, 3))


def test_what_goes_wrong_later_is_an_error(monkeypatch):
    hypernet = Hypernet(mlp(), **SMALL).train()
    steps(hypernet, torch.randn(8, 3))
    monkeypatch.setattr(ScaleGauge, "select", broken)
    with pytest.raises(KeyError, match="no such thing"):
        steps(hypernet, torch.randn(8, 3))


@pytest.fixture
def exports(monkeypatch):
    """The modes in which targets were exported."""
    modes, plain = [], torch.export.export

    def counted(module, *args, **kwargs):
        modes.append(module.training)
        return plain(module, *args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    return modes


@pytest.mark.parametrize("given", [True, False], ids=["examples", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_a_target_is_exported_once_in_each_mode(exports, given, training):
    x = torch.randn(8, 3)
    hypernet = Hypernet(mlp().train(training), x if given else None, gauge="permutation", **SMALL).train()
    steps(hypernet, x)
    hypernet.summary()
    assert hypernet.symmetries.groups.count == sum(block.size for block in hypernet.symmetries.blocks) == 4
    hypernet.eval()
    weights = hypernet.sample(2).weights
    hypernet.symmetries.distance(weights, weights)
    copy.deepcopy(hypernet).sample(2)
    assert exports == [False, True]


def test_a_target_that_cannot_be_exported_is_tried_once(exports):
    with pytest.warns(UserWarning, match="the order of the modules shows the filters"):
        hypernet = Hypernet(Unreadable(3, 2), torch.randn(8, 3), **SMALL).train()
    with pytest.warns(UserWarning, match="no gauge is fixed"):
        steps(hypernet, torch.randn(8, 3))
    hypernet.summary()
    assert list(hypernet.symmetries.blocks) == []
    assert exports == [False]


# Norm layers that are frozen, by whom and when


class FreezesInTrain(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.last(self.norm(self.stem(x)).relu())


def group_count(hypernet):
    return hypernet.symmetries.groups.count


@pytest.mark.parametrize("given", [True, False], ids=["examples", "batch"])
@pytest.mark.parametrize("mode", ["fresh", "train", "eval"])
def test_a_norm_layer_that_train_freezes_is_pinned(given, mode):
    """A fresh module is in training mode, but its `train` was not called yet."""
    x, target = torch.randn(8, 3), FreezesInTrain()
    if mode != "fresh":
        target.train(mode == "train")
    hypernet = Hypernet(target, x if given else None, **SMALL).train()
    steps(hypernet, x)
    assert group_count(hypernet) == 4
    assert list(hypernet.symmetries.blocks) == []


@pytest.mark.parametrize("given", [True, False], ids=["examples", "batch"])
def test_a_norm_layer_that_is_frozen_while_training_goes_on_is_pinned_from_then_on(given):
    x, target = torch.randn(8, 3), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    hypernet = Hypernet(target, x if given else None, gauge="permutation", **SMALL).train()
    steps(hypernet, x)
    assert group_count(hypernet) == 8
    hypernet.target[1].eval()
    steps(hypernet, x)
    assert group_count(hypernet) == 4
    weights = hypernet.sample(2).weights
    fixed = hypernet.symmetries.gauge(weights)
    assert torch.equal(fixed["0.weight"], weights["0.weight"])
    hypernet.target[1].train()
    steps(hypernet, x)
    assert group_count(hypernet) == 8


def test_a_frozen_norm_layer_of_a_checkpoint_is_pinned():
    x, target = torch.randn(8, 3), FreezesInTrain()
    hypernet = Hypernet(target, x, **SMALL).train()
    steps(hypernet, x)
    other = Hypernet(FreezesInTrain(), x, **SMALL)
    assert group_count(other) == 8
    other.load_state_dict(hypernet.state_dict())
    assert group_count(other) == 4


def test_frozen_norm_layers_are_pinned_where_training_cannot_be_exported():
    class Alone(FreezesInTrain):
        def forward(self, x):
            if self.training and x.sum().item() > 1e9:
                raise ValueError
            return super().forward(x)

    x = torch.randn(8, 3)
    hypernet = Hypernet(Alone(), x, **SMALL).train()
    steps(hypernet, x)
    assert (group_count(hypernet), list(hypernet.symmetries.blocks)) == (4, [])


# The target's own scale


def test_a_level_gets_its_own_root_mean_square():
    """A filter's constant is that of its layer in the target: weights and bias, each with all its numbers."""
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    module, x = module.double(), torch.randn(4, 3, 5, 5).double()
    nn.init.zeros_(module[0].bias)
    groups, _ = symmetries_of(module, x)
    scales = own_scales(dict(module.named_parameters()))
    assert scales["0.weight"] == pytest.approx(module[0].weight.square().mean().sqrt().item(), rel=1e-12)
    assert (scales["0.bias"], scales["3.weight"], scales["3.bias"]) == (0, 1, 0)
    fixed = ScaleGauge(groups, scales)(random_weights(module, 3))

    def mean_squares(weight, bias):
        filters = fixed[weight].reshape(*fixed[bias].shape, -1)
        return torch.cat([filters, fixed[bias][:, :, None]], 2).square().mean(2)

    own = module[0].weight.square().sum() / (module[0].weight.numel() + 5)
    assert torch.allclose(mean_squares("0.weight", "0.bias"), own.detach(), rtol=1e-12)
    own = (module[2].weight.square().sum() + module[2].bias.square().sum()) / (4 * 6)
    assert torch.allclose(mean_squares("2.weight", "2.bias"), own.detach(), rtol=1e-12)
    assert torch.allclose(mean_squares("3.weight", "3.bias"), torch.tensor(0.5).double(), rtol=1e-12)


def test_a_level_counts_the_numbers_that_it_reads():
    """Of a table that two layers share in halves, each has its own; its root mean square is the whole table's."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(3 * torch.randn(2))
            self.last = nn.Linear(6, 2)

        def forward(self, x):
            first, second = F.linear(x, self.table[:2], self.bias), F.linear(x, self.table[2:])
            return self.last(torch.cat([first.relu(), second.relu()], 1))

    module, x = Halves().double(), torch.randn(5, 4).double()
    groups, _ = symmetries_of(module, x)
    assert groups.count == 6
    scales = own_scales(dict(module.named_parameters()))
    fixed = ScaleGauge(groups, scales)(random_weights(module, 2))
    both = torch.cat([fixed["table"][:, :2], fixed["bias"][:, :, None]], 2).square().mean(2)
    own = (8 * scales["table"] ** 2 + 2 * scales["bias"] ** 2) / 10
    assert torch.allclose(both, torch.full_like(both, own), rtol=1e-12)
    rest = fixed["table"][:, 2:].square().mean(2)
    assert torch.allclose(rest, torch.full_like(rest, scales["table"] ** 2), rtol=1e-12)


def test_what_starts_at_zero_is_fixed_to_one():
    module = mlp().double()
    for parameter in module[0].parameters():
        nn.init.zeros_(parameter)
    groups, _ = symmetries_of(nn.Sequential(*module), torch.randn(5, 3).double())
    gauge = ScaleGauge(groups, own_scales(dict(module.named_parameters())))
    fixed = gauge({name: torch.randn(2, *value.shape).double() for name, value in module.named_parameters()})
    both = torch.cat([fixed["0.weight"], fixed["0.bias"][:, :, None]], 2).square().mean(2)
    assert torch.allclose(both, torch.ones_like(both), rtol=1e-12)
    own = {name: value.detach()[None] for name, value in module.named_parameters()}
    assert all(torch.equal(gauge(own)[name], own[name]) for name in own)


def test_a_target_whose_filters_are_alike_is_a_fixed_point():
    module = MODULES["residual_norm"][0]().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.square().mean().sqrt() * torch.randn_like(parameter).sign())
    groups, _ = symmetries_of(module, torch.randn(4, 3, 6, 6).double())
    own = {name: value.detach()[None] for name, value in module.named_parameters()}
    fixed = ScaleGauge(groups, own_scales(dict(module.named_parameters())))(own)
    assert max(relative(fixed[name], own[name]) for name in own) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "residual_norm", "dense", "unet", "transformer", "standardised", "layer_scaled"])
def test_the_gauge_of_own_scales_is_invariant_idempotent_and_equivariant(name):
    make, shape, _ = MODULES[name]
    module, x = prepared(make()), torch.randn(shape).double()
    groups, blocks = symmetries_of(module, x)
    gauge = ScaleGauge(groups, {name: 0.1 + index for index, name in enumerate(names_of(module))})
    weights = random_weights(module, 2)
    fixed = gauge(weights)
    scaled = gauge(groups.transform(weights, torch.rand(2, groups.count).double() + 0.5))
    again = gauge(fixed)
    numbers = torch.get_rng_state()
    permuted = gauge(shuffled(blocks, weights))
    torch.set_rng_state(numbers)
    fixed_then_permuted = shuffled(blocks, fixed)
    assert max(relative(again[key], fixed[key]) for key in fixed) < 1e-12
    assert max(relative(scaled[key], fixed[key]) for key in fixed) < 1e-10
    assert max(relative(permuted[key], fixed_then_permuted[key]) for key in fixed) < 1e-10
    one = {key: value[:1] for key, value in weights.items()}
    assert relative(run(module, gauge(one), (x,)), run(module, one, (x,))) < 1e-9


def test_eps_does_no_more_than_it_did():
    """Raw weights of small variance in front of norm layers: a gauge that fixed them to 1 would take the eps out."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8))
    module, other, x = module.double(), copy.deepcopy(module).double(), torch.randn(8, 3, 9, 9).double()
    for one in (module, other):
        for conv in (one[0], one[3]):
            nn.init.normal_(conv.weight, std=2e-3)
            nn.init.zeros_(conv.bias)
    groups, _ = symmetries_of(module, x)
    weights = {name: value.detach()[None] for name, value in other.named_parameters()}
    before = run(module, weights, (x,))
    own = ScaleGauge(groups, own_scales(dict(module.named_parameters())))
    assert relative(run(module, own(weights), (x,)), before) < 0.015
    assert relative(run(module, ScaleGauge(groups)(weights), (x,)), before) > 0.025


def test_the_distance_is_that_of_the_gauge():
    x = torch.randn(8, 3).double()
    hypernet = Hypernet(mlp().double(), x, **SMALL)
    one, other = hypernet.sample(3).weights, hypernet.sample(3).weights
    symmetries = hypernet.symmetries
    expected = gauges_distance(symmetries, one, other)
    assert torch.allclose(symmetries.distance(one, other), expected, rtol=1e-12)
    symmetries.fix(None)
    assert not torch.allclose(symmetries.distance(one, other), expected, rtol=1e-3)


def gauges_distance(symmetries, one, other):
    from lightning_hypernet.symmetry.alignment import symmetry_distance

    with torch.no_grad():
        return symmetry_distance(one, other, symmetries.gauge, symmetries.blocks)


def test_presets_of_the_paper_fix_scales_to_one():
    x = torch.randn(8, 3).double()
    for generator, scales in (({"start": "paper"}, None), ("paper_cifar_lenet", None), ("default", dict)):
        hypernet = Hypernet(mlp().double(), x, generator=generator)
        assert hypernet.symmetries.scales is scales or isinstance(hypernet.symmetries.scales, scales)
    hypernet = Hypernet(mlp().double(), x, generator={"start": "paper"})
    fixed = hypernet.symmetries.gauge(random_weights(mlp().double(), 2))
    both = torch.cat([fixed["0.weight"], fixed["0.bias"][:, :, None]], 2).square().mean(2)
    assert torch.allclose(both, torch.ones_like(both), rtol=1e-12)


@pytest.mark.parametrize("made", [True, False], ids=["made", "not yet made"])
def test_own_scales_are_kept(made):
    x = torch.randn(8, 3)
    hypernet = Hypernet(mlp(), x, **SMALL)
    target = mlp()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.mul_(100)
    other = Hypernet(target, x, **SMALL)
    weights = hypernet.sample(3).weights
    if made:
        assert not torch.allclose(other.symmetries.gauge(weights)["0.weight"], hypernet.symmetries.gauge(weights)["0.weight"])
    other.load_state_dict(hypernet.state_dict())
    assert other.symmetries.scales == hypernet.symmetries.scales
    assert torch.equal(other.symmetries.gauge(weights)["0.weight"], hypernet.symmetries.gauge(weights)["0.weight"])
    assert torch.equal(
        copy.deepcopy(hypernet).symmetries.gauge(weights)["0.weight"], other.symmetries.gauge(weights)["0.weight"]
    )
    assert gauges.own_scales({}) == {}
