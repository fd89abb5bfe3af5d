"""One small model of every family of timm: wrap, train a step, evaluate members, export. Takes half an hour."""

import re

import pytest
import timm
import torch
from timm.models import _registry
from torch.nn import functional as F

from lightning_hypernet import GeneratorConfig, Hypernet

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
    size = target.pretrained_cfg["input_size"]
    if not target.pretrained_cfg.get("fixed_input_size") and family not in ("levit", "vitamin"):
        size = (size[0], 96, 96)
    return name, target, torch.randn(4, *size)


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
    hypernet.eval().calibrate([x])
    population = hypernet.member_population()
    with torch.no_grad():
        members = torch.stack([member.eval()(x) for member in hypernet.materialize(population)])
        assert torch.allclose(hypernet(x), members.mean(0), atol=1e-4 * members.abs().max().item())
    (plain,) = hypernet.materialize(population[:1])
    target.load_state_dict(plain.state_dict(), strict=True)
    print(f"{family:24} {name:40} {hypernet.banks.weights / 1e6:6.1f} M weights", flush=True)
