"""Statistics: whatever training changes in buffers is each network's own, estimated in one pass."""

import copy
import warnings

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_hypernet import Ensemble, Hypernet
from lightning_hypernet.target import recent
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.recent import RecentInputs


class RunningNorm(nn.Module):
    """A norm layer of one's own: running averages that evaluation uses."""

    def __init__(self, features, rate=0.1):
        super().__init__()
        self.rate = rate
        self.scale = nn.Parameter(torch.ones(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("square", torch.ones(features))

    def forward(self, x):
        if not self.training:
            return (x - self.mean) / (self.square + 1e-5).sqrt() * self.scale
        mean, square = x.mean(0), x.var(0)
        with torch.no_grad():
            self.mean.lerp_(mean, self.rate)
            self.square = (1 - self.rate) * self.square + self.rate * square
        return (x - mean) / (square + 1e-5).sqrt() * self.scale


class Welford(nn.Module):
    """Mean over all that was seen, by a count."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x):
        if self.training:
            self.count += len(x)
            self.mean += (x.detach() - self.mean).sum(0) / self.count
        return x - self.mean


class Debiased(nn.Module):
    """A moving average that starts at zero, and is corrected by the number of updates."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
            self.updates += 1
        return x - self.mean / (1 - 0.9 ** self.updates.clamp(min=1))


class Codebook(nn.Module):
    """Exponential moving averages of the vectors nearest to each code, as in VQ-VAE."""

    def __init__(self, features, codes=4):
        super().__init__()
        self.register_buffer("codes", torch.randn(codes, features))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codes.clone())

    def forward(self, x):
        nearest = torch.cdist(x, self.codes).argmin(1)
        if self.training:
            hot = nn.functional.one_hot(nearest, len(self.codes)).to(x)
            with torch.no_grad():
                self.counts.lerp_(hot.sum(0), 0.1)
                self.sums.lerp_(hot.T @ x, 0.1)
                self.codes.copy_(self.sums / (self.counts[:, None] + 1e-5))
        return x + (self.codes[nearest] - x).detach()


class OneCode(Codebook):
    """All vectors are nearest to one code, wherever that is moved, so that counts alone seem to be averages."""

    def __init__(self, features):
        super().__init__(features)
        self.codes[1:] += 100
        self.sums.copy_(self.codes)


class Apart(nn.Module):
    """Codes that are made of the sums of a module within."""

    def __init__(self, features):
        super().__init__()
        self.sums = RunningNorm(features)
        self.register_buffer("codes", torch.zeros(features))

    def forward(self, x):
        self.sums(x)
        if self.training:
            self.codes = (self.codes + self.sums.mean.square()).detach()
        return x + self.codes


class Late(nn.Module):
    """What is far from zero, by an average that is not yet after the first batch."""

    def __init__(self, features):
        super().__init__()
        self.sums = RunningNorm(features)
        self.register_buffer("far", torch.zeros(features))

    def forward(self, x):
        self.sums(x)
        if self.training and self.sums.mean.abs().max() > 0.3:
            self.far = self.sums.mean.detach().clone()
        return x + self.far


class Queue(nn.Module):
    """The last outputs, as in MoCo."""

    def __init__(self, features, size=16):
        super().__init__()
        self.register_buffer("queue", torch.zeros(size, features))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            at = int(self.place)
            self.queue[at : at + len(x)] = x.detach()[: len(self.queue) - at]
            self.place.fill_((at + len(x)) % len(self.queue))
        return x + self.queue.mean(0)


class Watched(nn.Module):
    """What is above decides whether the statistics are kept."""

    def __init__(self, features):
        super().__init__()
        self.store = nn.Module()
        self.store.register_buffer("largest", torch.zeros(features))

    def forward(self, x):
        if self.training:
            self.store.largest = torch.maximum(self.store.largest, x.detach().abs().amax(0))
        return x / (self.store.largest + 1)


LAYERS = {
    "running_norm": RunningNorm,
    "welford": Welford,
    "debiased": Debiased,
    "codebook": Codebook,
    "one_code": OneCode,
    "apart": Apart,
    "late": Late,
    "queue": Queue,
    "watched": Watched,
}


def target(layer):
    return nn.Sequential(nn.Linear(3, 5), LAYERS[layer](5), nn.Tanh(), nn.Linear(5, 2)).double()


def batches(count=4, size=6):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 3, generator=generator, dtype=torch.float64) * 2 + 1 for _ in range(count)]


