"""One small model of every family of timm: wrap, train a step, evaluate members, export; symmetries. Takes half an hour."""

import re

import pytest
import timm
import torch
from timm.models import _registry
from torch.nn import functional as F

from lightning_hypernet import GeneratorConfig, Hypernet
from tests.symmetry.examination import change_by_eps, examine, holds

LIMIT = 60_000_000
SMALL = (
    "test",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "xs",
    "tiny",
    "_t",
    "mini",
    "s0",
    "b0",
    "_0",
    "small",
    "_s",
    "18",
    "26",
    "50",
)


def families():
    return sorted(module for module, models in _registry._module_to_models.items() if models)


def smallest(family):
    """A model of the family within the limit, the smallest by its name; parameters are counted on the meta device."""
    models = sorted(_registry._module_to_models[family])
    ranked = sorted(
        models, key=lambda name: next((i for i, mark in enumerate(SMALL) if re.search(rf"{mark}(?![a-z0-9])", name)), 99)
    )
    sizes = {}
    for name in ranked[:12]:
        try:
            with torch.device("meta"):
                sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        except Exception:
            sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        if sizes[name] < LIMIT / 4:
            return name
    return min(sizes, key=sizes.get)


def build(family):
    """The model, cut down by its own arguments if it is too large, and an input."""
    name = smallest(family)
    options = {"num_classes": 7}
    target = timm.create_model(name, **options)
    if sum(parameter.numel() for parameter in target.parameters()) > LIMIT:
        for cut in ({"depth": 2}, {"depths": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)}):
            try:
                target = timm.create_model(name, **options, **cut)
                break
            except TypeError:
                continue
    channels, *own = target.pretrained_cfg["input_size"]
    for size in ([96, 96], own):
        x = torch.randn(4, channels, *size)
        try:
            with torch.no_grad():
                target.eval()(x[:1])
            return name, target, x
        except Exception:
            if size is own:
                raise
    raise AssertionError


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families())
def test_family(family):
    torch.manual_seed(0)
    name, target, x = build(family)
    options = {"samples": 2, "members": 2, "generator": GeneratorConfig.compact(), "example_inputs": x[:2]}
    hypernet = Hypernet(target, **options).train()
    parameters = {parameter for parameter, _ in target.named_parameters()}
    assert set(hypernet.banks.shapes) | set(hypernet.banks.ordinary) == parameters
    output = hypernet(x)
    F.cross_entropy(output, torch.arange(4) % 7).backward()
    assert all(parameter.grad is not None for parameter in hypernet.generator.parameters())
    hypernet.eval().double().update_statistics([x.double()])
    with torch.no_grad():
        population = hypernet.member_population()
        members = torch.stack([member.eval()(x.double()) for member in hypernet.materialize(population)])
        assert torch.allclose(hypernet(x.double()), members.mean(0), rtol=0, atol=1e-6 * members.abs().max().item())
    (plain,) = hypernet.materialize(population[:1])
    target.load_state_dict(plain.state_dict(), strict=True)
    print(f"{family:24} {name:40} {hypernet.banks.weights / 1e6:6.1f} M weights", flush=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families())
def test_symmetries_of_a_family(family):
    torch.manual_seed(0)
    name, target, x = build(family)
    report = examine(target, x[:2])
    print(f"{family:24} {name:40} {report}", flush=True)
    assert holds(report), report


EPS = 0.005
EXCEPTIONS = {
    # Norm layers with an eps of 1e-3 in deep networks, whose outputs change hundreds of times as much as weights.
    "dpn": 0.08,
    "inception_resnet_v2": 0.05,
    "inception_v3": 0.6,
    "inception_v4": 2.0,
    "nasnet": 0.6,
    "pnasnet": 0.5,
    # The eps is a thousandth of the variance, and outputs change ten thousand times as much as weights.
    "convmixer": 0.15,
    # Depthwise filters of one number, some of which start near 0, below the eps of the norm layer behind.
    "fastvit": 0.07,
    "lcnetv2": 0.8,
    # Small weights of depthwise filters, or behind products of small numbers: norm layers read variances like their eps.
    "hgnet": 0.12,
    "starnet": 0.04,
}
"""Families whose outputs the gauge changes by more where layers keep their eps, and the bound of each."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families())
def test_the_eps_of_a_family_stays_harmless(family):
    torch.manual_seed(0)
    name, target, x = build(family)
    if x.shape[-1] <= 96:
        x = torch.cat([x, torch.randn_like(x)])
    change = change_by_eps(target, x)
    print(f"{family:24} {name:40} {change}", flush=True)
    assert change.outputs < EXCEPTIONS.get(family, EPS)
