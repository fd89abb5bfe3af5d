"""At step 0 a sampled network has the activations of a freshly initialised target, however deep."""

import pytest
import timm
import torch
from torch import nn

from lightning_hypernet import Hypernet, Latents


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
    "plain20": (lambda: plain_net(20), (8, 3, 12, 12), 16),
    "plain50": (lambda: plain_net(50), (8, 3, 12, 12), 24),
    "plain100": (lambda: plain_net(100), (8, 3, 8, 8), 24),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=10, zero_init_last=False), (8, 3, 64, 64), 1),
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=6), (8, 3, 64, 64), 4),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in ("plain50", "plain100", "vit_tiny"))) for case in CASES]
)
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


@pytest.mark.parametrize("start", ["mean_weights", "mean_code", "pretrained"])
def test_small_weights_start_small(start):
    """As in the last layer of a flow; what is small is not constant."""
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 2))
    nn.init.normal_(target[2].weight, std=5e-5)
    weights = Hypernet(target, generator={"start": start}).sample(8).weights["2.weight"]
    assert weights.std().item() == pytest.approx(5e-5, rel=0.15)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 16)
        self.rates = nn.Parameter(torch.arange(1.0, 17.0).log())
        self.layer_scale = nn.Parameter(torch.full((16,), 1e-6))

    def forward(self, x):
        return self.layer(x) * self.rates * self.layer_scale


def test_parameters_that_no_rule_reads_start_alike_in_all_components():
    torch.manual_seed(0)
    target = Table()
    hypernet = Hypernet(target, components=3, generator={"gain": 0.01})
    weights = hypernet.decode(Latents(torch.randn(3, 64), torch.arange(3))).weights
    assert (weights["rates"] - target.rates).abs().max() < 0.1
    assert (weights["layer_scale"] - 1e-6).abs().max() < 1e-7
    assert (weights["layer.weight"][1] - weights["layer.weight"][0]).abs().max() > 0.1


def test_another_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        hypernet = Hypernet(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), samples=2)
        assert hypernet(torch.randn(6, 4)).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