def passed(network, inputs):
    """The plain module after the same pass in training mode."""
    network = copy.deepcopy(network).train()
    for x in inputs:
        network(x)
    return network.eval()


def reference(layer, network, inputs):
    """The right statistics: of moving averages the mean of what every batch gives, else those after one plain pass."""
    if layer != "running_norm":
        return passed(network, inputs)
    own = copy.deepcopy(network)
    own[1].rate = 1.0
    each = [passed(own, [x])[1] for x in inputs]
    network = copy.deepcopy(network).eval()
    network[1].mean = torch.stack([one.mean for one in each]).mean(0)
    network[1].square = torch.stack([one.square for one in each]).mean(0)
    return network


def unset(module, fresh):
    """The same network with the buffers of a fresh target."""
    module = copy.deepcopy(module)
    for name, buffer in fresh.named_buffers():
        path, _, key = name.rpartition(".")
        module.get_submodule(path)._buffers[key] = buffer.clone()
    return module


@pytest.mark.filterwarnings("ignore:.*are no averages over batches")
@pytest.mark.parametrize("execution", ["loop", "vmap"])
@pytest.mark.parametrize("layer", LAYERS)
def test_statistics_of_any_layer(layer, execution, tmp_path):
    """Members, samples, ensembles, averages and materialized modules have those of the plain module after the same pass."""
    torch.manual_seed(0)
    fresh = target(layer)
    hypernet = Hypernet(fresh, samples=2, members=3, execution="loop").train()
    for x in batches():
        hypernet(x)
    for name, buffer in hypernet.target.named_buffers():
        assert torch.equal(buffer, fresh.get_buffer(name)), name
    hypernet.eval()
    x = batches(5)[-1]
    ensemble = hypernet.ensemble(2)
    if execution == "vmap":
        hypernet.executor.backend = ensemble.executor.backend = None
        hypernet.executor.choices.made = ensemble.executor.choices.made = {}
    members = hypernet.materialize(hypernet.member_population())
    sampled = hypernet.sample(2)
    hypernet.run(sampled, x)
    groups = [members, hypernet.materialize(sampled), ensemble.materialize(), [ensemble.average(batches())]]
    for network in (one for group in groups for one in group):
        right = reference(layer, unset(network, fresh), batches())
        for name, buffer in right.named_buffers():
            assert torch.allclose(network.get_buffer(name).double(), buffer.double(), atol=1e-9), name
            assert not torch.equal(buffer, fresh.get_buffer(name)), name
    expected = torch.stack([network.eval()(x) for network in members]).mean(0)
    assert torch.allclose(hypernet(x), expected, atol=1e-9)
    outputs = [ensemble.members(x), ensemble.members(x)]
    assert torch.allclose(outputs[0], torch.stack([network.eval()(x) for network in ensemble.materialize()]), atol=1e-9)
    assert torch.equal(*outputs)
    ensemble.save(tmp_path)
    loaded = Ensemble.load(tmp_path, target(layer))
    assert torch.allclose(loaded.members(x), outputs[0], atol=1e-9)
    other = Hypernet(target(layer), samples=2, members=3).eval()
    other.load_state_dict(hypernet.state_dict())
    assert torch.allclose(other(x), hypernet(x), atol=1e-9)


