"""What stands in for a target's networks: what each has for itself, what all share, and what is refused."""

import copy
import gc
import pickle
import threading
import weakref
from collections import OrderedDict

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_hypernet import Hypernet
from lightning_hypernet.target.habits import Watch
from lightning_hypernet.target.networks import ROUND
from tests.targets import KINDS


def double(target, **options):
    return Hypernet(target.double(), **{"samples": 3, "execution": "loop", **options})


def rows(n=6, width=4):
    return torch.randn(n, width, dtype=torch.float64)


def gradients(hypernet):
    return {name: parameter.grad.clone() for name, parameter in hypernet.generator.named_parameters()}


def same_gradients(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=1e-9, atol=1e-12), name
    assert any(value.abs().sum() > 0 for value in one.values())


# Threads


@pytest.mark.parametrize("execution", ["loop", "vmap"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("kind", ["ensemble", "hypernet"])
def test_four_threads_and_four_hundred_calls(kind, gradient, execution):
    torch.manual_seed(0)
    hypernet = double(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), execution=execution)
    hypernet.update_statistics([rows(16)])
    module = (hypernet.ensemble(5) if kind == "ensemble" else hypernet).eval()
    inputs = [rows().requires_grad_(gradient) for _ in range(4)]
    expected = [module(x).detach() for x in inputs]
    slopes = [torch.autograd.grad(module(x).square().sum(), x)[0] for x in inputs] if gradient else []
    wrong, errors = [], []

    def work(index):
        try:
            for _ in range(100):
                x = inputs[index].detach().clone().requires_grad_(gradient)
                with torch.set_grad_enabled(gradient):
                    output = module(x)
                if not torch.allclose(output, expected[index], atol=1e-12):
                    wrong.append(index)
                if gradient and not torch.allclose(torch.autograd.grad(output.square().sum(), x)[0], slopes[index], atol=1e-10):
                    wrong.append(index)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, errors) == ([], [])


