"""State of every kind: each network has its own, it lasts as long as the population, and the next starts from the target's."""

import array
import copy
import dataclasses
import functools
import itertools
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet

ROWS = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Meter:
    def __init__(self):
        self.n = 0

    def up(self):
        self.n += 1
        return self.n


class Slotted:
    __slots__ = ("n",)

    def __init__(self):
        self.n = 0


@dataclasses.dataclass(slots=True)
class Record:
    n: int = 0
    rest: list = dataclasses.field(default_factory=list)


class Tally(dict):
    hits = 0


def bump(holder):
    holder.n += 1
    return holder.n


def bump_key(holder, key="n"):
    holder[key] = holder.get(key, 0) + 1
    return holder[key]


def bump_list(holder):
    holder.append(1)
    return len(holder)


def bump_set(holder):
    holder.add(len(holder))
    return len(holder)


def bump_array(holder):
    holder[0] += 1
    return int(holder[0])


def bump_data(holder):
    holder.data.add_(1)
    return holder.item()


def bump_in_place(holder):
    holder.add_(1)
    return holder.item()


def bump_hits(holder):
    holder.hits += 1
    return holder.hits


def bump_large(holder):
    holder[-1] += 1
    return holder[-1]


KINDS = {
    "object": (Meter, bump),
    "slots": (Slotted, bump),
    "dataclass with slots": (Record, bump),
    "list in slots": (Record, lambda holder: bump_list(holder.rest)),
    "attribute of a dictionary": (Tally, bump_hits),
    "dictionary": (dict, bump_key),
    "ordered": (OrderedDict, bump_key),
    "default": (lambda: defaultdict(int), bump_key),
    "counter": (Counter, bump_key),
    "list": (list, bump_list),
    "deque": (deque, bump_list),
    "set": (set, bump_set),
    "nested": (lambda: {"a": [({"b": Meter()},)]}, lambda holder: bump(holder["a"][0][0]["b"])),
    "large list": (lambda: [0] * 5000, bump_large),
    "numpy": (lambda: np.zeros(1), bump_array),
    "array": (lambda: array.array("d", [0.0]), bump_array),
    "bytes": (lambda: bytearray(1), bump_array),
    "tensor": (lambda: torch.zeros(()), bump_in_place),
    "tensor's data": (lambda: torch.zeros(()), bump_data),
    "count": (lambda: itertools.count(1), next),
    "iterator": (lambda: iter([1, 2, 3, 4]), next),
    "bound method": (lambda: Meter().up, lambda holder: holder()),
    "partial": (lambda: functools.partial(Meter.up, Meter()), lambda holder: holder()),
}


class Stateful(nn.Module):
    def __init__(self, make, bump):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.holder, self.bump = make(), bump

    def forward(self, x, late=False):
        return self.layer(x) * 0 + (0 if late else self.bump(self.holder))


