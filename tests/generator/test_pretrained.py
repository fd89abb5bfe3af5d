"""Layers that were trained before, or begin at zero, move as they do in plain training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import Hypernet


class Words(nn.Module):
    """An embedding, a convolution, norm layers, a table and a head that begins at zero."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.scale = nn.Parameter(torch.full((6,), 1e-3))
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        x = self.embedding(x) * (1 + self.scale)
        x = F.gelu(self.conv(x.mT)).mT
        return self.head(self.norm(x).mean(1))


def fitted():
    torch.manual_seed(1)
    target = Words().double()
    optimizer = torch.optim.Adam(target.parameters(), 1e-2)
    for x, y in batches(30):
        optimizer.zero_grad()
        F.cross_entropy(target(x), y).backward()
        optimizer.step()
    nn.init.zeros_(target.head.weight)
    return target


def batches(count, size=24):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        x = torch.randint(0, 7, (size, 5), generator=generator)
        yield x, x.sum(1) % 3


def train(module, make, count=40):
    optimizer = make([one for one in module.parameters() if one.requires_grad])
    module.train()
    for x, y in batches(count):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, 3e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 3e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("start", ["pretrained", "mean_weights"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("components", [1, 3])
def test_without_deviations_training_is_plain_training(start, optimizer, components):
    """Of one component the networks together see the whole batch; of three, each a third of it."""
    target = fitted()
    hypernet = Hypernet(target, samples=3, components=components, generator={"start": start, "gain": 0.0})
    before = hypernet.decode(hypernet.draw(3)).weights
    assert all(torch.equal(value[0], target.get_parameter(name)) for name, value in before.items() if components == 1)
    if components == 1:
        plain = copy.deepcopy(target)
        train(plain, OPTIMIZERS[optimizer])
        train(hypernet, OPTIMIZERS[optimizer])
        for name, value in hypernet.decode(hypernet.draw(3)).weights.items():
            assert torch.allclose(value, plain.get_parameter(name).expand_as(value), rtol=1e-9, atol=1e-9), name
            assert not torch.allclose(value, before[name]), name
        return
    latents = hypernet.prior.draw(3)
    plains = hypernet.materialize(hypernet.decode(latents))
    optimizers = [OPTIMIZERS[optimizer](one.parameters()) for one in plains]
    own = OPTIMIZERS[optimizer](hypernet.parameters())
    hypernet.train()
    for x, y in batches(10):
        with hypernet.step():
            own.zero_grad()
            F.cross_entropy(hypernet(x), y).backward()
            drawn = hypernet.population.latents.component
        own.step()
        for part, component in zip(range(3), drawn.tolist(), strict=True):
            which = latents.component.tolist().index(component)
            optimizers[which].zero_grad()
            F.cross_entropy(plains[which](x[8 * part : 8 * part + 8]), y[8 * part : 8 * part + 8]).backward()
            optimizers[which].step()
    for index, plain in enumerate(plains):
        for name, value in hypernet.decode(latents).weights.items():
            assert torch.allclose(value[index], plain.get_parameter(name), rtol=1e-9, atol=1e-9), name


def test_layers_that_begin_at_zero_move_as_in_plain_training():
    target = fitted()
    before = {name: value.clone() for name, value in target.named_parameters()}
    hypernet = Hypernet(target, samples=4, generator="pretrained")
    plain = copy.deepcopy(target)
    train(plain, OPTIMIZERS["adam"], 60)
    train(hypernet, OPTIMIZERS["adam"], 60)
    mean = {name: value.mean(0) for name, value in hypernet.decode(hypernet.draw(200)).weights.items()}
    for name, start in before.items():
        ours, theirs = (mean[name] - start).norm(), (plain.get_parameter(name) - start).norm()
        assert ours > 0.85 * theirs, name
        assert ours < 1.15 * theirs or start.std(correction=0) > 1e-3, name  # what is large is moved by the generator, too
        assert F.cosine_similarity((mean[name] - start).flatten(), (plain.get_parameter(name) - start).flatten(), 0) > 0.8, name


@pytest.mark.parametrize("components", [1, 3])
def test_the_first_deviations_are_small_and_around_the_target(components):
    target = fitted()
    hypernet = Hypernet(target, components=components, generator="pretrained")
    weights = hypernet.decode(hypernet.prior.draw(1500)).weights
    for name, value in weights.items():
        own = target.get_parameter(name)
        size = own.std(correction=0) if own.std(correction=0) > 0 else own.new_tensor(0.02)
        assert 0 < value.std(0).mean() < 0.06 * size, name
        assert (value.mean(0) - own).abs().max() < 0.02 * size, name
