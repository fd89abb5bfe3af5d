import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from lightning_hypernet import Ensemble, Hypernet, Latents


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def test_the_same_latents_give_the_same_networks():
    torch.manual_seed(0)
    hypernet = Hypernet(mlp(), components=2).train()
    latents, components = torch.randn(5, 64), torch.tensor([0, 1, 0, 1, 1])
    together = hypernet.decode(Latents(latents, components))
    alone = hypernet.decode(Latents(latents[1:2], components[1:2]))
    assert torch.allclose(together.vectors[1], alone.vectors[0], atol=1e-6)
    assert torch.equal(together.vectors, hypernet.decode(Latents(latents, components)).vectors)
    assert hypernet.generator.training


def test_random_numbers_are_its_own():
    torch.manual_seed(3)
    one, other = Hypernet(mlp()), Hypernet(mlp())
    torch.manual_seed(4)
    third = Hypernet(mlp())
    state = torch.get_rng_state()
    draws = [hypernet.sample(4).latents.z for hypernet in (one, other, third)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], one.sample(4).latents.z)


def test_ranks_draw_different_networks(monkeypatch):
    torch.manual_seed(0)
    hypernets = [Hypernet(mlp()) for _ in range(2)]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    draws = []
    for rank, hypernet in enumerate(hypernets):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None, rank=rank: rank)
        draws.append(hypernet.sample(3).latents.z)
    assert torch.equal(hypernets[0].members.latents.z, hypernets[1].members.latents.z)
    assert not torch.equal(*draws)


def test_the_state_continues_the_random_numbers():
    torch.manual_seed(0)
    hypernet = Hypernet(convnet())
    hypernet.sample(2)
    state = copy.deepcopy(hypernet.state_dict())
    expected = hypernet.sample(3).vectors
    torch.manual_seed(1)
    other = Hypernet(convnet())
    other.load_state_dict(state)
    assert torch.equal(other.sample(3).vectors, expected)


def test_one_population_a_step():
    hypernet = Hypernet(mlp(), samples=3).train()
    x = torch.randn(6, 4)
    with hypernet.step():
        first = hypernet(x)
        drawn = hypernet.population
        assert torch.equal(hypernet(x), first)
        hypernet(torch.randn(2, 4))
        assert hypernet.population is drawn
    assert hypernet.population is None
    assert not torch.equal(hypernet(x), hypernet(x))
    assert hypernet.population is not None


def test_evaluation_joins_fixed_members():
    torch.manual_seed(0)
    hypernet = Hypernet(mlp(), members=5, components=5).eval()
    x = torch.randn(6, 4)
    members = hypernet.materialize(hypernet.member_population())
    mean = torch.stack([member(x) for member in members]).mean(0)
    assert torch.allclose(hypernet(x), mean, atol=1e-6)
    assert torch.equal(hypernet(x), hypernet(x))
    assert sorted(hypernet.members.latents.component.tolist()) == [0, 1, 2, 3, 4]
    hypernet.reduce = None
    assert hypernet(x).shape == (5, 6, 3)


def test_evaluation_follows_changes_of_the_generator():
    hypernet = Hypernet(mlp()).eval()
    x = torch.randn(6, 4)
    with torch.no_grad():
        before = hypernet(x)
        assert torch.equal(hypernet(x), before)
        next(hypernet.generator.parameters()).add_(1.0)
        after = hypernet(x)
        assert not torch.equal(after, before)
        hypernet.load_state_dict(Hypernet(mlp()).state_dict())
        assert not torch.equal(hypernet(x), after)


