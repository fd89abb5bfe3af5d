"""Replicas: light copies of the target, each of which holds one network's weights and state."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.target.copies import Copies
from lightning_hypernet.target.habits import Habits
from lightning_hypernet.target.places import Place
from lightning_hypernet.target.state import State

Tensors = Mapping[str, Tensor]
_MADE = ("_idle", "_all", "_parts", "_state", "_tracked", "_versions")


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to, as far as that is counted."""
    return 0 if tensor.is_inference() else tensor._version


class Replica:
    """A light copy of the target: one network's weights and state, and all else shared with the target.

    Args:
        template: The target without its generated parameters.
        places: Where it keeps them.
        heard: Whether hooks see its runs; those that compute its weights always do.
    """

    def __init__(self, template: nn.Module, places: Sequence[Place], heard: bool = True) -> None:
        copies = Copies(template, "replica")
        self.module = copies.module
        if not heard:
            copies.mute()
        self.shared = copies.shared
        self._copies = copies
        self.modules = [twin for _, twin in copies.pairs]
        self._places = [(*place.holder(self.module), place.parameter) for place in places]
        self._empty = [(*place.holder(self.module), place.holder(template)) for place in places]
        paths = {id(module): path for path, module in self.module.named_modules()}
        twins = {id(original): twin for original, twin in copies.tensors}
        self._tracked: list[tuple[str, dict[str, Any], str, dict[str, Any], Tensor]] = [
            (f"{paths[id(twin)]}.{key}".lstrip("."), twin._buffers, key, module._buffers, twins[id(value)])
            for module, twin in copies.pairs
            for key, value in module._buffers.items()
            if value is not None and id(value) in twins
        ]
        held = {id(own) for *_, own in self._tracked}
        self._tensors: list[list[Any]] = [
            [own, original, own._version] for original, own in copies.tensors if id(own) not in held
        ]
        self._ordinary: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
            (twin._parameters, key, module._parameters)
            for module, twin in copies.pairs
            for key, value in module._parameters.items()
            if value is not None
        ]
        self._modes = [module.training for module in self.modules]
        self._state = State(self.module)

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of a module of the target here too."""
        twin = self._copies.of(module, "")
        if name in module._buffers:
            twin._buffers[name] = value
            return
        before = dict(vars(twin))
        setattr(twin, name, self._copies.later(value, name))
        for changed in [key for key, one in vars(twin).items() if before.get(key, self) is not one]:
            self._state.note(twin, changed)

    def begin(self, changing: frozenset[str] | None) -> None:
        """Start as the target is now.

        Args:
            changing: Names of the buffers that runs change, of which the replica takes copies; None: of all.
        """
        for holder, key, origin in self._ordinary:
            holder[key] = origin[key]
        if not self._tracked:
            return
        with torch.inference_mode(False), torch.no_grad():
            for name, holder, key, origin, own in self._tracked:
                value = origin[key]
                if value is None or (changing is not None and name not in changing):
                    holder[key] = value
                elif own.shape == value.shape and own.dtype == value.dtype and own.device == value.device:
                    holder[key] = own.copy_(value)
                else:
                    holder[key] = value.clone()

    def follow(self, modes: list[bool]) -> None:
        """Take over the modes of the target's modules where they have changed."""
        if modes != self._modes:
            for index, (mode, before) in enumerate(zip(modes, self._modes, strict=True)):
                if mode != before:
                    self._state.set_mode(index, mode)
            self._modes = modes

    def own_buffers(self) -> dict[str, Tensor]:
        """Take a copy of every buffer that is still the target's; gives all, by name."""
        clones: dict[int, Tensor] = {}
        with torch.inference_mode(False), torch.no_grad():
            for _, holder, key, origin, _ in self._tracked:
                value = origin[key]
                if value is not None and holder[key] is value:
                    holder[key] = clones.setdefault(id(value), value.clone())
        return self.buffers()

    def install(self, weights: Tensors, buffers: Tensors) -> None:
        """Put a network in.

        Args:
            weights: Every generated parameter, without a leading axis; empty: those that are there stay.
            buffers: Buffers of its own, by name.
        """
        for holder, key, name in self._places if weights else ():
            holder[key] = weights[name]
        for name, holder, key, _, _ in self._tracked:
            if name in buffers:
                holder[key] = buffers[name]

    def replaced(self, weights: Tensors) -> list[str]:
        """The generated parameters in whose places something else stands now."""
        return [name for holder, key, name in self._places if holder[key] is not weights[name]]

    def buffers(self) -> dict[str, Tensor]:
        """The buffers, by name, as they are now."""
        return {name: holder[key] for name, holder, key, _, _ in self._tracked if holder[key] is not None}

    def end(self) -> None:
        """Take the network out, and put all state back."""
        for holder, key, (template, where) in self._empty:
            holder[key] = template[where]
        self._state.restore()
        if not self._tensors:
            return
        with torch.inference_mode(False), torch.no_grad():
            for entry in self._tensors:
                own, original, version = entry
                if own._version != version:
                    entry[2] = own.copy_(original)._version