def test_statistics_that_are_no_averages_are_named_once():
    torch.manual_seed(0)
    hypernet = Hypernet(target("queue"), samples=2, execution="loop").train()
    hypernet(batches()[0])
    hypernet.eval()
    with pytest.warns(UserWarning, match=r"1\.queue, 1\.place of Sequential change in training and are no averages"):
        hypernet(batches()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hypernet.train()(batches()[1])
        hypernet.eval()(batches()[0])
        hypernet.ensemble(2)


def test_averages_are_not_named():
    torch.manual_seed(0)
    hypernet = Hypernet(target("running_norm"), samples=2).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hypernet(batches()[0])
        hypernet.eval()(batches()[0])


def test_a_norm_layer_of_timm_that_is_no_batch_norm():
    torch.manual_seed(0)
    norm = timm.layers.get_norm_act_layer("evonormb0")
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2)).double()
    hypernet = Hypernet(fresh, samples=2, members=2).train()
    inputs = [torch.randn(6, 3, 8, 8, dtype=torch.float64) * 3 for _ in range(3)]
    for x in inputs:
        hypernet(x)
    for network in hypernet.eval().materialize(hypernet.member_population()):
        features = [network[0](x).var(dim=(0, 2, 3), unbiased=True) for x in inputs]
        assert torch.allclose(network[1].running_var, torch.stack(features).mean(0), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*are no averages over batches")
def test_the_bound_of_a_spectral_norm_holds_for_every_network():
    torch.manual_seed(0)
    fresh = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2)).double()
    hypernet = Hypernet(fresh, samples=2, members=3).train()
    for _ in range(20):
        hypernet(torch.randn(8, 6, dtype=torch.float64))
    for network in hypernet.eval().materialize(hypernet.member_population()):
        assert torch.linalg.matrix_norm(network.eval()[0].weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_frozen_modules_keep_the_targets_own():
    torch.manual_seed(0)
    fresh = target("running_norm").train()
    fresh[1].mean += 3.0
    fresh[1].eval()
    hypernet = Hypernet(fresh, samples=2)
    hypernet(batches()[0])
    for network in hypernet.eval().materialize(hypernet.sample(2)):
        assert torch.equal(network[1].mean, fresh[1].mean)


def test_estimating_leaves_random_numbers_modes_and_the_target_alone():
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(3, 5), Watched(5), nn.Dropout(0.5), nn.Linear(5, 2)).double()
    hypernet = Hypernet(fresh, samples=2, execution="loop").train()
    hypernet(batches()[0])
    hypernet.eval()
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"1\.store\.largest"):
        hypernet(batches()[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(hypernet.target[1].store.largest, torch.zeros(5, dtype=torch.float64))
    assert not any(module.training for module in hypernet.modules())


def test_what_is_remembered_is_bounded_cloned_and_on_the_cpu(monkeypatch):
    inputs, x = RecentInputs(), torch.randn(500, 4)
    for _ in range(5):
        inputs.add(Arguments((x,), {}))
    x.zero_()
    assert [one.batch for one in inputs.on(torch.device("cpu"))] == [500] * 4
    assert inputs.full
    assert all(one.tensors[0].abs().sum() > 0 for one in inputs.on(torch.device("cpu")))
    monkeypatch.setattr(recent, "BYTES", 1600)
    small = RecentInputs()
    for count in (60, 30, 500):
        small.add(Arguments((torch.randn(count, 4), torch.zeros(3)), {}))
        assert sum(one.bytes for one in small.on(torch.device("cpu"))) <= 1600
    (last,) = small.on(torch.device("cpu"))
    assert last.batch == 99
    whole = RecentInputs()
    whole.add(Arguments((torch.randn(5000, 4),), {}))
    assert whole.full
    assert [one.batch for one in whole.on(torch.device("cpu"))] == [100]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(3, 4), nn.Linear(2, 4), nn.BatchNorm1d(4)

    def forward(self, a, b, mask=None):
        hidden = self.one(a) + self.two(b)
        return self.norm(hidden if mask is None else hidden * mask)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = TwoInputs()

    def forward(self, inputs):
        return self.inner(inputs["a"], inputs["b"])


def rows(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, size, generator=generator) for size in sizes]


A, B = rows(3, 2)
MASK = torch.arange(8.0)[:, None]
Y = torch.zeros(8)
REACHES = {
    "nested": (TwoInputs, ((A, B), Y), None, (A, B)),
    "flat": (TwoInputs, (A, B, Y), None, (A, B)),
    "without_targets": (TwoInputs, (A, B), None, (A, B)),
    "with_a_mask": (TwoInputs, ((A, B, MASK), Y), None, (A, B, MASK)),
    "by_name": (TwoInputs, {"b": B, "a": A, "label": Y}, None, (A, B)),
    "by_name_with_a_mask": (TwoInputs, {"mask": MASK, "b": B, "a": A}, None, (A, B, MASK)),
    "names_and_targets": (TwoInputs, ({"b": B, "a": A}, Y), None, (A, B)),
    "a_dictionary": (Named, {"a": A, "b": B}, None, ({"a": A, "b": B},)),
    "a_dictionary_and_targets": (Named, ({"a": A, "b": B}, Y), None, ({"a": A, "b": B},)),
    "a_function": (TwoInputs, {"u": A, "v": B, "w": MASK}, lambda one: (one["u"], one["v"], one["w"]), (A, B, MASK)),
    "a_function_of_names": (TwoInputs, [B, A], lambda one: {"a": one[1], "b": one[0]}, (A, B)),
    "a_function_of_one": (Named, [B, A], lambda one: ({"a": one[1], "b": one[0]},), ({"a": A, "b": B},)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the norm statistics of these networks")
@pytest.mark.parametrize("case", REACHES)
def test_a_loaders_batch_reaches_forward(case):
    make, batch, inputs, args = REACHES[case]
    torch.manual_seed(0)
    hypernet = Hypernet(make(), members=2)
    ensemble = hypernet.eval().ensemble(2)
    hypernet.update_statistics([batch], inputs=inputs)
    ensemble.update_statistics([batch], inputs=inputs)
    average = ensemble.average([batch], inputs=inputs)
    networks = [*hypernet.materialize(hypernet.member_population()), *ensemble.materialize(), average]
    for network in networks:
        plain = copy.deepcopy(network)
        norm = plain.norm if isinstance(plain, TwoInputs) else plain.inner.norm
        norm.reset_running_stats()
        norm.momentum = 1.0
        plain.train()(*args)
        for name, buffer in plain.named_buffers():
            assert torch.allclose(network.get_buffer(name), buffer, atol=1e-6), name


@pytest.mark.parametrize("batch", [(A, B, MASK, Y)[:1], (A, {"b": B})[:1], {"b": B}, []])
def test_a_batch_that_does_not_reach_forward(batch):
    with pytest.raises(ValueError, match=r"it is not clear how .* reaches TwoInputs\.forward\(a, b, mask=None\); say so with"):
        Hypernet(TwoInputs()).update_statistics([batch])


def test_a_batch_that_reaches_forward_in_several_ways():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

        def forward(self, x, mask=None):
            return self.net(x if mask is None else x * mask)

    hypernet = Hypernet(Masked())
    hypernet.update_statistics([(A, Y)])
    for batch in ((A, MASK, Y), ((A, MASK), Y)):
        with pytest.raises(ValueError, match="it is not clear how"):
            hypernet.update_statistics([batch])


def test_new_networks_of_a_loaded_hypernet_need_inputs():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))).train()
    hypernet(A)
    hypernet.eval()(A)
    loaded = Hypernet(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))).eval()
    loaded.load_state_dict(hypernet.state_dict())
    assert torch.allclose(loaded(A), hypernet(A), atol=1e-6)
    for call in (
        lambda: loaded.run(loaded.sample(2), A),
        lambda: loaded.ensemble(2),
        lambda: loaded.materialize(loaded.sample(1)),
    ):
        with pytest.raises(RuntimeError, match=r"need norm statistics of their own, .* pass loader= to from_checkpoint"):
            call()
    assert loaded.ensemble(2, loader=[(A, Y)]).members(A).shape == (2, 8, 4)
    assert len(loaded.materialize(loaded.sample(1))) == 1  # whose inputs it remembers