def test_evaluation_is_differentiable_by_inputs_and_generator():
    hypernet = Hypernet(mlp()).eval()
    with torch.inference_mode():
        hypernet(torch.randn(6, 4))
    x = torch.randn(6, 4, requires_grad=True)
    hypernet(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert hypernet.generator.mean_codes.grad.abs().sum() > 0


def test_attributes_and_methods_of_the_target():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.size = 5
            self.inner = nn.Linear(4, 5)

        def features(self, x):
            return self.inner(x)

        def zeros(self, n):
            return next(self.parameters()).new_zeros(n, self.size)

        def freeze(self):
            self.size = 7

        def forward(self, x):
            return self.features(x).relu()

    hypernet = Hypernet(Model(), samples=2, execution="loop").train()
    x = torch.randn(4, 4)
    assert hypernet.size == 5
    assert hypernet.inner.in_features == 4
    with hypernet.step():
        assert torch.equal(hypernet.features(x).relu(), hypernet(x))
        assert hypernet.zeros(3).shape == (3, 5)
        assert torch.equal(hypernet.inner(x), hypernet.features(x))
    with pytest.raises(RuntimeError, match="Model.freeze returns nothing"):
        hypernet.freeze()
    with pytest.raises(AttributeError, match="'Model' object has no attribute 'nothing'"):
        hypernet.nothing  # noqa: B018


def test_norm_statistics_of_members_and_samples():
    torch.manual_seed(0)
    hypernet = Hypernet(convnet(), members=3)
    loader = [(torch.randn(16, 1, 8, 8) + 2, torch.zeros(16)) for _ in range(3)]
    with pytest.warns(UserWarning, match="never estimated, or with other weights; call hypernet.update_statistics"):
        hypernet.eval()(loader[0][0])
    hypernet.update_statistics(loader)
    population = hypernet.member_population()
    for index, module in enumerate(hypernet.materialize(population)):
        fresh = hypernet.executor.materialize({name: value[index] for name, value in population.weights.items()})
        fresh[3].p = 0.0
        torch.optim.swa_utils.update_bn(loader, fresh)
        assert torch.allclose(fresh[1].running_mean, module[1].running_mean, atol=1e-5)
        assert torch.allclose(fresh[1].running_var, module[1].running_var, atol=1e-5)
    assert torch.equal(hypernet.target[1].running_mean, torch.zeros(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampled = hypernet.sample(2)
        hypernet.run(sampled, loader[0][0])
    assert sampled.buffers["1.running_mean"].abs().min() > 0
    other = Hypernet(convnet(), members=3)
    other.load_state_dict(hypernet.state_dict())
    assert torch.allclose(other.eval()(loader[0][0]), hypernet.eval()(loader[0][0]))


def test_training_inputs_calibrate_what_is_sampled():
    torch.manual_seed(0)
    hypernet = Hypernet(convnet(), samples=2)
    for _ in range(3):
        hypernet(torch.randn(16, 1, 8, 8) + 2)
    (module,) = hypernet.eval().materialize(hypernet.sample(1))
    assert module[1].running_mean.abs().sum() > 0
    assert module[1].num_batches_tracked == 3


def test_statistics_of_older_weights_are_told():
    torch.manual_seed(0)
    hypernet = Hypernet(convnet(), samples=2)
    hypernet.update_statistics([torch.randn(16, 1, 8, 8)])
    hypernet.train()(torch.randn(16, 1, 8, 8))
    state = copy.deepcopy(hypernet.state_dict())
    for other in (copy.deepcopy(hypernet).eval(), Hypernet(convnet(), samples=2).eval()):
        other.load_state_dict(state)
        with pytest.warns(UserWarning, match="never estimated, or with other weights"):
            other(torch.randn(16, 1, 8, 8))


def test_frozen_norm_layers_keep_the_statistics_they_were_trained_with(tmp_path):
    torch.manual_seed(0)
    target = convnet()
    target[1].running_mean += 3.0
    target[1].eval()
    hypernet = Hypernet(target, samples=2)
    loader = [torch.randn(16, 1, 8, 8)]
    hypernet(*loader)
    hypernet.eval().update_statistics()
    other = Hypernet(convnet()).eval()
    other.load_state_dict(hypernet.state_dict())
    other.update_statistics(loader)
    ensemble = other.ensemble(2)
    ensemble.save(tmp_path)
    loaded = Ensemble.load(tmp_path, convnet())
    loaded.update_statistics(loader)
    for network in (*hypernet.materialize(hypernet.sample(2)), *hypernet.materialize(hypernet.member_population()),
                    *ensemble.materialize(), *loaded.materialize()):  # fmt: skip
        assert torch.equal(network[1].running_mean, target[1].running_mean)
        assert network[1].num_batches_tracked == 0


def test_a_first_call_without_gradients_leaves_the_others_theirs():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(4, 2), samples=2, execution="loop")
    x = torch.randn(6, 4)
    for without in (torch.no_grad, torch.inference_mode):
        with hypernet.step():
            with without():
                guess = hypernet(x)
            assert not guess.requires_grad
            outputs = hypernet(x)
            assert torch.equal(outputs, guess)
            outputs.sum().backward()
        assert hypernet.generator.mean_codes.grad.abs().sum() > 0
        hypernet.zero_grad()


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.1)
        self.temperature = 1.0
        self.samples = "its own"

    @property
    def device(self):
        return next(self.parameters()).device

    def forward(self, x):
        return self.drop(self.norm(self.scale(x))) / self.temperature


def test_attributes_are_set_on_the_target():
    hypernet = Hypernet(Tempered(), samples=3)
    hypernet.temperature = 100.0
    hypernet.drop.p = 0.9
    hypernet.norm.eval()
    hypernet.samples = 4
    hypernet.of_its_own = 1
    target = hypernet.target
    assert (target.temperature, target.drop.p, target.norm.training, target.samples) == (100.0, 0.9, False, "its own")
    assert hypernet.samples == 4
    assert not hasattr(target, "of_its_own")
    assert hypernet.device == torch.device("cpu")
    with pytest.raises(AttributeError, match=r"parameters of 'scale' are generated.*exclude=\['scale.\*'\]"):
        hypernet.scale.parameters()
    with pytest.raises(AttributeError, match="'scale' is a part of the target, which must be replaced before"):
        hypernet.scale = nn.Linear(4, 4)
    assert len(list(Hypernet(Tempered(), exclude=["scale.*"]).scale.parameters())) == 2


def test_items_of_containers_run_with_generated_weights():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.heads = nn.ModuleDict({"one": nn.Linear(4, 2), "other": nn.Linear(4, 5)})
            self.scales = nn.ParameterList([torch.ones(4)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.heads["one"](x)

    hypernet = Hypernet(Model(), samples=2, execution="loop").train()
    x = torch.randn(4, 4)
    with hypernet.step():
        y = x
        for layer in hypernet.layers:
            y = layer(y)
        assert torch.equal(hypernet.heads["one"](y), hypernet(x))
        assert torch.equal(hypernet.layers[-3](x), hypernet.layers[0](x))
        assert torch.equal(hypernet.layers[:3](x), y)
        assert torch.equal(dict(hypernet.heads.items())["other"](x), hypernet.heads["other"](x))
        assert torch.equal(hypernet.heads.values()[1](x), hypernet.heads["other"](x))
    assert (len(hypernet.layers), list(hypernet.heads), bool(hypernet.layers[0])) == (3, ["one", "other"], True)
    with pytest.raises(TypeError, match=r"layers.0 is a Linear, which has no items"):
        hypernet.layers[0][0]
    with pytest.raises(TypeError, match="the target is a Model, which has no items"):
        hypernet[0]
    with pytest.raises(KeyError):
        hypernet.heads[0]
    assert copy.copy(hypernet.layers[0]).in_features == copy.deepcopy(hypernet.layers[0]).in_features == 4
    for read in (lambda: hypernet.scales[0], lambda: hypernet.layers[0].weight):
        with pytest.raises(AttributeError, match=r"is generated, so every network has its own: .*exclude="):
            read()
    with pytest.raises(IndexError):
        hypernet.layers[3]


class Scaled(nn.Sequential):
    """A container with a parameter of its own."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        self.log_scale = nn.Parameter(torch.zeros(()))

    @property
    def scale(self):
        return self.log_scale.exp()

    def forward(self, x):
        return super().forward(x) * self.scale


def test_a_target_that_is_a_container_has_its_items():
    hypernet = Hypernet(Scaled(), samples=2, execution="loop").train()
    x = torch.randn(4, 4)
    with hypernet.step():
        first, _, last = hypernet
        with torch.no_grad():
            assert torch.equal(last(first(x).relu()), hypernet[:3](x))
            assert hypernet.scale == hypernet.population.weights["log_scale"][0].exp()
    assert (len(hypernet), bool(hypernet), hypernet[-1].out_features) == (3, True, 2)
    assert bool(Hypernet(nn.Linear(2, 2)))


@pytest.mark.parametrize("options", [{}, {"reduce": None}, {"members": 1}, {"exclude": ["0.*"]}])
def test_parts_called_one_after_another_in_evaluation_are_no_ensemble(options):
    hypernet = Hypernet(Scaled(), samples=2, **options).eval()
    x = torch.randn(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hypernet[0](x)
        hypernet(x)
        hypernet[0](x)
        hypernet[0](torch.randn(4, 4))
        hypernet.train().eval()
        hidden = hypernet[1](x)
        if options.get("members") == 1 or "exclude" in options:
            hypernet[2](hypernet[0](hidden).relu())
            return
        hidden = hypernet[0](hidden)
    with pytest.warns(UserWarning, match="'0' and '2' are called one after the other in evaluation.* a method of the target"):
        hypernet[2](hidden.relu())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hypernet[2](hypernet[0](x))


def test_a_part_of_its_own_output_is_no_ensemble():
    hypernet = Hypernet(nn.ModuleDict({"one": nn.Linear(4, 4)}), samples=2).eval()
    with pytest.warns(UserWarning, match="'one' and 'one' are called one after the other"):
        hypernet["one"](hypernet["one"](torch.randn(4, 4)))


def test_averages_of_weights_keep_members_and_tell_of_statistics():
    torch.manual_seed(0)
    hypernet = Hypernet(convnet(), samples=2, components=10)
    x = torch.randn(16, 1, 8, 8)
    equal = torch.optim.swa_utils.AveragedModel(hypernet, use_buffers=True)
    moving = torch.optim.swa_utils.AveragedModel(
        hypernet, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.997), use_buffers=True
    )
    for _ in range(4):
        hypernet.train()(x)
        for average in (equal, moving):
            average.update_parameters(hypernet)
    hypernet.update_statistics()
    moving.update_parameters(hypernet)
    for average in (equal, moving):
        assert average.module.members.latents.component.tolist() == hypernet.members.latents.component.tolist()
    with pytest.warns(UserWarning, match="never estimated, or with other weights"):
        moving.eval()(x)
    moving.module.update_statistics([x])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moving(x)


def test_modes_of_submodules_are_kept():
    target = convnet().train()
    target[1].eval()
    hypernet = Hypernet(target)
    assert hypernet.training
    assert not hypernet.target[1].training


def test_remembered_inputs_follow_the_module():
    hypernet = Hypernet(convnet(), samples=2, example_inputs=torch.randn(2, 1, 8, 8))
    hypernet(torch.randn(16, 1, 8, 8))
    hypernet.eval().double()
    assert hypernet.ensemble(2)(torch.randn(3, 1, 8, 8, dtype=torch.float64)).shape == (3, 3)
    assert hypernet.sample(2).example_outputs.dtype == torch.float64


def test_an_empty_loader():
    with pytest.raises(ValueError, match="no batch came to estimate statistics from"):
        Hypernet(convnet()).update_statistics([])


def test_copies_and_pickles():
    torch.manual_seed(0)
    hypernet = Hypernet(mlp(), execution="loop").train()
    x = torch.randn(8, 4)
    hypernet(x)
    for other in (copy.deepcopy(hypernet), pickle.loads(pickle.dumps(hypernet))):
        assert other.population is None
        assert torch.equal(other.eval()(x), hypernet.eval()(x))
        assert other.target is other.executor.target


def test_the_user_keeps_the_target():
    target = mlp()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    hypernet = Hypernet(target).train()
    hypernet(torch.randn(8, 4)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    assert not {name for name, _ in hypernet.named_parameters() if name.startswith("target")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: h.sample(0), "n must be 1 or more, not 0"),
        (lambda h: h.ensemble(-1), "n must be 1 or more, not -1"),
        (lambda h: h.decode(torch.randn(3, 5)), r"latents must be \(n, 64\) with n > 0, not \(3, 5\)"),
        (lambda h: h.decode(torch.randn(64)), r"latents must be \(n, 64\) with n > 0, not \(64,\)"),
        (lambda h: h.decode(torch.randn(0, 64)), "with n > 0"),
        (lambda h: h.sample(3, component=2), "components must lie in 0 to 1, not .2."),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call(Hypernet(mlp(), components=2))


def test_bad_options():
    with pytest.raises(ValueError, match="samples must be 1 or more, not 0; members must be 1 or more, not -2"):
        Hypernet(mlp(), samples=0, members=-2)
    with pytest.raises(ValueError, match="unknown prior 'cauchy'; there are mixture, normal, reweighted, torch, uniform"):
        Hypernet(mlp(), prior="cauchy")
    with pytest.raises(ValueError, match="reduce must be one of"):
        Hypernet(mlp(), reduce="sum")
    with pytest.raises(TypeError, match="the target is a Hypernet already"):
        Hypernet(Hypernet(mlp()))
    with pytest.raises(RuntimeError, match="needs a diversity"):
        Hypernet(mlp()).diversity_loss()
    with pytest.raises(TypeError, match="indexed by a slice or a tensor"):
        Hypernet(mlp()).sample(2)[0]


def test_parts_of_a_population():
    hypernet = Hypernet(mlp(), components=2)
    population = hypernet.sample(6)
    chosen = population[population.latents.component == 1]
    assert len(chosen) == 3
    assert torch.equal(chosen.vectors, population.vectors[population.latents.component == 1])
    assert torch.equal(population[1:3].vectors, population.vectors[1:3])
    assert repr(population) == "Population(6 networks of 67 weights, components [0, 1])"
