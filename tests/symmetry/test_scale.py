import itertools
from dataclasses import replace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import Hypernet
from lightning_hypernet.diversity import Entropy
from lightning_hypernet.symmetry.gauge import ScaleGauge
from lightning_hypernet.symmetry.graph import SymmetryError
from lightning_hypernet.symmetry.symmetries import Symmetries
from tests.generator.test_generator import mnist_target
from tests.symmetry.examination import examine, holds, prepared, random_weights, relative, run
from tests.targets import Tied


class Residual(nn.Module):
    def __init__(self, norm=False, activation=nn.ReLU):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first, self.second = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6 if i != 1 else 5) if norm else nn.Identity() for i in range(3)])
        self.activation = activation()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.activation(self.norms[0](self.stem(x)))
        y = self.activation(self.norms[1](self.first(x)))
        x = self.activation(x + self.norms[2](self.second(y)))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(3)])
        self.head = nn.Linear(15 * 4, 3)

    def forward(self, x):
        for conv in self.convs:
            x = torch.cat([x, conv(x).relu()], 1)
        return self.head(F.max_pool2d(x, 3).flatten(1))


class Gated(nn.Module):
    """Squeeze and excite: what feeds the sigmoid is pinned, what it gates is not."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.reduce, self.expand = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        gate = self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.last(x * gate).mean((2, 3))


class Standardised(nn.Module):
    """A convolution that standardises its weight, with a gain."""

    def __init__(self):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.rand(6, 1, 1, 1) + 0.5)
        self.bias = nn.Parameter(torch.randn(6))
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        gain = (self.gain * 0.3).view(-1)
        weight = F.batch_norm(self.weight.reshape(1, 6, -1), None, None, gain, training=True, eps=1e-30).reshape_as(self.weight)
        return self.last(F.conv2d(x, weight, self.bias).relu()).mean((2, 3))


class LayerScaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale, self.position = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(4, 8))
        self.slope = nn.PReLU(8)

    def forward(self, x):
        x = self.stem(x) + self.position
        x = x + self.scale * self.slope(self.inner(x).transpose(1, 2)).transpose(1, 2)
        return self.head(x.sum(1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)])
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.last = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x):
        first = self.down[0](F.pad(x, (1, 1, 1, 1))).relu()
        second = F.leaky_relu(self.down[1](F.avg_pool2d(first, 2)))
        bigger = self.up(second) + F.interpolate(second[:, :4], scale_factor=2)
        return self.last(torch.cat([first, bigger.relu()], 1))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Linear(5, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(
            [nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=i > 0) for i in (0, 1)]
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class Odd(nn.Module):
    """Operations that scale in no simple way: all of it must be pinned, and nothing claimed that is not so."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.bias = nn.Parameter(torch.randn(3))
        self.table = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        a, b = self.a(x).relu(), self.b(x).relu() + 1
        y = a / b + torch.einsum("bi,ij->bj", a, self.table)
        bias = torch.cat([self.bias, torch.zeros_like(self.bias)])
        z = F.linear(x, self.d.weight, bias).relu()
        return self.c(y * z + z.square()) + a[:, torch.tensor([1, 0, 2, 2, 5, 4])]


