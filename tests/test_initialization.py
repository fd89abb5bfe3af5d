"""At step 0 a sampled network has the activations of a freshly initialised target, however deep."""

import pytest
import timm
import torch
from torch import nn

from lightning_hypernet import Hypernet


def plain_net(depth, width=64):
    layers = []
    for index in range(depth):
        conv = nn.Conv2d(3 if index == 0 else width, width, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def activations(module, x):
    """Standard deviation of the output of every leaf module, by name."""
    found = {}
    handles = [
        child.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output.std().item()))
        for name, child in module.named_modules()
        if not list(child.children())
    ]
    with torch.no_grad():
        module.train()(x)
    for handle in handles:
        handle.remove()
    return found


def means(modules, x):
    """Geometric mean over modules: fifty layers deep, one fresh network differs from the next by a factor of three or more."""
    rows = [activations(module, x) for module in modules]
    return {name: torch.tensor([row[name] for row in rows]).log().mean().exp().item() for name in rows[0]}


pytestmark = pytest.mark.filterwarnings("ignore:the norm statistics of these networks")

CASES = {
    "plain50": (lambda: plain_net(50), (8, 3, 12, 12), 24),
    "plain100": (lambda: plain_net(100), (8, 3, 8, 8), 24),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=10, zero_init_last=False), (8, 3, 64, 64), 1),
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64), (8, 3, 64, 64), 4),
}


@pytest.mark.parametrize("case", CASES)
def test_activations_at_step_0(case):
    make, shape, draws = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(shape)
    targets = [make() for _ in range(draws)]
    sampled = []
    for target in targets:
        hypernet = Hypernet(target.train(), samples=2)
        sampled += hypernet.materialize(hypernet.sample(1))
    ours, fresh = means(sampled, x), means(targets, x)
    ratios = {name: ours[name] / fresh[name] for name in fresh if fresh[name] > 0}
    assert len(ratios) > 20
    assert {name: ratio for name, ratio in ratios.items() if not 0.5 < ratio < 2} == {}


def test_what_starts_at_zero_starts_small():
    """timm's resnets start the last norm of every block at zero: sampled networks start it small, not at zero."""
    torch.manual_seed(0)
    target = timm.create_model("resnet18", num_classes=10).train()
    hypernet = Hypernet(target)
    (sampled,) = hypernet.materialize(hypernet.sample(1))
    ours, fresh = activations(sampled, torch.randn(8, 3, 64, 64)), activations(target, torch.randn(8, 3, 64, 64))
    silent = [name for name in fresh if fresh[name] == 0]
    assert len(silent) > 5
    assert all(0 < ours[name] < 0.1 for name in silent)