class Replicas:
    """The replicas of one target: made when they are needed, kept for the next who needs some.

    A replica belongs to whoever took it until it is given back.

    Args:
        template: The target without its generated parameters.
        places: Where it keeps them.
    """

    def __init__(self, template: nn.Module, places: Sequence[Place]) -> None:
        self.template = template
        self.places = list(places)
        self.heard = True
        self.habits = Habits()
        self._renew()

    def _renew(self) -> None:
        self._idle: deque[Replica] = deque()
        self._all: weakref.WeakSet[Replica] = weakref.WeakSet()
        self._parts = [one for one in self.template.modules() if not isinstance(one, torch.jit.ScriptModule)]
        self._state: State | None = None
        self._tracked = [
            (f"{path}.{key}".lstrip("."), module._buffers, key)
            for path, module in self.template.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)
            for key in module._buffers
        ]
        self._versions: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: no replicas."""
        return {name: value for name, value in vars(self).items() if name not in _MADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._renew()

    def clear(self) -> None:
        """Forget all replicas: the target is another one now."""
        self._renew()

    def refresh(self) -> bool:
        """Forget all replicas if the plain state of the target changed since they were made; whether it did."""
        stale = self._state is not None and self._state.changed()
        if stale:
            self._renew()
        return stale

    @property
    def modes(self) -> list[bool]:
        """The modes of the target's modules."""
        return [module.training for module in self._parts]

    def run_of(self, method: str) -> tuple[Any, ...]:
        """What tells one kind of run from another: the method, and the modes of the modules."""
        return (method, *self.modes)

    def check_shared(self) -> None:
        """See that no buffer changed that all networks share, since the first run had left it as it was."""
        changing = self.habits.changing or frozenset()
        versions = {
            name: version_of(holder[key])
            for name, holder, key in self._tracked
            if name not in changing and holder[key] is not None
        }
        before, self._versions = self._versions, versions
        late = [name for name, version in versions.items() if before.get(name, version) != version]
        if late:
            self.habits.seen[("late", *late)] = frozenset(late)
            warnings.warn(
                f"the buffers {', '.join(late)} of {type(self.template).__name__} are changed by a run, but were not by the "
                "first: this once all networks changed the same ones; from now on every network has its own",
                stacklevel=2,
            )

    def take(self, count: int) -> list[Replica]:
        """Some replicas, as the target is now; the caller gives them back."""
        taken = []
        modes = self.modes
        for _ in range(count):
            try:
                replica = self._idle.popleft()
            except IndexError:
                replica = self._made()
            replica.begin(self.habits.changing)
            replica.follow(modes)
            taken.append(replica)
        return taken

    def _made(self) -> Replica:
        if self._state is None:
            self._state = State(self.template)
        replica = Replica(self.template, self.places, self.heard)
        self._all.add(replica)
        if replica.shared and not self.habits.told:
            self.habits.told = True
            warnings.warn(
                f"{', '.join(replica.shared)} of {type(self.template).__name__} can't be copied, so that all networks share it",
                stacklevel=2,
            )
        return replica

    def give_back(self, replicas: Sequence[Replica]) -> None:
        """Put replicas that nobody runs any more at the next one's disposal."""
        for replica in replicas:
            replica.end()
            if replica in self._all:
                self._idle.append(replica)

    def aside(self) -> Replicas:
        """Replicas that hooks don't see and that nobody else gets, for trials."""
        trial = copy.copy(self)
        trial.heard = False
        return trial

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of a module of the target, and of all replicas."""
        setattr(module, name, value)
        for replica in list(self._all):
            replica.set(module, name, value)
        if self._state is not None:
            self._state.note(module, name)