class InPlace(nn.Module):
    """Views that are overwritten, and a pooling with indices."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.gain = nn.Parameter(torch.rand(6, 1, 1) + 0.5)

    def forward(self, x):
        x = self.first(x)
        x[:, :2].mul_(x[:, 2:4].sigmoid())
        F.relu_(x[:, 1:5])
        x, _ = F.adaptive_max_pool2d(x, 2, return_indices=True)
        y = self.second(x).relu_()
        y.mul_(self.gain)
        y[:, 4:].add_(1.0)
        return self.third(y.div_(2.0)).mean((2, 3))


MODULES = {
    "in_place": (InPlace, (3, 3, 8, 8), None),
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.LeakyReLU(), nn.Linear(6, 3)), (4, 5), 13),
    "lenet": (mnist_target, (2, 1, 28, 28), 56),
    "residual": (Residual, (2, 3, 6, 6), 6 + 5),
    "residual_norm": (lambda: Residual(True), (4, 3, 6, 6), 6 + 5 + 6 + 6 + 5),
    "residual_gelu": (lambda: Residual(activation=nn.GELU), (2, 3, 6, 6), 0),
    "dense": (Dense, (2, 3, 6, 6), 12),
    "gated": (Gated, (4, 3, 6, 6), 6 + 6 + 2),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)),
        (2, 4, 7, 7),
        12,
    ),
    "standardised": (Standardised, (2, 3, 6, 6), 12),
    "layer_scaled": (LayerScaled, (3, 4, 5), 8 + 8),
    "unet": (UNet, (2, 3, 8, 8), 4 + 8),
    "transformer": (Transformer, (3, 4, 5), None),
    "tied": (Tied, (3, 8), None),
    "odd": (Odd, (4, 6), None),
    "shuffled": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.PixelShuffle(2), nn.ChannelShuffle(2), nn.Conv2d(2, 3, 3)),
        (2, 2, 6, 6),
        2,
    ),
    "instance_norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        (2, 2, 7, 7),
        8,
    ),
    "group_norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        (2, 2, 7, 7),
        2 + 4,
    ),
}


PERMUTABLE = {
    "in_place": 4, "mlp": 13, "lenet": 56, "residual": 11, "residual_norm": 11, "residual_gelu": 11, "dense": 12, "gated": 8,
    "grouped": 0, "standardised": 0, "layer_scaled": 8, "unet": 8, "transformer": 8 + 2 * (8 + 8 + 12), "tied": 0, "odd": 0,
    "shuffled": 2, "instance_norm": 4, "group_norm": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_symmetries_and_the_scale_gauge(name):
    make, shape, count = MODULES[name]
    report = examine(make(), torch.randn(shape))
    assert holds(report), report
    assert count is None or report.groups.count == count
    assert report.channels == PERMUTABLE[name]


@pytest.mark.parametrize("name", ["residual_gelu", "gated", "transformer", "odd"])
def test_scaling_a_pinned_channel_changes_the_output(name):
    """The groups are not merely empty: what they leave out is no symmetry."""
    make, shape, _ = MODULES[name]
    module, x = prepared(make()), torch.randn(shape).double()
    groups = Symmetries.read(module, (x,), {}, [name for name, _ in module.named_parameters()]).groups
    weights = random_weights(module)
    before = run(module, weights, (x,))
    tried = 0
    for key, value in weights.items():
        known = groups.producers.get(key)
        pinned = (known is None or bool((known == groups.count).all())) and value.ndim > 2
        if pinned and "in_proj" not in key:
            tried += 1
            assert relative(run(module, {**weights, key: value * 1.5}, (x,)), before) > 1e-6, key
    assert tried


class Graph(nn.Module):
    """A random graph of layers on channels-first maps."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList()
        width = 4
        for kind, groups, norm in steps:
            group = groups if width % groups == 0 and 4 % groups == 0 else 1
            self.layers.append(nn.Conv2d(width, 4, 3, padding=1, groups=group, bias=not norm))
            self.layers.append(nn.BatchNorm2d(4) if norm else nn.Identity())
            width = {"concat": width + 4}.get(kind, 4)
        self.last = nn.Linear(width * 16, 3)

    def forward(self, x):
        for index, (kind, _, _) in enumerate(self.steps):
            y = self.layers[2 * index + 1](self.layers[2 * index](x))
            if kind == "concat":
                x = torch.cat([x.relu(), y], 1)
            elif kind == "residual" and x.shape == y.shape:
                x = (x + y.relu()).relu()
            elif kind == "gelu":
                x = F.gelu(y)
            elif kind == "gate":
                x = y * y.mean((2, 3), keepdim=True).sigmoid()
            else:
                x = F.leaky_relu(y)
        return self.last(x.flatten(1))


STEPS = st.lists(
    st.tuples(st.sampled_from(["plain", "residual", "concat", "gelu", "gate"]), st.sampled_from([1, 2, 4]), st.booleans()),
    min_size=1,
    max_size=5,
)


@settings(max_examples=10, deadline=None)
@given(steps=STEPS)
def test_random_graphs(steps):
    torch.manual_seed(0)
    report = examine(Graph(steps), torch.randn(4, 4, 4, 4))
    assert holds(report), report


def papers_rule(weights):
    """Reference section 3, layer by layer and filter by filter, for one MNIST network; the mean is subtracted, not the sum."""
    w = {name: value.clone() for name, value in weights.items()}
    names = ["0", "3", "7", "9"]
    for name, following in itertools.pairwise(names):
        for i in range(len(w[f"{name}.weight"])):
            elements = torch.cat([w[f"{name}.weight"][i].flatten(), w[f"{name}.bias"][i : i + 1]])
            s = (elements.square().sum() / len(elements)).sqrt()
            w[f"{name}.weight"][i] /= s
            w[f"{name}.bias"][i] /= s
            if name == "3":
                w["7.weight"][:, i * 49 : (i + 1) * 49] *= s
            else:
                w[f"{following}.weight"][:, i] *= s
    w["9.bias"] -= w["9.bias"].mean()
    return w