def test_weights_that_are_swapped_through_data_get_statistics_of_their_own():
    """As an average of weights is put in for validation, behind the back of version counters."""
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), members=2).train()
    hypernet(A)
    hypernet.eval()(A)
    average = copy.deepcopy(hypernet)
    for parameter in hypernet.parameters():
        parameter.data.mul_(1.5)
    outputs = hypernet(A)
    for network in hypernet.materialize(hypernet.member_population()):
        plain = copy.deepcopy(network)
        plain[1].reset_running_stats()
        plain[1].momentum = 1.0
        plain.train()(A)
        assert torch.allclose(network[1].running_var, plain[1].running_var, rtol=1e-5)
    for parameter, before in zip(hypernet.parameters(), average.parameters(), strict=True):
        parameter.data.copy_(before.data)
    assert torch.allclose(hypernet(A), average(A), atol=1e-6)
    assert not torch.allclose(outputs, average(A), atol=1e-3)


class FirstBatch(nn.Module):
    """Its averages begin with the first batch, as a flag says."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("begun", torch.tensor(False))

    def forward(self, x):
        if self.training:
            mean = x.detach().mean(0)
            self.mean.copy_(0.9 * self.mean + 0.1 * mean if self.begun else mean)
            self.begun.fill_(True)
        return x - self.mean


class ByCount(FirstBatch):
    """The share of the newest batch falls with the count."""

    def __init__(self, features):
        super().__init__(features)
        self.begun = torch.tensor(0)

    def forward(self, x):
        if self.training:
            self.begun += 1
            self.mean += (x.detach().mean(0) - self.mean) / self.begun
        return x - self.mean


class WarmUp(ByCount):
    """Nothing is averaged in the first two batches."""

    def forward(self, x):
        if self.training:
            self.begun += 1
            if self.begun > 2:
                self.mean.lerp_(x.detach().mean(0), 0.5)
        return x - self.mean


@pytest.mark.filterwarnings("ignore:.*are no averages over batches")
@pytest.mark.parametrize("layer", [FirstBatch, ByCount, WarmUp])
def test_updates_that_read_flags_and_counters(layer):
    """They are those of the plain module after the same pass."""
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(3, 5), layer(5), nn.Linear(5, 2)).double()
    hypernet = Hypernet(fresh, samples=2, members=2, execution="loop").train()
    for x in batches():
        hypernet(x)
    for network in hypernet.eval().materialize(hypernet.member_population()):
        plain = unset(network, fresh)
        right = passed(plain, batches())
        for name, buffer in right.named_buffers(remove_duplicate=False):
            assert torch.allclose(network.get_buffer(name).double(), buffer.double(), atol=1e-9), name
            assert not torch.equal(buffer, dict(fresh.named_buffers(remove_duplicate=False))[name])
    outputs = torch.stack([network.eval()(x) for network in hypernet.materialize(hypernet.member_population())])
    assert torch.allclose(hypernet(x), outputs.mean(0), atol=1e-9)


def test_a_step_that_changes_its_batch_is_told_when_a_loader_comes():
    hypernet = Hypernet(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), samples=2).train()
    with hypernet.executor.feed.of((A, Y)):
        hypernet(A * 5 + 3)
    with pytest.warns(UserWarning, match="training_step changes a batch before it calls Sequential, .* pass inputs="):
        hypernet.update_statistics([(A, Y)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hypernet.update_statistics([(A, Y)], inputs=lambda batch: batch[0] * 5 + 3)


class Lerped(nn.BatchNorm1d):
    """A batch norm whose own forward reads the momentum and counts nothing."""

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean(0), self.momentum)
        return x - (x.mean(0) if self.training else self.running_mean)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, Lerped])
def test_norms_behind_a_frozen_one_see_what_it_gives_in_evaluation(norm):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), norm(4)).double().train()
    net[1].running_mean.fill_(0.7)
    net[1].running_var.fill_(2.0)
    net[1].eval()
    hypernet = Hypernet(net, samples=2, execution="loop")
    batches = [torch.randn(12, 3, dtype=torch.float64) for _ in range(3)]
    hypernet(batches[0])
    population = hypernet.sample(1)
    hypernet.update_statistics(batches, population)
    (plain,) = hypernet.materialize(population)
    with torch.no_grad():
        means = torch.stack([plain[:3].eval()(x).mean(0) for x in batches]).mean(0)
    assert torch.allclose(plain[3].running_mean, means, rtol=0, atol=1e-12)
    assert torch.equal(plain[1].running_var, net[1].running_var)


class Graph:
    """A batch whose parts are attributes, and refer to each other."""

    def __init__(self):
        self.x = torch.randn(12, 3)
        self.more = {"y": torch.randn(12, 3)}
        self.parts = [Part(self) for _ in range(12)]


class Part:
    def __init__(self, whole):
        self.whole = whole


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, y):
        return self.norm(self.layer(x - y))


def test_what_a_step_takes_of_a_batch_by_attribute_is_followed():
    hypernet = Hypernet(Two(), samples=2)
    batch, others = Graph(), [Graph() for _ in range(3)]
    with hypernet.executor.feed.of(batch):
        hypernet(batch.more["y"], batch.x)
    population = hypernet.sample(1)
    hypernet.update_statistics(others, population)
    found = {name: value.clone() for name, value in population.buffers.items()}
    hypernet.update_statistics(others, population, inputs=lambda one: (one.more["y"], one.x))
    assert found and all(torch.equal(value, population.buffers[name]) for name, value in found.items())


class Remembers(nn.Module):
    """Keeps every batch, in a buffer that grows, and answers beside the mean of what it has kept."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.register_buffer("memory", torch.zeros(1, 2).double())

    def forward(self, x):
        out = self.layer(x)
        if self.training:
            self.memory = torch.cat([self.memory, out.detach()])
        return out - self.memory.mean(0)


def test_a_buffer_that_grows_stays_the_targets_own_and_is_named():
    torch.manual_seed(0)
    hypernet = Hypernet(Remembers(), samples=2, members=2, execution="loop").train()
    x = torch.randn(4, 3).double()
    hypernet(x)
    with pytest.warns(
        UserWarning, match="memory of Remembers change their size or type in training.*keeps the target's own"
    ) as told:
        ensemble = hypernet.eval().ensemble(2)
    ensemble.update_statistics([x, x])
    assert len(told) == 1
    assert all(torch.equal(one.memory, torch.zeros(1, 2).double()) for one in ensemble.materialize())
