"""Targets that keep something from one call to the next, or write to what they are given."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict, deque

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint, odeint_adjoint

from tests.contract.agreement import What
from tests.contract.parts import Function, Own, numbers
from tests.target.test_statistics import LAYERS, target


class Cache:
    """A plain object that keeps tensors."""

    def __init__(self):
        self.last, self.seen = None, []


class Remembers(nn.Module):
    """Its outputs depend on what it saw before, in a plain object, a list, a dictionary and a number."""

    def __init__(self):
        super().__init__()
        self.layer, self.cache, self.history = nn.Linear(3, 4), Cache(), deque(maxlen=2)
        self.found, self.calls = OrderedDict(), 0

    def forward(self, x):
        y = self.layer(x)
        if self.cache.last is not None:
            y = y + self.cache.last.mean() + len(self.history) + self.found["y"].sum() + 0.1 * self.calls
        self.cache.last, self.found["y"] = x.detach() * 2, y.detach()
        self.cache.seen.append(x.shape)
        self.history.append(x)
        self.calls += 1
        return y


class SharedNorm(nn.Module):
    """A norm layer that is called twice, and has two names."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.block = nn.Sequential(self.second, self.norm, nn.Tanh())

    def forward(self, x):
        return self.block(self.norm(self.first(x)))


class Counter(nn.Module):
    """Counts its calls in buffers, in evaluation too, and reads them."""

    def __init__(self, training_only=False):
        super().__init__()
        self.layer, self.only = nn.Linear(3, 4), training_only
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training or not self.only:
            self.count += 1
        return self.layer(x) * (1 + 1 / (1 + self.count))


class Frozen(OrderedDict):
    """A dictionary that refuses to be changed."""

    def __init__(self, *args):
        super().__init__(*args)
        self.frozen = True

    def __setitem__(self, key, value):
        if getattr(self, "frozen", False):
            raise TypeError("frozen")
        super().__setitem__(key, value)

    def update(self, *_, **__):
        raise TypeError("frozen")


class Configured(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.config = nn.Linear(3, 4), Frozen({"scale": 2.0})
        self.vocabulary = {f"word {index}": index for index in range(1000)}

    def forward(self, x):
        return self.layer(x) * self.config["scale"]


class Held(nn.Module):
    """Reaches its weights through a dictionary, a list and an object."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.table, self.row, self.cache = {"one": self.one.weight}, [self.two.weight], Cache()
        self.cache.last = self.three.weight

    def forward(self, x):
        return ((x @ self.table["one"]).tanh() @ self.row[0]).tanh() @ self.cache.last


class Lambda(nn.Module):
    """Reaches a weight in a way that nobody can follow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.function = lambda x: self.layer(x)

    def forward(self, x):
        return self.function(x)


class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.pair = (self.layer.weight, 1)

    def forward(self, x):
        return x @ self.pair[0]


class Replaces(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        self.layer.weight = nn.Parameter(self.layer.weight.detach() * 2)
        return self.layer(x)


class Clamped(nn.Module):
    """Writes to its weights."""

    def __init__(self, through_data=False):
        super().__init__()
        self.layer, self.through_data = nn.Linear(3, 4), through_data

    def forward(self, x):
        if self.through_data:
            self.layer.weight.data.clamp_(-0.1, 0.1)
        else:
            with torch.no_grad():
                self.layer.weight.clamp_(-0.1, 0.1)
        return self.layer(x)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.inner, self.reentrant = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), reentrant

    def forward(self, x):
        return checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant)


class Flow(nn.Module):
    def __init__(self, solver):
        super().__init__()
        self.field, self.solver = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), solver
        self.field.forward_time = None

    def forward(self, x):
        time = torch.linspace(0, 1, 3).to(x)
        return self.solver(Velocity(self.field), x, time, method="euler", options={"step_size": 0.25})[-1]


class Velocity(nn.Module):
    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, time, x):
        return self.field(x) * (1 + time)


class SavesItself(nn.Linear):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()
        destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()


class Cached(nn.Module):
    """Computes something of its weights once and keeps it as an attribute."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    @functools.cached_property
    def square(self):
        return self.layer.weight @ self.layer.weight

    def forward(self, x):
        return x @ self.square + self.layer(x)


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.lock = nn.Linear(3, 3), threading.Lock()

    def forward(self, x):
        with self.lock:
            return self.layer(x)


class HalfFrozen(nn.Module):
    """A frozen layer, and a norm layer that stays in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.stem.requires_grad_(False)
        self.norm.running_mean += torch.arange(4)
        self.norm.running_var *= 2

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.head(self.norm(self.stem(x)).relu())