def test_the_papers_rule_to_the_letter():
    target = mnist_target().double()
    x = torch.randn(2, 1, 28, 28).double()
    hypernet = Hypernet(target, example_inputs=x, gauge="softmax", generator="paper_mnist", latent_dim=300)
    weights = random_weights(target, 3)
    fixed = hypernet.symmetries.gauge(weights)
    for index in range(3):
        expected = papers_rule({name: value[index] for name, value in weights.items()})
        for name, value in expected.items():
            assert torch.allclose(fixed[name][index], value, rtol=0, atol=1e-12), name
    assert torch.allclose(fixed["0.weight"].square().sum((2, 3, 4)) + fixed["0.bias"] ** 2, torch.tensor(26.0).double())


@pytest.mark.parametrize("name", ["mlp", "residual_norm", "dense", "unet", "transformer"])
def test_a_part_of_the_gauge_is_the_part_of_the_whole(name):
    make, shape, _ = MODULES[name]
    module = prepared(make())
    names = [key for key, _ in module.named_parameters()]
    gauge = ScaleGauge(Symmetries.read(module, (torch.randn(shape).double(),), {}, names).groups)
    weights = random_weights(module, 2)
    whole = gauge(weights)
    assert not all(gauge._levels_of(names[:1]))
    for chosen in [*([key] for key in names), names[::3]]:
        part = gauge.select(weights, chosen)
        assert list(part) == chosen
        assert all(torch.equal(part[key], whole[key]) for key in chosen)


