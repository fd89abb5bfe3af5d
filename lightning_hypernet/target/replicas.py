"""Replicas: light copies of the target, each of which holds one network's weights and state."""

from __future__ import annotations

import copy
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.target.compiler import Compiler
from lightning_hypernet.target.copies import Copies
from lightning_hypernet.target.habits import Habits
from lightning_hypernet.target.places import Place, by_all_names
from lightning_hypernet.target.state import State

Tensors = Mapping[str, Tensor]
_SMALL = 65_536
_MADE = ("_idle", "_all", "_parts", "_paths", "_state", "_tracked", "_trained", "_generation")


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to, as far as that is counted."""
    return 0 if tensor.is_inference() else tensor._version


class Replica:
    """A light copy of the target: one network's weights and state, and all else shared with the target.

    Args:
        template: The target without its generated parameters.
        places: Where it keeps them.
        muted: Whether hooks are left out, but for those that compute its weights.
    """

    def __init__(self, template: nn.Module, places: Sequence[Place], muted: bool = False) -> None:
        copies = self._copies = Copies(template, "replica")
        self.module, self.shared, self.outside = copies.module, copies.shared, copies.outside
        if muted:
            copies.mute()
        self.generation: object = None
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
        self._tensors = [(own, original) for original, own in copies.tensors if id(own) not in held]
        self._ordinary: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
            (twin._parameters, key, module._parameters)
            for module, twin in copies.pairs
            for key, value in module._parameters.items()
            if value is not None
        ]
        self._modes = [module.training for module, _ in copies.pairs]
        self._state = State(self.module, copies.kept)
        self._versions: list[tuple[int, int]] = []
        self._references = self._count_references()

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of a module of the target here too."""
        twin = self._copies.of(module, "")
        if name in module._buffers:
            twin._buffers[name] = value.clone()
            return
        setattr(twin, name, self._copies.later(value, name))
        if name in vars(twin):
            self._state.note(twin, name)

    def begin(self, changing: frozenset[str] | None, modes: list[bool]) -> None:
        """Start as the target is now.

        Args:
            changing: Names of the buffers that runs change, of which the replica takes copies; None: of all.
            modes: The modes of the target's modules.
        """
        for holder, key, origin in self._ordinary:
            holder[key] = origin[key]
        self.follow(modes)
        if not self._tracked and not self._tensors:
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
            versions = [(version_of(own), version_of(original)) for own, original in self._tensors]
            for (own, original), now, before in zip(self._tensors, versions, self._versions or versions, strict=True):
                if own.numel() <= _SMALL or now != before:
                    own.copy_(original)
            self._versions = [(version_of(own), version_of(original)) for own, original in self._tensors]

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
        if buffers:
            held = {name: origin[key] for name, _, key, origin, _ in self._tracked if origin[key] is not None}
            every = by_all_names(held, buffers)
            for name, holder, key, _, _ in self._tracked:
                if name in every:
                    holder[key] = every[name]

    def replaced(self, weights: Tensors) -> list[str]:
        """The generated parameters in whose places something else stands now."""
        return [name for holder, key, name in self._places if holder[key] is not weights[name]]

    def buffers(self) -> dict[str, Tensor]:
        """The buffers, by name, as they are now."""
        return {name: holder[key] for name, holder, key, _, _ in self._tracked if holder[key] is not None}

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that are neither parameters nor buffers."""
        return [own for own, _ in self._tensors]

    def end(self) -> bool:
        """Take the network out and put all state back; whether the replica is as good as new.

        It is not, and keeps its network, while something else refers to one of its modules, as an activation checkpoint does
        that will run it again, or if it holds state that can't be followed.
        """
        if self._state.opaque or self._count_references() != self._references:
            return False
        for holder, key, (template, where) in self._empty:
            holder[key] = template[where]
        self._state.restore()
        return True

    def _count_references(self) -> list[int]:
        return [sys.getrefcount(twin) for _, twin in self._copies.pairs]


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
        self.muted = self.apart = False
        self.habits = Habits()
        self.compiler = Compiler()
        self._all: weakref.WeakSet[Replica] = weakref.WeakSet()
        self.clear()

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: no replicas."""
        return {name: value for name, value in vars(self).items() if name not in _MADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._all = weakref.WeakSet()
        self.clear()

    def clear(self) -> None:
        """Make new replicas from now on: the target is another one."""
        self._generation = object()
        self._idle: deque[Replica] = deque()
        self._state: State | None = None
        modules = [(path, one) for path, one in self.template.named_modules() if not isinstance(one, torch.jit.ScriptModule)]
        self._parts, self._paths = [one for _, one in modules], [path for path, _ in modules]
        self._tracked = [(f"{path}.{key}".lstrip("."), one._buffers, key) for path, one in modules for key in one._buffers]
        self._trained = [(one._parameters, key) for _, one in modules for key in one._parameters]

    def refresh(self) -> bool:
        """Make new replicas from now on if the plain state of the target changed since they were made; whether it did."""
        stale = self._state is not None and self._state.changed()
        if stale:
            self.clear()
        return stale

    @property
    def modes(self) -> list[bool]:
        """The modes of the target's modules."""
        return [module.training for module in self._parts]

    @property
    def trained(self) -> bool:
        """Whether the target has parameters of its own that are trained."""
        parameters = [holder[key] for holder, key in self._trained]
        return any(parameter is not None and parameter.requires_grad for parameter in parameters)

    @property
    def modes_by_path(self) -> dict[str, bool]:
        """The modes of the target's modules, by path."""
        return dict(zip(self._paths, self.modes, strict=True))

    def run_of(self, method: str) -> tuple[Any, ...]:
        """What tells one kind of run from another: the method, and the modes of the modules."""
        return (method, *self.modes)

    def shared_versions(self) -> dict[str, int]:
        """How often the buffers that all networks share were written to."""
        changing = self.habits.changing or frozenset()
        return {
            name: version_of(holder[key])
            for name, holder, key in self._tracked
            if name not in changing and holder[key] is not None
        }

    def check_shared(self, before: Mapping[str, int]) -> None:
        """See that a run left the buffers alone that all networks share, since the first run had."""
        late = [name for name, version in self.shared_versions().items() if before.get(name, version) != version]
        if late:
            self.habits.late |= frozenset(late)
            warnings.warn(
                f"the buffers {', '.join(late)} of {type(self.template).__name__} are changed by a run, but were not by the "
                "first: this once all networks changed the same ones; from now on every network has its own",
                stacklevel=2,
            )

    def made_by(self, replica: Replica) -> list[str]:
        """Names of the buffers that a replica has and the target has not, but for those that no file holds."""
        known = {name for name, _ in self.template.named_buffers(remove_duplicate=False)}
        made = [name for name, _ in replica.module.named_buffers() if name not in known]
        owners = {name: replica.module.get_submodule(name.rpartition(".")[0]) for name in made}
        return [name for name, one in owners.items() if name.rpartition(".")[2] not in one._non_persistent_buffers_set]

    def original_of(self, value: Any) -> Any:
        """The module of the target that a module of a replica is a copy of; other values as they are."""
        if not isinstance(value, nn.Module):
            return value
        named = (pair for replica in list(self._all) for pair in replica.module.named_modules())
        path = next((path for path, one in named if one is value), None)
        return value if path is None else self.template.get_submodule(path)

    def take(self, count: int) -> list[Replica]:
        """Some replicas, as the target is now; the caller gives them back."""
        if len(self._idle) < count:
            self.refresh()
        changing = None if self.habits.watch or self.apart else self.habits.changing
        taken = []
        modes = self.modes
        for _ in range(count):
            try:
                replica = self._idle.popleft()
            except IndexError:
                replica = self._made()
            replica.begin(changing, modes)
            taken.append(replica)
        return taken

    def _made(self) -> Replica:
        if self._state is None:
            self._state = State(self.template)
        replica = Replica(self.template, self.places, self.muted)
        replica.generation = self._generation
        self._all.add(replica)
        if replica.shared and not self.habits.told:
            self.habits.told = True
            warnings.warn(
                f"{', '.join(replica.shared)} of {type(self.template).__name__} can't be copied, so that all networks share it",
                stacklevel=2,
            )
        return replica

    def give_back(self, replicas: Sequence[Replica]) -> None:
        """Put replicas that nobody runs any more at the next one's disposal, if they are as good as new."""
        for replica in replicas:
            if replica.end() and replica.generation is self._generation:
                self._idle.append(replica)

    def aside(self, muted: bool = True) -> Replicas:
        """Other replicas of the same target, which hooks don't see if they are muted, for trials."""
        trial = copy.copy(self)
        trial.muted, trial.apart = muted, True
        trial.compiler = Compiler()
        return trial

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of a module of the target, and of all replicas."""
        setattr(module, name, value)
        for replica in list(self._all):
            replica.set(module, name, value)
        if isinstance(getattr(type(module), name, None), property):  # it may set anything
            self.clear()
        elif self._state is not None and name in vars(module):
            self._state.note(module, name)
