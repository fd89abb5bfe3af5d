import copy

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet, Latents


def target():
    torch.default_generator.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()


def hypernet_of(**options):
    given = {"components": 3, "samples": 3, "members": 3, "latent_dim": 6, "execution": "loop", "distribution": "rank_one"}
    return Hypernet(target(), **{**given, **options})


def by_hand(generator, latents):
    """One network after the other, one parameter after the other, one number of its first two axes after the other."""
    networks = []
    for z, component in zip(latents.z, latents.component, strict=True):
        code = generator.gain * (z @ generator.projection)
        shared, own, moves, weights = iter(generator.shared), iter(generator.own), iter(generator.moves), {}
        for name, shape in generator.shapes.items():
            if name not in generator.matrices:
                weights[name] = next(own)[component]
                continue
            (u, v), (move_u, move_v) = ([next(own)[component] for _ in range(2)], [next(moves) for _ in range(2)])
            u, v, value = u + u * (code @ move_u), v + v * (code @ move_v), next(shared).clone()
            for i in range(shape[0]):
                for j in range(shape[1]):
                    value[i, j] *= u[i] * v[j]
            weights[name] = value
        networks.append(weights)
    return networks


@pytest.mark.parametrize("start", ["signs", "near_one"])
def test_it_is_what_the_formula_says(start):
    hypernet = hypernet_of(distribution={"name": "rank_one", "start": start, "gain": 0.3}).eval()
    population = hypernet.sample(5)
    for network, expected in enumerate(by_hand(hypernet.generator, population.latents)):
        for name, value in expected.items():
            torch.testing.assert_close(population.weights[name][network], value, atol=1e-12, rtol=0)
    assert len({tuple(one.flatten().tolist()) for one in population.weights["0.weight"]}) == 5


def test_the_mean_network_of_the_first_component_is_the_target():
    weights = hypernet_of().decode(Latents(torch.zeros(1, 6).double(), torch.zeros(1).long())).weights
    for name, value in target().named_parameters():
        torch.testing.assert_close(weights[name][0], value, atol=0, rtol=0)


def test_components_start_as_signs_of_the_target():
    weights = hypernet_of().decode(Latents(torch.zeros(2, 6).double(), torch.tensor([1, 2]))).weights
    for name, value in target().named_parameters():
        torch.testing.assert_close(weights[name].abs(), value.abs().expand_as(weights[name]), atol=0, rtol=0)
    assert not torch.equal(weights["0.weight"][0], weights["0.weight"][1])


def test_every_network_trains_what_they_share_and_its_own_alone():
    hypernet = hypernet_of(distribution={"name": "rank_one", "gain": 0.0}).train()
    generator = hypernet.generator
    latents = Latents(torch.zeros(2, 6).double(), torch.tensor([0, 2]))
    weights = generator(latents)
    sum(value.sum() for value in weights.values()).div(2).backward()
    one = copy.deepcopy(generator).eval()
    one.zero_grad()
    sum(value.sum() for value in one(latents).values()).div(2).backward()
    for trained, plain in zip(generator.own, one.own, strict=True):
        torch.testing.assert_close(trained.grad, 3 * plain.grad, atol=1e-12, rtol=1e-12)
        assert trained.grad[0].any()
        assert trained.grad[2].any()
        assert not trained.grad[1].any()
    for trained, plain in zip(generator.shared, one.shared, strict=True):
        torch.testing.assert_close(trained.grad, plain.grad, atol=1e-12, rtol=1e-12)
        assert trained.grad.any()


def test_it_is_little_larger_than_its_target():
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    hypernet = Hypernet(module, distribution="rank_one", components=4)
    vectors, factors = 128 + 10, 64 + 128 + 128 + 10
    numbers = sum(value.numel() for value in hypernet.generator.parameters())
    assert numbers == 64 * 128 + 128 * 10 + 4 * (vectors + factors) + 4 * factors


class Odd(nn.Module):
    """Parameters of two axes that are no matrices: a token, one scale a head, a table without the word."""

    def __init__(self):
        super().__init__()
        self.token, self.logit_scale = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(2, 1, 1))
        self.table = nn.Parameter(torch.ones(3, 4))
        self.layer, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def no_weight_decay(self):
        return {"token"}

    def forward(self, x):
        return self.norm(self.layer(x + self.token[0] + self.table.sum(0)) * self.logit_scale.sum())


def test_only_matrices_are_scaled():
    hypernet = Hypernet(Odd(), distribution="rank_one", components=3, latent_dim=4)
    weights = hypernet.decode(Latents(torch.randn(3, 4), torch.arange(3))).weights
    for name in ("token", "logit_scale", "table", "norm.weight"):
        assert torch.equal(weights[name], torch.ones_like(weights[name])), name
    assert hypernet.generator.matrices == {"layer.weight"}


def test_what_plain_training_would_not_decay_is_spared():
    hypernet = Hypernet(Odd(), distribution="rank_one", components=3, latent_dim=4)
    named = {f"generator.{name}": one for name, one in hypernet.generator.named_parameters()}
    kept = {name: tuple(one.shape) for name, one in named.items() if name not in hypernet.no_weight_decay()}
    assert sorted(kept.values()) == [(3, 2, 1, 1), (3, 3, 4), (4, 4)]
    assert hypernet.no_weight_decay() <= set(dict(hypernet.named_parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distribution": {"name": "rank_one", "start": "sings"}}, "RankOne's start must be one of 'signs', 'near_one', not"),
        ({"distribution": {"name": "rank_one", "gain": -1}}, "RankOne's gain must be"),
        ({"context_dim": 2}, "RankOne has no conditions: leave them out, or take distribution='generator'"),
        ({"generator": "compact"}, "leave out generator="),
    ],
)
def test_what_it_can_not_be_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        hypernet_of(**options)


def test_members_are_kept_by_checkpoints_and_ensembles(tmp_path):
    hypernet = hypernet_of()
    hypernet(torch.randn(12, 2, 4, 4, dtype=torch.float64))
    hypernet.eval()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    outputs = hypernet(x)
    other = hypernet_of()
    other.load_state_dict(hypernet.state_dict())
    torch.testing.assert_close(other.eval()(x), outputs, atol=0, rtol=0)
    ensemble = hypernet.ensemble(4)
    for member, plain in zip(ensemble.members(x), ensemble.materialize(), strict=True):
        torch.testing.assert_close(plain(x), member, atol=1e-12, rtol=1e-12)