def test_calling_an_ensemble_writes_nothing():
    hypernet = double(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    hypernet.update_statistics([rows(16)])
    ensemble = hypernet.ensemble(4)
    with torch.no_grad():
        ensemble(rows())
        held = ensemble.networks.hold(4)
        before = [[(dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in one.module.modules()] for one in held]
        ensemble(rows())
    assert ensemble.networks.hold(4) == held
    for one, modules in zip(held, before, strict=True):
        for module, (attributes, parameters, buffers) in zip(one.module.modules(), modules, strict=True):
            assert all(vars(module)[name] is value for name, value in attributes.items())
            assert all(module._parameters[name] is value for name, value in parameters.items())
            assert all(module._buffers[name] is value for name, value in buffers.items())


# State


class Shared(nn.Module):
    """A norm layer that is reachable under two names."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        self.body = nn.Sequential(nn.Linear(4, 4), self.bn)

    def forward(self, x):
        return self.body(x) * 2


@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_a_norm_layer_under_two_names(execution):
    hypernet = double(Shared(), execution=execution)
    x = rows(16) * 3 + 5
    for _ in range(2):
        hypernet(x)
    hypernet.update_statistics()
    hypernet.eval()
    population = hypernet.member_population()
    outputs = hypernet.run(population, x)
    for output, module in zip(outputs, hypernet.materialize(population), strict=True):
        assert torch.allclose(output, module(x), atol=1e-12)
        assert module.bn.running_mean.abs().min() > 0


class Cache:
    def __init__(self):
        self.value = None
        self.calls = 0


class Caching(nn.Module):
    """Keeps what it computes from its weights in an object of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.cache = Cache()
        self.table = {"nested": [Cache()]}

    def forward(self, x):
        if self.cache.value is None:
            self.cache.value = self.layer.weight * 2
        self.cache.calls += 1
        self.table["nested"][0].value = x
        self.table["nested"].append(x)
        return x @ self.cache.value, torch.tensor(float(self.cache.calls)), torch.tensor(float(len(self.table["nested"])))


def test_state_in_plain_objects_is_each_networks_own_and_ends_with_the_population():
    hypernet = double(Caching())
    x = rows()
    for _ in range(2):
        with hypernet.step():
            for call in (1.0, 2.0):
                outputs, calls, length = hypernet(x)
                assert (calls, length) == (call, call + 1)
                weights = hypernet.population.weights["layer.weight"]
                expected = torch.cat([part @ (2 * weight) for part, weight in zip(x.split(2), weights, strict=True)])
                assert torch.allclose(outputs, expected)
    assert (hypernet.target.cache.value, hypernet.target.cache.calls) == (None, 0)
    assert [type(one) for one in hypernet.target.table["nested"]] == [Cache]


def test_what_a_target_keeps_lasts_as_long_as_its_population():
    hypernet = double(Caching(), members=2).eval()
    with torch.no_grad():
        assert [hypernet(rows())[1].item() for _ in range(3)] == [1.0, 2.0, 3.0]
        next(hypernet.generator.parameters()).add_(0.1)
        assert hypernet(rows())[1].item() == 1.0


class Frozen(OrderedDict):
    """A dictionary that can't be changed by its own methods."""

    def update(self, *args, **kwargs):
        if getattr(self, "ready", False):
            raise RuntimeError("it is frozen")
        super().update(*args, **kwargs)

    def clear(self):
        raise RuntimeError("it is frozen")


class Config(dict):
    update = None


class Configured(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.config = Frozen(width=4)
        self.config.ready = True
        self.other = Config(width=4)

    def forward(self, x):
        self.other["seen"] = self.other.get("seen", 0) + 1
        return self.layer(x) * self.config["width"] * self.other["seen"]


def test_containers_that_refuse_to_be_changed_are_left_alone():
    hypernet = double(Configured())
    x = rows()
    for _ in range(2):
        weights, output = None, hypernet(x)
        weights = hypernet.population.weights
        parts = zip(x.split(2), weights["layer.weight"], weights["layer.bias"], strict=True)
        assert torch.allclose(output, torch.cat([F.linear(part, weight, bias) * 4 for part, weight, bias in parts]))
    assert dict(hypernet.target.config) == {"width": 4}
    assert dict(hypernet.target.other) == {"width": 4}


class Counted(dict):
    """A dictionary that counts how often it is read through."""

    reads = 0

    def __iter__(self):
        Counted.reads += 1
        return super().__iter__()

    def items(self):
        Counted.reads += 1
        return super().items()

    def values(self):
        Counted.reads += 1
        return super().values()

    def copy(self):
        Counted.reads += 1
        return super().copy()


@pytest.mark.slow
def test_a_large_vocabulary_is_not_gone_through_each_step():
    target = nn.Linear(4, 2)
    target.vocabulary = Counted({f"word {index}": index for index in range(100_000)})
    hypernet = double(target)
    for _ in range(2):
        hypernet(rows()).sum().backward()
        gc.collect()
    reads = Counted.reads
    for _ in range(3):
        hypernet(rows()).sum().backward()
        gc.collect()
    assert Counted.reads == reads


def test_after_a_step_no_weight_is_alive():
    target = Caching()
    hypernet = double(target)
    with hypernet.step():
        outputs = hypernet(rows())[0]
        alive = [weakref.ref(value) for value in hypernet.population.weights.values()]
        installed = [one.module.layer.weight for one in hypernet.population.networks.hold(3)]
        alive += [weakref.ref(one) for one in installed]
        alive.append(weakref.ref(hypernet.population.networks))
        del installed
    assert all(one() is not None for one in alive)
    loss = outputs.square().sum()
    loss.backward()
    del outputs, loss
    assert [one() for one in alive] == [None] * len(alive)
    assert len(hypernet.executor.replicas._idle) == 3
    assert all(one.module.layer.weight is None for one in hypernet.executor.replicas._idle)


# What is shared


class Recorder:
    def __init__(self):
        self.seen = []
        self.lock = threading.Lock()

    def note(self, module, args, output):
        self.seen.append(output.detach())


def test_hooks_are_shared_with_what_they_belong_to():
    target, early, late = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), Recorder(), Recorder()
    handle = target[0].register_forward_hook(early.note)
    hypernet = double(target)
    hypernet(rows())
    assert len(early.seen) == 3
    other = hypernet[0].register_forward_hook(late.note)
    hypernet(rows())
    assert (len(early.seen), len(late.seen)) == (6, 3)
    other.remove()
    handle.remove()  # of the module that was wrapped, of which the Hypernet has a copy
    hypernet(rows())
    assert (len(early.seen), len(late.seen)) == (9, 3)
    target(rows())
    assert (len(early.seen), len(late.seen)) == (9, 3)


class Hooked(nn.Module):
    """Its hook is a method of its own, which reads its weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.layer.register_forward_hook(self.scaled)

    def scaled(self, module, args, output):
        return output * self.scale

    def forward(self, x):
        return self.layer(x)


def test_a_hook_that_is_a_method_of_the_target_reads_each_networks_weights():
    hypernet = double(Hooked())
    x = rows()
    output = hypernet(x)
    for part, ours, module in zip(x.split(2), output.split(2), hypernet.materialize(hypernet.population), strict=True):
        assert torch.allclose(ours, module(part), atol=1e-12)
        assert torch.allclose(ours, module.layer.forward(part) * module.scale, atol=1e-12)


class Outside(nn.Module):
    def __init__(self, other):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("mask", torch.ones(2))
        self.names = ("a", "b")
        self.others = [other]

    def forward(self, x):
        return self.others[0](self.layer(x)) * self.mask


def test_modules_outside_of_the_target_and_unchanged_buffers_are_shared():
    other = nn.Linear(2, 2).double()
    hypernet = double(Outside(other))
    hypernet(rows())
    hypernet(rows())
    for one in hypernet.population.networks.hold(3):
        assert one.module.others[0] is other
        assert one.module.mask is hypernet.target.mask
        assert one.module.names is hypernet.target.names
    hypernet(rows()).sum().backward()
    assert other.weight.grad.abs().sum() > 0


def test_a_trainer_that_the_target_refers_to_is_shared():
    import pytorch_lightning as pl

    target = nn.Linear(4, 2)
    target.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    target.module = [pl.LightningModule()]
    hypernet = double(target)
    hypernet(rows())
    for one in hypernet.population.networks.hold(3):
        assert one.module.trainer is target.trainer
        assert one.module.module[0] is target.module[0]


def test_what_cannot_be_copied_is_shared_and_named_once(tmp_path):
    target = nn.Sequential(nn.Linear(4, 2))
    target[0].lock = threading.Lock()
    with open(tmp_path / "log", "w") as target.file:
        hypernet = double(target)
        with pytest.warns(UserWarning, match=r"file \(TextIOWrapper\), 0.lock \(lock\) of Sequential can't be copied"):
            hypernet(rows())
        hypernet(rows())
        hypernet(rows())
    assert all(one.module[0].lock is target[0].lock for one in hypernet.population.networks.hold(3))


# What reaches all


class Switched(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.options = Cache()
        self.options.value = 1.0
        self._scale = 1.0

    @property
    def scale(self):
        return self._scale

    @scale.setter
    def scale(self, value):
        self._scale = value

    def forward(self, x):
        return self.drop(self.layer(x) * 0 + self.options.value) * self.scale


def test_modes_attributes_and_objects_reach_all_replicas():
    hypernet = double(Switched())
    hypernet.drop.eval()
    with hypernet.step():
        assert torch.equal(hypernet(rows()), torch.ones(6, 4).double())
        hypernet.drop.train()
        hypernet.drop.p = 1.0
        assert torch.equal(hypernet(rows()), torch.zeros(6, 4).double())
        hypernet.drop.eval()
        hypernet.scale = 3.0
        assert torch.equal(hypernet(rows()), 3 * torch.ones(6, 4).double())
    assert torch.equal(hypernet(rows()), 3 * torch.ones(6, 4).double())
    hypernet.target.options.value = 2.0
    hypernet.target.drop.p = 0.0
    hypernet.train()
    assert torch.equal(hypernet(rows()), 6 * torch.ones(6, 4).double())


# What reaches a generated parameter another way


class Lambda(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.fn = lambda x: self.inner(x)

    def forward(self, x):
        return self.head(self.fn(x))


def patched():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].forward = lambda x: F.linear(x, model[0].weight)
    return model


def hooked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].register_forward_hook(lambda module, args, output: output * model[0].weight.mean())
    return model


@pytest.mark.parametrize("execution", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("make", [Lambda, patched, hooked])
def test_weights_that_are_read_through_a_function_are_an_error(make, execution):
    with pytest.raises(RuntimeError, match=r"(inner|0)\.weight.* read other than from the module.*exclude="):
        double(make(), execution=execution)(rows())


def test_weights_in_dictionaries_lists_and_objects_are_each_networks_own():
    class Tabled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.table = {"w": self.layer.weight, "deep": [{"b": self.layer.bias}]}
            self.object = Cache()
            self.object.value = self.layer.weight

        def forward(self, x):
            return F.linear(x, self.table["w"] * self.object.value, self.table["deep"][0]["b"])

    target = Tabled()
    hypernet = double(target)
    x = rows()
    output = hypernet(x)
    weights = hypernet.population.weights
    parts = zip(x.split(2), weights["layer.weight"], weights["layer.bias"], strict=True)
    assert torch.allclose(output, torch.cat([F.linear(part, weight * weight, bias) for part, weight, bias in parts]))
    module = hypernet.materialize(hypernet.population)[0]
    assert module.table["w"] is module.object.value is module.layer.weight
    assert module.table["deep"][0]["b"] is module.layer.bias


def test_weights_in_a_tuple_are_an_error_when_they_are_used():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.pair = (self.layer.weight, self.layer.bias)

        def forward(self, x, used=True):
            return F.linear(x, *self.pair) if used else self.layer(x)

    hypernet = double(Pair())
    assert hypernet(rows(), used=False).shape == (6, 4)
    with pytest.raises(RuntimeError, match=r"layer.weight, layer.bias are read other than from the module"):
        hypernet(rows())


def test_tensors_that_share_a_weights_memory_are_refused():
    target = nn.Sequential(nn.Linear(4, 4))
    target.view = target[0].weight.detach()[:2]
    with pytest.raises(ValueError, match=r"view \(of 0.weight\) in Sequential share the memory of generated parameters.*clone"):
        Hypernet(target)
    assert Hypernet(target, exclude=["0.weight"]).banks.weights == 4


# What is refused, what works


def test_a_copy_method_that_makes_parameters_anew_changes_nothing():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.table = nn.Parameter(torch.randn(4), requires_grad=False)

        def __deepcopy__(self, memo):
            return type(self)().double()

        def forward(self, x):
            return self.layer(x) * self.table

    target = Own()
    hypernet = double(target)
    assert torch.equal(hypernet.target.table, target.table)
    hypernet(rows())
    assert all(one.module.table is hypernet.target.table for one in hypernet.population.networks.hold(3))
    assert torch.equal(hypernet.materialize(hypernet.population)[0].table, target.table)
    assert [name for name, _ in copy.deepcopy(hypernet).target.named_parameters()] == ["table"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_old_weight_norm():
    target = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.utils.spectral_norm(nn.Linear(4, 2))).eval()
    hypernet = double(target).train()
    hypernet[2].eval()
    x = rows()
    output = hypernet(x)
    weights = hypernet.population.weights
    assert set(weights) == {"0.weight_g", "0.weight_v", "0.bias", "2.weight_orig", "2.bias"}
    modules = hypernet.materialize(hypernet.population)
    for part, ours, module in zip(x.split(2), output.split(2), modules, strict=True):
        assert torch.allclose(ours, module(part), atol=1e-12)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in hypernet.generator.parameters())


def test_tensors_that_were_computed_are_refused():
    target = nn.Sequential(nn.Linear(4, 4))
    target[0].computed = target[0].weight * 2
    with pytest.raises(ValueError, match=r"^0.computed is a tensor that was computed from others with gradients"):
        Hypernet(target)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_targets_are_refused_and_scripted_parts_run():
    traced = torch.jit.trace(nn.Linear(4, 2).double(), rows())
    with pytest.raises(ValueError, match=r"weight, bias belong to modules that were scripted or traced"):
        Hypernet(traced)
    target = nn.Sequential(torch.jit.script(nn.Linear(4, 4).double()), nn.Linear(4, 2).double())
    with pytest.raises(ValueError, match=r"0.weight, 0.bias belong to modules that were scripted.*exclude="):
        Hypernet(target)
    x = rows()
    output = (hypernet := double(target, exclude=["0.*"]))(x)
    modules = hypernet.materialize(hypernet.population)
    parts = [module(part) for module, part in zip(modules, x.split(2), strict=True)]
    assert torch.allclose(output, torch.cat(parts), atol=1e-12)


class SavesItself(nn.Linear):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "weight"] = self.weight.detach()
        destination[prefix + "bias"] = self.bias.detach()


def test_modules_that_save_their_weights_themselves():
    hypernet = double(nn.Sequential(SavesItself(4, 3), nn.Linear(3, 2)))
    state = hypernet.state_dict()
    x = rows()
    other = double(nn.Sequential(SavesItself(4, 3), nn.Linear(3, 2)))
    other.load_state_dict(state)
    assert torch.equal(other.eval()(x), hypernet.eval()(x))
    module = hypernet.materialize(hypernet.sample(1))[0]
    assert set(module.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert "_save_to_state_dict" not in vars(module[0])


# Writing targets


class Clamped(nn.Module):
    def __init__(self, data):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.data = data

    def forward(self, x):
        if self.data:
            self.layer.weight.data.clamp_(-0.05, 0.05)
        else:
            with torch.no_grad():
                self.layer.weight.clamp_(-0.05, 0.05)
        return self.layer(x)


class Renormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4, max_norm=0.5)

    def forward(self, x):
        return self.table(x.abs().long().clamp(max=9))


@pytest.mark.parametrize("execution", ["loop", "vmap"])
@pytest.mark.parametrize("make", [lambda: Clamped(True), lambda: Clamped(False), Renormed])
@pytest.mark.filterwarnings("ignore:Vmap cannot run")
def test_targets_that_write_their_weights(make, execution):
    hypernet = double(make(), execution=execution)
    x = rows() * 5
    for _ in range(3):
        with hypernet.step():
            output = hypernet(x)
            population = hypernet.population
            before = {name: value.clone() for name, value in population.weights.items()}
            modules = hypernet.materialize(population)
            for part, ours, module in zip(x.split(2), output.split(2), modules, strict=True):
                assert torch.allclose(ours, module(part), atol=1e-12)
            assert all(torch.equal(value, before[name]) for name, value in population.weights.items())
        output.sum().backward()
    ensemble = hypernet.ensemble(3)
    kept = {name: value.clone() for name, value in ensemble.weights.tensors().items()}
    with torch.no_grad():
        first = ensemble(x)
        assert torch.equal(ensemble(x), first)
    assert all(torch.equal(value, kept[name]) for name, value in ensemble.weights.tensors().items())


def test_a_parameter_that_is_replaced_is_an_error():
    class Replacing(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4))

        def forward(self, x):
            self.w = nn.Parameter(self.w.detach().clamp(-0.1, 0.1))
            return x * self.w

    with pytest.raises(RuntimeError, match=r"Replacing replaces the generated parameters w by new ones .*exclude=\['w'\]"):
        double(Replacing())(rows())


@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_inputs_that_are_changed_in_place_are_given_unchanged_to_the_next(execution):
    class Halving(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, mask):
            x /= 2
            mask.data.mul_(0.5)
            return self.layer(x) * mask

    hypernet = double(Halving(), execution=execution)
    x, mask = rows(), torch.ones(4).double()
    expected = x.clone()
    for training in (True, False, True, False):
        hypernet.train(training)
        with torch.set_grad_enabled(training):
            output = hypernet(x, mask)
        population = hypernet.population if training else hypernet.member_population()
        modules = hypernet.materialize(population)
        if training:
            parts = zip(modules, x.split(2), strict=True)
            plain = torch.cat([module(part.clone(), mask.clone()) for module, part in parts])
        else:
            plain = torch.stack([module(x.clone(), mask.clone()) for module in modules]).mean(0)
        assert torch.allclose(output, plain, atol=1e-12)
        assert torch.equal(x, expected)
        assert torch.equal(mask, torch.ones(4).double())


# Graphs


class Checkpointed(nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.0)) for _ in range(3))
        self.reentrant = reentrant

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_with_a_second_population_before_the_backward_pass(reentrant, training):
    found = []
    for mode in (None, reentrant):
        torch.manual_seed(0)
        hypernet = double(Checkpointed(mode), members=3).train(training)
        x = rows()
        x.requires_grad_(True)
        for _ in range(2):
            hypernet.zero_grad()
            outputs = hypernet(x)
            with torch.no_grad():
                hypernet.run(hypernet.sample(3), rows())
            hypernet(x + 1)
            outputs.square().sum().backward()
        found.append(gradients(hypernet))
    same_gradients(*found)


def test_reentrant_checkpoints_elsewhere_stay_what_they_are():
    original = torch.utils.checkpoint.CheckpointFunction
    double(Checkpointed(True))(rows()).sum().backward()
    assert torch.utils.checkpoint.CheckpointFunction is original


@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_two_populations_and_one_backward_pass(execution):
    torch.manual_seed(0)
    hypernet = double(KINDS["mlp"].make(), execution=execution)
    x = rows(6, 6)
    losses, populations = [], []
    for _ in range(2):
        losses.append(hypernet(x).square().sum())
        populations.append(hypernet.population)
    sum(losses).backward()
    found = gradients(hypernet)
    hypernet.zero_grad()
    total = 0.0
    for population in populations:
        again = hypernet.populate(population.latents)
        for index, part in enumerate(x.split(2)):
            row = {name: value[index] for name, value in again.weights.items()}
            total = total + torch.func.functional_call(KINDS["mlp"].make().double(), row, (part,)).square().sum()
    total.backward()
    same_gradients(found, gradients(hypernet))


@pytest.mark.parametrize("adjoint", [False, True])
def test_solvers_of_differential_equations(adjoint):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

        def forward(self, t, x):
            return self.net(x)

    class Flow(nn.Module):
        def __init__(self, adjoint):
            super().__init__()
            self.field, self.adjoint = Field(), adjoint

        def forward(self, x):
            solve = torchdiffeq.odeint_adjoint if self.adjoint else torchdiffeq.odeint
            return solve(self.field, x, torch.linspace(0, 1, 5, dtype=x.dtype), rtol=1e-10, atol=1e-10, method="dopri5")[-1]

    torch.manual_seed(0)
    hypernet = double(Flow(adjoint))
    x = rows()
    with hypernet.step():
        output = hypernet(x)
        population = hypernet.population
        hypernet.run(hypernet.sample(3), x)
    output.square().sum().backward()
    found = gradients(hypernet)
    hypernet.zero_grad()
    again = hypernet.populate(population.latents)
    plain = Flow(False).double()
    parts = [
        torch.func.functional_call(plain, {name: value[index] for name, value in again.weights.items()}, (part,))
        for index, part in enumerate(x.split(2))
    ]
    torch.cat(parts).square().sum().backward()
    expected = gradients(hypernet)
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-6, atol=1e-8), name


# How many, when


def test_replicas_are_made_when_they_are_needed_and_as_many_as_run_at_once():
    hypernet = Hypernet(nn.Linear(4, 2), execution="loop")
    replicas = hypernet.executor.replicas
    assert len(replicas._all) == 0
    ensemble = hypernet.ensemble(3 * ROUND + 5)
    x = torch.randn(2, 4)
    with torch.no_grad():
        outputs = ensemble.members(x)
    assert outputs.shape == (3 * ROUND + 5, 2, 2)
    assert len(ensemble.executor.replicas._all) <= ROUND
    assert len(replicas._all) == 0
    for output, module in zip(outputs, ensemble.materialize(), strict=True):
        assert torch.equal(output, module(x))


def test_replicas_are_neither_copied_nor_pickled():
    hypernet = Hypernet(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), execution="loop")
    x = torch.randn(8, 4)
    hypernet(x)
    assert len(hypernet.executor.replicas._all) > 0
    for other in (copy.deepcopy(hypernet), pickle.loads(pickle.dumps(hypernet))):
        assert len(other.executor.replicas._all) == 0
        assert other.executor.replicas.template is other.target
        with torch.no_grad():
            torch.manual_seed(0)
            assert other(x).shape == (8, 2)


def test_the_target_is_untouched_by_a_run_that_raises():
    class Raising(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.count = 0

        def forward(self, x, fail=False):
            self.count += 1
            if fail:
                raise RuntimeError("stopped")
            return self.layer(x) * self.count

    hypernet = double(Raising())
    x = rows()
    with pytest.raises(RuntimeError, match="stopped"):
        hypernet(x, fail=True)
    assert hypernet.target.count == 0
    assert torch.equal(hypernet(x), hypernet.executor.joined(hypernet.population.networks.some(slice(None)), _dealt(x, 3)))


def _dealt(x, parts):
    from lightning_hypernet.target.arguments import Arguments

    return Arguments((x,), {}, parts)


@pytest.mark.filterwarnings("ignore:For backward hooks to be called", "ignore:Full backward hook is firing")
def test_backward_hooks_of_all_modules_are_called():
    seen = []
    handle = torch.nn.modules.module.register_module_full_backward_hook(lambda module, *_: seen.append(type(module)))
    try:
        with pytest.warns(UserWarning, match="vmap does not call its backward hooks"):
            output = double(nn.Linear(4, 2), execution="vmap")(rows().requires_grad_())
        output.sum().backward()
    finally:
        handle.remove()
    assert nn.Linear in seen


def test_a_parameter_that_goes_while_it_is_watched_leaves_its_memory_to_nobody():
    """A tensor that came to lie there would be taken for it, and the target refused."""
    own = torch.randn(3)
    reference = weakref.ref(own)
    watch = Watch({"weight": reference})
    del own
    assert reference() is not None
    del watch
    assert reference() is None