@pytest.mark.parametrize("execution", ["loop", "vmap"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Vmap cannot run", "ignore:Pickle, copy, and deepcopy support:DeprecationWarning")
def test_state_is_each_networks_own_and_ends_with_the_population(kind, execution):
    hypernet = Hypernet(Stateful(*KINDS[kind]).double(), samples=3, execution=execution)
    for _ in range(4):
        with hypernet.step():
            assert [hypernet(ROWS).unique().tolist() for _ in range(2)] == [[1.0], [2.0]]
    assert KINDS[kind][1](hypernet.target.holder) == 1


def test_state_that_changes_late_ends_with_the_population():
    hypernet = Hypernet(Stateful(lambda: [0] * 5000, bump_large).double(), samples=3, execution="loop")
    for late in (True, True, False, False):
        with hypernet.step():
            assert [hypernet(ROWS, late=late).max().item() for _ in range(2)] == ([0.0, 0.0] if late else [1.0, 2.0])


@pytest.mark.filterwarnings("ignore:Vmap cannot run", "ignore:Pickle, copy, and deepcopy support:DeprecationWarning")
def test_a_cache_of_weights_in_slots_ends_with_the_population():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.cache = Record(None)

        def forward(self, x):
            if self.cache.n is None:
                self.cache.n = self.layer.weight * 2
            return x @ self.cache.n

    for execution in ("loop", "vmap", "auto"):
        hypernet = Hypernet(Cached().double(), samples=3, execution=execution)
        for _ in range(3):
            with hypernet.step():
                output, weights = hypernet(ROWS), hypernet.population.weights["layer.weight"]
            alive = weakref.ref(weights)
            expected = torch.cat([part @ (2 * weight) for part, weight in zip(ROWS.split(2), weights, strict=True)])
            assert torch.allclose(output, expected, atol=1e-12)
            del output, weights, expected
            assert alive() is None


class Kept(nn.Module):
    """Keeps what a second method reads, as a variational autoencoder keeps its mean."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.mean = None

    def forward(self, x):
        self.mean = self.layer(x)
        return self.mean + 1

    def divergence(self, x=None):
        return self.mean.square().mean()


@pytest.mark.filterwarnings("ignore:Vmap cannot run", "ignore:Pickle, copy, and deepcopy support:DeprecationWarning")
@pytest.mark.parametrize("execution", ["loop", "vmap", "auto"])
def test_a_method_reads_what_another_kept(execution):
    hypernet = Hypernet(Kept().double(), samples=3, execution=execution)
    for _ in range(2):
        with hypernet.step():
            output = hypernet(ROWS)
            found = hypernet.divergence(ROWS)
            assert torch.allclose(found, (output - 1).square().mean())
            assert torch.allclose(hypernet.divergence(), (output[:2] - 1).square().mean())
        found.backward()


class Twice(nn.Module):
    """Two methods, of which the second changes a buffer and writes to its weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def embed(self, x):
        return self.layer(x)

    def forward(self, x):
        self.layer.weight.data.clamp_(-0.05, 0.05)
        self.calls += 1
        return self.layer(x) * 0 + self.calls


@pytest.mark.filterwarnings("ignore:Vmap cannot run", "ignore:Pickle, copy, and deepcopy support:DeprecationWarning")
@pytest.mark.parametrize("execution", ["loop", "vmap", "auto"])
def test_what_a_second_method_changes_is_each_networks_own(execution):
    hypernet = Hypernet(Twice().double(), samples=3, execution=execution)
    for _ in range(2):
        with hypernet.step():
            hypernet.embed(ROWS)
            population = hypernet.population
            before = population.weights["layer.weight"].clone()
            assert [hypernet(ROWS).unique().tolist() for _ in range(2)] == [[1.0], [2.0]]
            assert torch.equal(population.weights["layer.weight"], before)
    assert hypernet.target.calls == 0


def test_modes_that_change_within_a_population_leave_the_target_alone():
    hypernet = Hypernet(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double(), samples=3, execution="loop")
    hypernet.update_statistics([ROWS])
    hypernet.eval()
    population = hypernet.sample(3)
    hypernet.run(population, ROWS)
    hypernet.train()
    hypernet.run(population, ROWS)
    assert torch.equal(hypernet.target[1].running_mean, torch.zeros(4).double())
    assert hypernet.target[1].num_batches_tracked == 0


def test_an_ensemble_that_was_in_training_mode_is_itself_again():
    hypernet = Hypernet(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double(), samples=3)
    hypernet.update_statistics([ROWS])
    ensemble = hypernet.ensemble(3)
    before = ensemble(ROWS)
    ensemble.train()(ROWS + 3)
    assert torch.allclose(ensemble.eval()(ROWS), before, atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_weights_that_are_loaded_between_calls_are_no_fault_of_a_run():
    target = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
    target.register_buffer("mask", torch.ones(4))
    hypernet = Hypernet(target, samples=3, execution="loop")
    hypernet(ROWS)
    hypernet.load_state_dict(copy.deepcopy(hypernet.state_dict()))
    hypernet.target.mask.mul_(0.5)
    hypernet(ROWS)
    assert hypernet.executor.replicas.habits.late == frozenset()


def test_a_buffer_that_a_later_run_changes_is_told_and_each_networks_own_from_then_on():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x, late=False):
            if late:
                self.n += 1
            return self.layer(x) * 0 + self.n

    hypernet = Hypernet(Late().double(), samples=3, execution="loop")
    hypernet(ROWS)
    with pytest.warns(UserWarning, match="the buffers n of Late are changed by a run, but were not by the first"):
        hypernet(ROWS, late=True)
    start = hypernet.target.n.item()
    assert hypernet(ROWS, late=True).unique().tolist() == [start + 1]
    assert hypernet.target.n.item() == start


def test_a_hook_that_shapes_the_data_is_part_of_the_target():
    target = nn.Sequential(nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)).double()
    target[0].register_forward_hook(lambda module, args, output: output[0])
    x = torch.randn(6, 5, 4, dtype=torch.float64)
    for execution in ("loop", "auto"):
        hypernet = Hypernet(target, samples=3, execution=execution)
        output = hypernet(x)
        modules = hypernet.materialize(hypernet.population)
        expected = torch.cat([module(part) for module, part in zip(modules, x.split(2), strict=True)])
        assert torch.allclose(output, expected, atol=1e-12)


def test_a_hook_of_an_object_that_the_target_holds_is_each_networks_own():
    class Store:
        def save(self, module, args, output):
            self.seen = output

    class Reader(nn.Module):
        def __init__(self, store):
            super().__init__()
            self.store = store

        def forward(self, x):
            return self.store.seen * 2 + x

    store = Store()
    target = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Reader(store)).double()
    target[0].register_forward_hook(store.save)
    hypernet = Hypernet(target, samples=3, execution="loop")
    output, weights = hypernet(ROWS), hypernet.population.weights
    hidden = torch.cat(
        [
            nn.functional.linear(part, *row)
            for part, *row in zip(ROWS.split(2), weights["0.weight"], weights["0.bias"], strict=True)
        ]
    )
    assert torch.allclose(output, hidden * 2 + hidden.tanh(), atol=1e-12)