class Hooked(nn.Module):
    """Hooks that change inputs, outputs and gradients, one of them a method."""

    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(3, 3), nn.Linear(3, 4)
        self.layer.register_forward_pre_hook(self.before)
        self.layer.register_forward_hook(doubled)
        self.other.register_forward_pre_hook(named, with_kwargs=True)
        self.other.register_full_backward_hook(halved)

    def before(self, module, args):
        return (args[0] @ self.other.weight.T @ self.other.weight,)

    def forward(self, x):
        return self.other(self.layer(x))


def doubled(module, args, output):
    return output * 2


def named(module, args, kwargs):
    return (args[0].tanh(),), kwargs


def halved(module, given, taken):
    return tuple(one / 2 for one in given)


class Outside(nn.Module):
    """A module in a plain list, which is no part of the target's state."""

    def __init__(self):
        super().__init__()
        self.layer, self.teachers = nn.Linear(3, 4), [nn.Linear(3, 4).double().requires_grad_(False)]

    def forward(self, x):
        return self.layer(x) - self.teachers[0](x)


def in_place(net, x):
    x /= 2
    x.add_(1)
    return net.layer(x).mul_(2).relu_()


def old_norm(wrap, **options):
    return lambda: nn.Sequential(wrap(nn.Linear(3, 4), **options), nn.ReLU(), nn.Linear(4, 2))


CARRIED = {"tells": ("are no averages over batches",)}
SHARED = "can't be copied, so that all networks share it"
VECTORS = numbers(3)
KEEPING = {
    "shared_norm": What(SharedNorm, VECTORS),
    "remembers": What(Remembers, VECTORS),
    "counter_of_calls": What(Counter, VECTORS, **CARRIED),
    "counter_in_training": What(lambda: Counter(True), VECTORS, **CARRIED),
    "ema_norm": What(lambda: target("running_norm"), VECTORS, averages={"1.mean": 0.9, "1.square": 0.9}),
    **{f"ema_{name}": What(lambda name=name: target(name), VECTORS, **CARRIED) for name in LAYERS if name != "running_norm"},
    "frozen_dictionary": What(Configured, VECTORS, tells=(SHARED,)),
    "weights_in_containers": What(Held, VECTORS),
    "weights_behind_a_function": What(
        Lambda, VECTORS, refuses={"training": "layer.weight are read other than from the module that has them"}
    ),
    "weights_in_a_tuple": What(Tuple, VECTORS, refuses={"training": "or from a tuple"}),
    "a_replaced_parameter": What(Replaces, VECTORS, refuses={"training": "replace"}),
    "clamped_weights": What(Clamped, VECTORS),
    "clamped_data": What(lambda: Clamped(True), VECTORS),
    "renormed_embedding": What(
        lambda: nn.Sequential(nn.Embedding(9, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 2)),
        lambda: (torch.randint(0, 9, (12, 3)),),
    ),
    "checkpointing": What(lambda: Checkpointed(False), VECTORS),
    "checkpointing_reentrant": What(lambda: Checkpointed(True), VECTORS),
    "solver": What(lambda: Flow(odeint), VECTORS),
    "solver_adjoint": What(lambda: Flow(odeint_adjoint), VECTORS),
    "saves_itself": What(lambda: nn.Sequential(SavesItself(3, 4), nn.Tanh(), nn.Linear(4, 2)), VECTORS),
    "cached_property": What(Cached, VECTORS),
    "a_lock": What(Locked, VECTORS, tells=(SHARED,)),
    "half_frozen": What(HalfFrozen, VECTORS),
    "hooks": What(Hooked, VECTORS),
    "a_module_in_a_list": What(Outside, VECTORS),
    "inputs_in_place": What(lambda: Function(in_place, layer=nn.Linear(3, 4)), VECTORS),
    "old_weight_norm": What(old_norm(nn.utils.weight_norm), VECTORS),
    "old_spectral_norm": What(old_norm(nn.utils.spectral_norm), VECTORS, **CARRIED),
    "own_copy": What(lambda: Own(), VECTORS),
}