def test_the_gauge_is_differentiable():
    module = Residual().double()
    x = torch.randn(2, 3, 6, 6).double()
    groups = Symmetries.read(module, (x,), {}, [name for name, _ in module.named_parameters()]).groups
    names = ["stem.bias", "first.bias", "second.bias"]
    weights = random_weights(module, 2)

    def gauged(*biases):
        return ScaleGauge(groups)({**weights, **dict(zip(names, biases, strict=True))})["second.weight"]

    biases = [weights[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(gauged, biases)


def test_zero_filters_keep_their_scale():
    module = MODULES["mlp"][0]().double()
    groups = Symmetries.read(module, (torch.randn(2, 5).double(),), {}, [name for name, _ in module.named_parameters()]).groups
    weights = {name: value * 0 for name, value in random_weights(module).items()}
    fixed = ScaleGauge(groups)(weights)
    assert all(torch.equal(fixed[name], weights[name]) for name in weights)


def test_half_precision_is_fixed_in_single():
    module = nn.Sequential(nn.Linear(70_000, 3), nn.ReLU(), nn.Linear(3, 2))
    groups = Symmetries.read(module, (torch.randn(2, 70_000),), {}, [name for name, _ in module.named_parameters()]).groups
    weights = {name: (value.detach()[None] * 0.1).half() for name, value in module.named_parameters()}
    fixed = ScaleGauge(groups)(weights)
    assert fixed["0.weight"].dtype == torch.half
    assert torch.allclose(fixed["0.weight"].float().square().mean(2), torch.ones(1, 3), rtol=0.02)


def test_modules_under_two_names_keep_their_symmetries():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
            self.first, self.last = self.net[0], self.net[2]

        def forward(self, x):
            return self.net(x)

    x = torch.randn(4, 5)
    hypernet = Hypernet(Twice(), example_inputs=x, gauge="softmax")
    assert hypernet.symmetries.groups.count == 6
    assert [block.size for block in hypernet.symmetries.blocks] == [6]
    assert hypernet.sample(2).gauged[:, -3:].sum(1).abs().max() < 1e-5


def test_a_gauge_asked_for_too_early_is_fixed_later():
    hypernet = Hypernet(MODULES["mlp"][0](), samples=4).train()
    early = hypernet.sample(2)
    with pytest.warns(UserWarning, match="give example_inputs, or call the target itself"):
        gauged = early.gauged
    assert torch.equal(gauged, early.vectors)
    hypernet(torch.randn(8, 5))
    gauged = hypernet.population.gauged
    assert not torch.allclose(gauged, hypernet.population.vectors)


def test_symmetries_are_read_after_training():
    hypernet = Hypernet(MODULES["mlp"][0](), samples=4, gauge="none").train()
    with hypernet.step():
        hypernet(torch.randn(8, 5))
    one, other = hypernet.eval().sample(2), hypernet.sample(2)
    scaled = hypernet.symmetries.groups.transform(one.weights, torch.rand(2, hypernet.symmetries.groups.count) + 0.5)
    assert hypernet.symmetries.distance(one.weights, scaled).max() < 1e-4
    assert hypernet.symmetries.distance(one.weights, other.weights).min() > 1e-2


def test_a_wrong_guess_of_a_timm_models_input_gives_way_to_the_batch():
    hypernet = Hypernet(timm.create_model("test_resnet", num_classes=4, in_chans=1), samples=2, generator={"hidden": (8,)})
    assert hypernet.symmetries.examples is None
    hypernet.train()(torch.randn(4, 1, 32, 32))
    assert hypernet.symmetries.groups.count > 0


def test_only_generated_parameters_are_scaled():
    module = MODULES["mlp"][0]().double()
    x = torch.randn(2, 5).double()
    groups = Symmetries.read(module, (x,), {}, ["0.weight", "0.bias", "2.weight", "4.weight"]).groups
    assert groups.count == 7
    assert set(groups.producers) <= {"0.weight", "0.bias", "2.weight"}


def trained(target, x, **options):
    hypernet = Hypernet(target, samples=4, **options).train()
    hypernet(x)
    return hypernet


def test_diversity_losses_see_the_gauge():
    """Networks that differ by a symmetry alone have no entropy."""
    torch.manual_seed(0)
    hypernet = trained(MODULES["mlp"][0]().double(), torch.randn(8, 5).double())
    population = hypernet.population
    one = {name: value[:1].expand_as(value) for name, value in population.weights.items()}
    groups = hypernet.symmetries.groups
    scaled = groups.transform(one, torch.rand(4, groups.count).double() + 0.5)
    population = replace(population, networks=population.networks.others(scaled))
    assert population.distance() < 1e-6
    assert Entropy()(population) > 500
    none = trained(MODULES["mlp"][0]().double(), torch.randn(8, 5).double(), gauge="none")
    assert torch.equal(none.population.gauged, none.population.vectors)


def test_the_summary_tells_the_gauge():
    hypernet = Hypernet(Gated(), example_inputs=torch.randn(2, 3, 6, 6))
    lines = hypernet.summary().splitlines()
    table = {line.split()[0]: line.split()[-1] for line in lines[1:5]}
    assert table == {"conv": "scale", "reduce": "scale", "expand": "-", "last": "-"}
    assert "the scale of 8 of 15 filters is fixed, in 14 groups of channels" in lines
    assert "pinned by sigmoid: 6 channels" in lines


class Unreadable(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum().item() > 1e9 else super().forward(x) * 2


def test_a_target_that_cannot_be_exported():
    x = torch.randn(8, 3)
    hypernet = trained(Unreadable(3, 2), x)
    with pytest.warns(UserWarning, match="no gauge is fixed: Unreadable cannot be exported"):
        gauged = hypernet.population.gauged
    assert torch.equal(gauged, hypernet.population.vectors)
    with pytest.raises(SymmetryError, match="Unreadable cannot be exported"):
        _ = trained(Unreadable(3, 2), x, gauge="scale").population.gauged
    with pytest.raises(SymmetryError, match="give example_inputs, or call the target itself"):
        _ = Hypernet(nn.Linear(3, 2), gauge="scale").sample(2).gauged
    with pytest.raises(SymmetryError, match="needs an output from a linear layer"):
        _ = trained(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), x, gauge="softmax").population.gauged
    with pytest.raises(ValueError, match="unknown gauge 'logits'; there are auto, none, permutation, scale, softmax"):
        Hypernet(nn.Linear(3, 2), gauge="logits")


@pytest.mark.parametrize(
    ("name", "share", "rows", "channels"),
    [
        pytest.param("resnet18", 0.99, 0.99, 2880, marks=pytest.mark.slow),
        pytest.param("densenet121", 0.99, 0.99, 10240, marks=pytest.mark.slow),
        pytest.param("regnety_002", 0.77, 0.85, 1364, marks=pytest.mark.slow),
        pytest.param("convnext_atto", 0.0, 0.0, 7960, marks=pytest.mark.slow),
    ],
)
def test_timm_models(name, share, rows, channels):
    report = examine(timm.create_model(name, num_classes=10), torch.randn(2, 3, 64, 64))
    assert holds(report), report
    assert report.filters >= share
    assert report.rows >= rows
    assert report.channels == channels


CONVOLUTIONAL = """
resnet18 resnet50 resnext50_32x4d seresnet50 ecaresnet26t resnetv2_50 nf_resnet26 nf_regnet_b0 vgg11_bn vgg11 densenet121
regnetx_002 regnety_002 mobilenetv3_small_100 mobilenetv2_100 efficientnet_b0 mnasnet_100 spnasnet_100 fbnetc_100 dla34 dla60x
dpn48b hrnet_w18_small inception_v3 inception_v4 xception41 res2net50_26w_4s selecsls42b ese_vovnet19b_dw hardcorenas_a
ghostnet_100 rexnet_100 lcnet_050 mixnet_s convnext_atto convmixer_768_32 skresnet18 cspresnet50 repvgg_a0 tresnet_m
mobileone_s0
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONAL.split())
def test_convolutional_models_of_timm(name):
    report = examine(timm.create_model(name, num_classes=10), torch.randn(2, 3, 96, 96))
    assert holds(report), report
    print(f"{name:28} {report}", flush=True)