def test_handles_of_hooks_go_with_their_copies():
    target = nn.Sequential(nn.Linear(4, 4))
    target.handle = target[0].register_forward_hook(lambda module, args, output: output + 1)
    hypernet = Hypernet(target.double(), samples=3)
    hypernet(ROWS)
    hypernet.ensemble(2)
    module = copy.deepcopy(hypernet.materialize(hypernet.sample(1))[0])
    before = module(ROWS)
    module.handle.remove()
    assert torch.allclose(module(ROWS), before - 1)
    assert len(target[0]._forward_hooks) == 1


@pytest.mark.parametrize("make", [lambda lock: {"lock": lock}, lambda lock: [lock]])
def test_an_ensemble_shares_what_cannot_be_copied(make):
    target = nn.Sequential(nn.Linear(4, 4))
    target.held, outside = make(threading.Lock()), nn.Linear(4, 4)
    target.outside = [outside]
    hypernet = Hypernet(target.double(), samples=3)
    with pytest.warns(UserWarning, match="can't be copied, so that all networks share it"):
        hypernet(ROWS)
    ensemble = hypernet.ensemble(2)
    assert ensemble.target.outside[0] is outside
    assert torch.allclose(ensemble(ROWS), torch.stack([module(ROWS) for module in ensemble.materialize()]).mean(0))


