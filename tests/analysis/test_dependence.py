"""Dependence between layers: Gaussians whose information is known, independent layers, a chain."""

import importlib
import math

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet, hookimpl
from lightning_hypernet.analysis import layer_dependence
from lightning_hypernet.analysis.neighbours import most_shared, shared
from lightning_hypernet.generator import WeightDistribution


class Chain(WeightDistribution):
    """Three layers, each a number of z times a vector, and small numbers of its own: a, b = r a + ..., c = r b + ..."""

    def __init__(self, setting, r=0.9, broken=False):
        super().__init__()
        self.vector = nn.Parameter(torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
        self.r, self.broken, self.names = r, broken, list(setting.initial)

    def forward(self, latents):
        z = latents.z.double()
        rest = math.sqrt(1 - self.r**2)
        a = z[:, 0]
        b = self.r * a + rest * z[:, 1]
        c = self.r * b + rest * z[:, 2]
        each = {}
        for index, (name, value) in enumerate(zip(self.names, (a, b, c), strict=True)):
            small = 0.01 * z[:, 3 + 9 * index : 12 + 9 * index]
            each[name] = (value[:, None] * self.vector + small).reshape(-1, 3, 3).contiguous()
        if self.broken:
            each[self.names[0]] = each[self.names[0]] * math.nan
        return each


class Plugin:
    @hookimpl
    def hypernet_register_distributions(self, register):
        register("chain", Chain)


def chain(**options):
    torch.manual_seed(0)
    target = nn.Sequential(*[nn.Linear(3, 3, bias=False) for _ in range(3)]).double()
    return Hypernet(target, latent_dim=30, gauge="none", plugins=[Plugin()], distribution={"name": "chain", **options}).eval()


def perceptron(**options):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    return Hypernet(target, example_inputs=torch.randn(2, 6), **options).eval()


def gaussian(r):
    return -0.5 * math.log(1 - r**2)


def test_layers_share_what_the_gaussians_in_them_share():
    found = layer_dependence(chain(r=0.8), shuffles=20)
    assert found.layers == ("0", "1", "2")
    assert found.matrix[0, 1].item() == pytest.approx(gaussian(0.8), abs=0.08)
    assert found.matrix[1, 2].item() == pytest.approx(gaussian(0.8), abs=0.08)
    assert found.matrix[0, 2].item() == pytest.approx(gaussian(0.64), abs=0.08)
    assert torch.equal(found.matrix, found.matrix.T)
    assert found.matrix.diagonal().abs().max() == 0


@pytest.mark.parametrize("gauge", [True, False])
def test_layers_of_a_mean_field_distribution_are_independent_and_it_says_so(gauge):
    found = layer_dependence(perceptron(distribution="mean_field"), 1000, gauge=gauge)
    assert found.edges == []
    assert found.matrix.max() <= found.chance < 0.12
    assert "no two layers are above chance" in str(found)


def test_layers_of_a_generator_are_not_independent():
    found = layer_dependence(perceptron(latent_dim=4), 1000)
    assert len(found.edges) == 3
    assert found.matrix[~torch.eye(3, dtype=torch.bool)].min() > 5 * found.chance
    assert found.matrix.max() < found.maximum


def test_a_population_is_read_as_it_is():
    net = chain()
    with torch.no_grad():
        population = net.sample(400)
    net.prior.draws -= 1
    one = layer_dependence(population, shuffles=3)
    assert one.matrix[0, 1] > one.matrix[0, 2] > 0
    assert torch.equal(one.matrix, layer_dependence(population, 5000, shuffles=3).matrix)


def test_some_layers_may_be_chosen():
    found = layer_dependence(chain(), 200, layers=["2", "0"], shuffles=3)
    assert found.layers == ("2", "0")
    assert found.matrix.shape == (2, 2)


def test_the_maximum_is_what_a_number_shares_with_itself():
    z = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert shared(z, z, 3, 0) == pytest.approx(most_shared(500, 3), abs=1e-6)


def test_a_chain_shares_nothing_past_its_middle():
    pytest.importorskip("ennemi")
    plain = layer_dependence(chain(), 4000, shuffles=10)
    given = layer_dependence(chain(), 4000, conditional=True, shuffles=10)
    assert plain.matrix[0, 2].item() == pytest.approx(gaussian(0.81), abs=0.08)
    assert given.matrix[0, 2] < 0.06
    r = 0.9 * math.sqrt(1 - 0.81) / math.sqrt(1 - 0.81**2)
    assert given.matrix[0, 1].item() == pytest.approx(gaussian(r), abs=0.12)
    assert {edge[:2] for edge in given.edges} >= {("0", "1"), ("1", "2")}
    assert given.conditional and "the others given" in str(given)


def test_it_draws_itself_as_a_graph():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    found = layer_dependence(chain(), 400, shuffles=5)
    figure, axes = found.plot()
    assert len(axes.lines) == len(found.edges) == 3
    texts = {text.get_text() for text in axes.texts}
    assert {"0", "1", "2", f"{found.matrix[0, 1]:.2f}"} <= texts
    pyplot.close(figure)


def test_a_seed_gives_the_same_again():
    with torch.no_grad():
        population = chain().sample(200)
    one, other = (layer_dependence(population, shuffles=5, seed=4) for _ in range(2))
    assert torch.equal(one.matrix, other.matrix)
    assert one.chance == other.chance


def test_without_the_libraries_it_says_what_to_install(monkeypatch):
    real = importlib.import_module

    def missing(name, *args):
        if name in ("ennemi", "sklearn.feature_selection"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    for conditional, package in ((False, "scikit-learn"), (True, "ennemi")):
        with pytest.raises(ValueError, match=rf"{package}'s: pip install 'lightning_hypernet\[information\]'"):
            layer_dependence(chain(), 40, conditional=conditional)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": ["0", "3"]}, "there is no layer '3'; there are 0, 1, 2"),
        ({"layers": "0"}, "two layers or more"),
        ({"samples": 5}, "samples must be 20 or more"),
        ({"neighbours": 0}, "neighbours must be"),
        ({"gauge": "off"}, "gauge must be true or false"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options, says):
    with pytest.raises(ValueError, match=says):
        layer_dependence(chain(), **{"samples": 100, **options})


def test_what_is_no_network_or_nan_or_never_varies_is_refused():
    with pytest.raises(TypeError, match="networks must be a Hypernet or a population"):
        layer_dependence(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="weights of 0 hold NaN"):
        layer_dependence(chain(broken=True), 100)
    with torch.no_grad():
        same = chain().decode(torch.ones(50, 30, dtype=torch.float64))
    with pytest.raises(ValueError, match="the weights of 0 are the same in all networks"):
        layer_dependence(same)
