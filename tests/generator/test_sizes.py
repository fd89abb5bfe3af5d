"""Generators are as small as promised, whatever the target, and adapters change what lies beneath by low rank alone."""

import pytest
import timm
import torch
from torch import nn

from lightning_hypernet import GeneratorConfig, Hypernet, Latents
from lightning_hypernet.generator import sizes
from lightning_hypernet.generator.sizes import numbers, settled, sides
from lightning_hypernet.hub import from_pretrained, save_pretrained
from tests.generator.test_generator import lenet, mnist_target, parameters

SMALL = {
    "mlp": lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    "mnist": mnist_target,
    "lenet": lenet,
    "wide": lambda: nn.Linear(64, 100),
    "tiny": lambda: nn.Linear(4, 2),
    "normed": lambda: nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 10)),
}
LARGE = ("resnet18", "resnet50", "vit_tiny_patch16_224", "convnext_atto", "densenet121")
TARGETS = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def made(name):
    return SMALL[name]() if name in SMALL else timm.create_model(name)


@pytest.mark.parametrize("components", [1, 4])
@pytest.mark.parametrize("name", TARGETS)
def test_a_generator_is_as_small_as_promised(name, components):
    target = made(name)
    weights = sum(parameter.numel() for parameter in target.parameters())
    layers = [one.weight for one in target.modules() if isinstance(one, (nn.Linear, nn.modules.conv._ConvNd))]
    adapters = 8 * sum(weight.shape[0] + weight[0].numel() for weight in layers)
    bounds = {"default": 1.25 * components * weights + 10_000, "pretrained": 1.25 * components * weights + 10_000}
    if components == 1:
        bounds |= {"compact": 0.25 * weights + 5_000, "adapter": 2 * adapters}
    for preset, bound in bounds.items():
        assert parameters(Hypernet(target, generator=preset, components=components).generator) <= bound, preset


@pytest.mark.parametrize("preset", ["default", "compact", "adapter", "paper_mnist"])
@pytest.mark.parametrize("fields", [{}, {"extractor": "mlp", "extractor_hidden": (7, 5)}, {"norm": "none", "bias": False}])
def test_sizes_are_counted_as_they_are(preset, fields):
    hypernet = Hypernet(mnist_target(), latent_dim=13, generator={"preset": preset, **fields})
    config = GeneratorConfig(**hypernet.options["generator"])
    config = settled(config, hypernet.banks, 13, 1)
    own = hypernet.banks.weights if config.start == "mean_weights" else 0
    assert numbers(config, hypernet.banks, 13, 1) == parameters(hypernet.generator) - own


def test_what_is_given_is_kept_and_the_rest_follows_the_target():
    banks = Hypernet(mnist_target()).banks
    assert settled(GeneratorConfig(code_size=3), banks, 64, 1).codes == 3
    assert settled(GeneratorConfig(hidden=(5,)), banks, 64, 1).hidden == (5,)
    wide = Hypernet(nn.Linear(64, 999)).banks
    assert settled(GeneratorConfig.compact(), wide, 64, 1).codes < settled(GeneratorConfig(), wide, 64, 4).codes


@pytest.mark.parametrize("numbers_in_z", [1, 2, 7, 16, 50, 64])
def test_a_latent_vector_fills_a_nearly_square_matrix(numbers_in_z):
    rows, columns = sides(numbers_in_z)
    assert abs(rows - columns) <= 1
    assert rows * columns >= numbers_in_z > rows * (columns - 1)


def frozen_target():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 50)).requires_grad_(False)