def test_sets_and_dictionaries_keyed_by_modules():
    class Keyed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.scales = {self.layer: 2.0}
            self.some = {self.layer}
            self.weak = weakref.WeakKeyDictionary({self.layer: 3.0})

        def forward(self, x):
            (layer,) = self.some
            return layer(x) * self.scales[self.layer] * self.weak[self.layer]

    hypernet = Hypernet(Keyed().double(), samples=3, execution="loop")
    output = hypernet(ROWS)
    modules = hypernet.materialize(hypernet.population)
    expected = torch.cat([module.layer(part) * 6 for module, part in zip(modules, ROWS.split(2), strict=True)])
    assert torch.allclose(output, expected, atol=1e-12)


def test_what_checkpoints_will_run_again_keeps_its_weights():
    """A loss on activations that a hook collected: nothing refers to the population but the graph."""
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, on):
            super().__init__()
            self.layer, self.on = nn.Linear(4, 4), on

        def forward(self, x):
            return checkpoint(self.layer, x, use_reentrant=False) if self.on else self.layer(x)

    found = []
    for on in (False, True):
        torch.manual_seed(0)
        target, seen = nn.Sequential(Checkpointed(on), nn.Tanh()).double(), []
        target[1].register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        hypernet = Hypernet(target, samples=3, execution="loop")
        for _ in range(2):
            hypernet.zero_grad()
            seen.clear()
            hypernet(ROWS)
            hypernet(ROWS + 1)
            torch.cat(seen[:3]).square().sum().backward()
        found.append([parameter.grad for parameter in hypernet.generator.parameters()])
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(*found, strict=True))


def test_a_cache_that_holds_the_modules_does_not_see_other_networks():
    class Memoized(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        @functools.lru_cache  # noqa: B019
        def twice(self):
            return self.layer.weight * 2

        def forward(self, x):
            return x @ self.twice()

    hypernet = Hypernet(Memoized().double(), samples=3, execution="loop").eval()
    with torch.no_grad():
        for _ in range(3):
            population = hypernet.sample(3)
            expected = torch.stack([ROWS @ (2 * weight) for weight in population.weights["layer.weight"]])
            assert torch.allclose(hypernet.run(population, ROWS), expected, atol=1e-12)
            del population


def test_trials_leave_ordinary_parameters_and_generators_alone():
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.kept = nn.Linear(4, 4), nn.Linear(4, 4)
            self.source = torch.Generator().manual_seed(0)
            self.outside = [nn.BatchNorm1d(4)]

        def forward(self, x):
            return self.outside[0](self.kept(self.layer(x))) + torch.rand((), generator=self.source)

    found = []
    for execution in ("loop", "auto"):
        torch.manual_seed(0)
        target = Random().double()
        target.outside[0].double()
        hypernet = Hypernet(target, samples=3, execution=execution, exclude=["kept.*"])
        hypernet(ROWS).sum().backward()
        found.append((hypernet.target.kept.weight.grad, target.source.get_state(), target.outside[0].running_mean))
    if hypernet.executor.choices.made and {"loop"} == {one["backend"] for one in hypernet.executor.choices.made.values()}:
        assert torch.equal(found[0][1], found[1][1])
    assert torch.allclose(found[0][0], found[1][0], atol=1e-10)


def test_embeddings_with_padding_are_not_batched():
    target = nn.Sequential(nn.Embedding(5, 3, padding_idx=0)).double()
    with pytest.warns(UserWarning, match="Vmap cannot run Sequential.*forgets the padding of its embeddings"):
        Hypernet(target, samples=3, execution="vmap")(torch.randint(0, 5, (6, 4)))


def test_scripted_parts_do_not_shift_the_modes_of_others():
    scripted = torch.jit.script(nn.Linear(4, 4).double())
    target = nn.Sequential(scripted, nn.Linear(4, 4), nn.Dropout(0.5)).double()
    hypernet = Hypernet(target, samples=3, execution="loop", exclude=["0.*"])
    hypernet(ROWS)
    hypernet[2].eval()
    population = hypernet.sample(3)
    assert torch.equal(hypernet.run(population, ROWS), hypernet.run(population, ROWS))
    hypernet.eval().update_statistics([ROWS])
    assert scripted.training