def test_an_adapter_serves_a_frozen_target():
    target = frozen_target()
    before = {name: value.clone() for name, value in target.named_parameters()}
    hypernet = Hypernet(target, generator="adapter", samples=4).train()
    assert not hypernet.banks.ordinary
    optimizer = torch.optim.Adam(hypernet.parameters(), lr=1e-2)
    x = torch.randn(64, 30)
    y = target(x).argmax(-1).roll(1)
    losses = []
    for _ in range(100):
        loss = nn.functional.cross_entropy(hypernet(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    weights = hypernet.eval().sample(3).weights
    rank = settled(GeneratorConfig.adapter(), hypernet.banks, 64, 1).codes
    for name in ("0.weight", "2.weight"):
        for changed in weights[name].detach().double() - before[name].double():
            values = torch.linalg.svdvals(changed)
            assert values[0] > 1e-3
            assert (values > 1e-5 * values[0]).sum() <= rank < min(changed.shape)


def test_an_adapter_starts_near_its_target_and_trains_only_the_change():
    target = frozen_target()
    x = torch.randn(8, 30)
    expected = target(x)
    hypernet = Hypernet(target, generator={"preset": "adapter", "gain": 0}, samples=4)
    torch.testing.assert_close(hypernet.eval()(x), expected)
    assert parameters(hypernet) < 2 * 8 * (30 + 40 + 40 + 50)
    assert not any(name.endswith("means") for name, _ in hypernet.named_parameters())


@pytest.mark.parametrize(
    ("options", "pace"),
    [
        ({}, 1),
        ({"components": 3}, 1),
        ({"context_dim": 2}, 4),
        ({"encoder": {"name": "deep_sets", "inputs": 3}}, 4),
        ({"generator": {"pace": 2.5}}, 2.5),
    ],
)
def test_what_is_generated_moves_faster_where_networks_answer_to_something(options, pace):
    """The numbers of the last layer are smaller by the pace, so that an optimizer's step moves what they give by more."""
    torch.manual_seed(0)
    generate = Hypernet(SMALL["mlp"](), **options).generator.weight_generators[0]
    torch.manual_seed(0)
    unhurried = Hypernet(SMALL["mlp"](), **{**options, "generator": {"pace": 1}}).generator.weight_generators[0]
    assert generate.gain.item() == pytest.approx(0.3 * pace) and unhurried.gain.item() == pytest.approx(0.3)
    torch.testing.assert_close(generate.head.weight * pace, unhurried.head.weight)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_the_gain_is_the_deviation_of_what_is_generated_in_units_of_the_target(norm, gain):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 40))
    generator = Hypernet(target.double(), generator={"gain": gain, "norm": norm}).generator.eval()
    z = torch.cat([torch.zeros(1, 64), torch.randn(2000, 64)]).double()
    drawn = generator(Latents(z, torch.zeros(2001, dtype=torch.long)))
    for name in ("0.weight", "2.weight", "4.weight"):
        deviation = (drawn[name][1:] - drawn[name][0]).square().mean().sqrt()
        assert deviation.item() == pytest.approx(gain * target.get_parameter(name).std(correction=0).item(), rel=0.2), name


@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-6, 1.0])
def test_what_hardly_moves_is_not_blown_up_beyond_half_precision(spread):
    torch.manual_seed(0)
    hypernet = Hypernet(SMALL["mlp"]().half(), generator={"spread": spread})
    assert all(value.isfinite().all() for value in hypernet.sample(3).weights.values())


def test_the_size_of_what_is_generated_is_as_exact_as_the_target():
    assert Hypernet(SMALL["mlp"]().double()).generator.weight_generators[0].gain.item() == 0.3


def test_a_file_keeps_the_size_of_what_is_generated_whatever_is_the_rule_by_then(tmp_path, monkeypatch):
    torch.manual_seed(0)
    hypernet = Hypernet(SMALL["mlp"](), context_dim=1, execution="loop").eval()
    save_pretrained(hypernet, tmp_path)
    monkeypatch.setattr(sizes, "_ANSWERING_PACE", 2.0)
    loaded = from_pretrained(tmp_path, target=SMALL["mlp"]()).eval()
    drawn = hypernet.sample(3, context=torch.randn(1))
    one, other = drawn.weights, loaded.decode(drawn.latents).weights
    assert all(torch.equal(one[name], other[name]) for name in one)
