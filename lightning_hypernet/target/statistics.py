"""Statistics: the buffers that training changes, estimated for every network."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.averages import (
    alike,
    beside_buffers,
    differ,
    far_from,
    keeps,
    other_than,
    outputs_differ,
    same_random_numbers,
    shares_of,
    smaller,
)
from lightning_hypernet.target.networks import call, rows_of
from lightning_hypernet.target.replicas import Replica, Replicas, Tensors

_KNOWN = ("torch.", "timm.")
"""Packages whose norm layers average their statistics by their momentum."""
_OF_NORMS = ("running_mean", "running_var", "num_batches_tracked")


class Statistics:
    """The buffers of a target that a run in training mode changes, whatever their layer.

    Every network carries them from batch to batch through one pass, from the target's own, as a plain module does. Only of
    what proves to be a moving average the plain average over all batches is taken, which forgets where the target stood: it
    keeps a constant share of what it was wherever it starts, tends to what the batch gives, and neither another buffer nor,
    beside a counter, the output reads it. Torch's and timm's norm layers are known to keep such averages.

    Args:
        replicas: The target's replicas.

    Attributes:
        frozen: Paths of the modules that are in evaluation mode in training: their buffers stay the target's own.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        modules = replicas.template.named_modules()
        self._norms = {path: one for path, one in modules if isinstance(one, _NormBase) and one.track_running_stats}
        self._known = {path for path, one in self._norms.items() if type(one).forward.__module__.startswith(_KNOWN)}
        # Of torch's own the cumulative average is over calls, as torch computes it where there is no momentum.
        self._batch_norms = {
            path: list(self.norms([path]))
            for path, one in self._norms.items()
            if isinstance(one, _BatchNorm) and type(one).forward is _BatchNorm.forward and one.num_batches_tracked is not None
        }
        self._begun: set[tuple[str, int]] = set()
        known = self.norms(self._known)
        self._plain = [name for name, _ in replicas.template.named_buffers() if name not in known]
        self._changed: list[str] = []
        self._looked = False
        self._proved: dict[str, float] = {}
        self._averages: dict[str, float] = {}
        self._frozen_then: list[str] = []
        self._odd: set[str] = set()
        self._told: set[str] = set()
        self._whole = False
        self._modes: list[bool] = []
        self.frozen: list[str] = []

    def __bool__(self) -> bool:
        """Whether there are any, as far as is known."""
        return bool(self._norms or self._others())

    @property
    def possible(self) -> bool:
        """Whether there may be some, as long as no training run was seen."""
        return bool(self) or bool(self._plain and not self._replicas.habits.trained)

    def norms(self, paths: Collection[str] | None = None) -> dict[str, Tensor]:
        """The target's own statistics in norm layers, by name: in those of some paths, or in all."""
        return {
            f"{path}.{name}" if path else name: buffer
            for path, module in self._norms.items()
            for name in _OF_NORMS
            if (paths is None or path in paths) and (buffer := module._buffers.get(name)) is not None
        }

    def note_frozen(self) -> None:
        """Remember which modules are in evaluation mode now, in training."""
        modes = self._replicas.modes
        if modes != self._modes:
            self._modes, self.frozen = modes, [path for path, mode in self._replicas.modes_by_path.items() if not mode]

    @property
    def frozen_norms(self) -> list[str]:
        """Paths of the norm layers among what is frozen."""
        frozen = set(self.frozen)
        return [path for path in self._norms if path in frozen]

    def frozen_in(self, network: nn.Module) -> nn.Module:
        """A network of the target, its frozen norm layers put in evaluation mode."""
        for path in self.frozen_norms:
            network.get_submodule(path).eval()
        return network

    def _others(self) -> list[str]:
        """Buffers outside of known norm layers that training was seen to change."""
        if self._looked:
            return self._changed
        changed = self._replicas.habits.changed_in_training
        return [name for name in self._plain if name in changed]

    def expect(self, names: Collection[str]) -> None:
        """Know of statistics that a file holds."""
        self._replicas.habits.expected |= frozenset(names) & frozenset(self._plain)

    @torch.no_grad()
    def estimate(self, weights: Tensors, batches: Iterable[Arguments]) -> dict[str, Tensor]:
        """Estimate the statistics of every network, in one pass over the data.

        In norm layers the cumulative average over batches, as `torch.optim.swa_utils.update_bn` computes it, but with every
        layer without statistics, and every frozen one, in evaluation mode. Random numbers are left as they were.

        Args:
            weights: ``{name: (S, *shape)}``.
            batches: Arguments of the target, shared by all networks.

        Returns:
            ``{name: (S, *shape)}`` for every statistic.

        Raises:
            ValueError: If there are no batches.
        """
        device = next(iter(weights.values())).device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.autocast(device.type, enabled=False), torch.inference_mode(False):
            return self._estimate(weights, batches)

    def _estimate(self, weights: Tensors, batches: Iterable[Arguments]) -> dict[str, Tensor]:
        habits = self._replicas.habits
        change = torch.clone if habits.writes_weights or not habits.seen else torch.detach
        networks, seen = len(next(iter(weights.values()))), 0
        carried: list[dict[str, Tensor]] = [{} for _ in range(networks)]
        averaged: list[dict[str, Tensor]] = [{} for _ in range(networks)]
        total: dict[str, Tensor] = {}
        self._begun = set()
        if self._frozen_then != self.frozen:
            self._looked = False
        for seen, arguments in enumerate(batches, start=1):
            for index, row in enumerate(rows_of(weights, change)):
                if seen == 1 and index == 0:
                    self._look(row, arguments)
                    self._averages = dict(self._proved)
                    total = {name: torch.stack([value] * networks) for name, value in self.norms(self._known).items()}
                given = carried[index] | self._starts(total, index)
                with same_random_numbers(seen) if self._averages else nullcontext():
                    own, after = self._of_one(row, arguments, given)
                self._add_norms(total, index, own, after, seen)
                self._carry(carried[index], own, after)
                if self._averages:
                    self._check_averages(row, arguments, given, own, after, seen)
                for name, share in self._averages.items():
                    fresh = (after[name] - share * own[name]) / (1 - share)
                    mean = averaged[index].get(name, fresh)
                    averaged[index][name] = mean + (fresh - mean) / seen
        if not seen:
            raise ValueError("no batch came to estimate statistics from; pass a loader that is not empty")
        odd = [name for names in self._batch_norms.values() for name in names if name in total and total[name].isnan().any()]
        if odd:
            raise ValueError(f"the statistics {odd[0]} come out as NaN: the loader's inputs, or the weights, hold some")
        self._tell({name for one in carried for name in one})
        for name in dict.fromkeys([*self.norms(), *self._others()]):
            if name not in total:
                held = averaged if name in self._averages else carried
                total[name] = torch.stack(
                    [one[name] if name in one else self._replicas.template.get_buffer(name).clone() for one in held]
                )
        return total

    def _counted(self) -> dict[str, list[str]]:
        return {path: names for path, names in self._batch_norms.items() if path not in self.frozen}

    def _starts(self, total: Tensors, index: int) -> dict[str, Tensor]:
        """Where the batch norms of a network stand: at zero before their first batch."""
        return {
            name: total[name][index] if (path, index) in self._begun else torch.zeros_like(total[name][index])
            for path, names in self._counted().items()
            for name in names
        }

    def _add_norms(self, total: dict[str, Tensor], index: int, own: Tensors, after: Tensors, seen: int) -> None:
        """Take what one batch gives in the known norm layers of one network."""
        for path, names in self._counted().items():
            if all(name in after for name in names) and after[names[-1]] > 0:
                self._begun.add((path, index))
                for name in names:
                    total[name][index] = after[name]
        paths = self._known - set(self._batch_norms) - set(self.frozen)
        for name in self.norms(paths):
            if name not in after:
                continue
            if total[name].dtype.is_floating_point:
                total[name][index] += (after[name] - total[name][index]) / seen
            elif not torch.equal(after[name], own[name]):
                total[name][index] = seen

    def _carry(self, carried: dict[str, Tensor], own: Tensors, after: Tensors) -> None:
        """Take the other buffers of one network as one batch leaves them."""
        for name in self._plain:
            if name not in after or not differ(own.get(name), after[name]):
                continue
            if alike(own.get(name), after[name]):
                carried[name] = after[name]
                if name not in self._changed:
                    self._changed.append(name)
            else:
                self._odd.add(name)

    def _tell(self, changed: Collection[str]) -> None:
        """Name, once, what changed and is no average."""
        kind = type(self._replicas.template).__name__
        counts = {name for name in self.norms() if name.endswith(_OF_NORMS[-1])}
        carried = [name for name in self._changed if name in changed and name not in {*self._told, *self._averages, *counts}]
        odd = sorted(self._odd - self._told)
        self._told.update(carried, odd)
        if carried:
            warnings.warn(
                f"{', '.join(carried)} of {kind} change in training and are no averages over "
                "batches, as counters, queues and codebooks are not: for every network they are carried through one pass over "
                "the inputs, and every training step starts from the target's own",
                stacklevel=2,
            )
        if odd:
            warnings.warn(
                f"{', '.join(odd)} of {kind} change their size or type in training, and networks side by side have buffers of "
                "one kind: every network keeps the target's own; register them as they will be",
                stacklevel=2,
            )

    def _tell_state(self, weights: Tensors, arguments: Arguments) -> None:
        """Tell if what is no buffer is kept from batch to batch, or to evaluation, which networks do not."""
        found: list[str] | None = None
        if self._replicas.habits.keeps_state:
            with suppress(Exception):  # what can't be compared
                found = beside_buffers(lambda buffers, modes, out: self._of_one(weights, arguments, buffers, modes, out)[1])
        if found is not None:
            warnings.warn(
                f"{', '.join(found) or 'what comes out'} of {type(self._replicas.template).__name__} depends on what it keeps "
                "from batch to batch beside its buffers, and every network starts without at each call: make that buffers too",
                stacklevel=2,
            )

    def _of_one(
        self,
        weights: Tensors,
        arguments: Arguments,
        buffers: Tensors,
        modes: Sequence[bool] = (True,),
        outputs: list[Any] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The buffers before and after runs of one batch with one network's weights, from buffers other than the target's own.

        `modes` says of each run whether statistics are taken; `outputs` takes what comes out of each.
        """
        (replica,) = taken = self._replicas.take(1)
        try:
            replica.own_buffers()
            replica.install(weights, {name: value.clone() for name, value in buffers.items()})
            before = {name: value.clone() for name, value in replica.buffers().items()}
            for training in modes:
                self._set_modes(replica, training)
                args, kwargs = arguments.of(0, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)
                output = call(replica.module, "forward", args, kwargs)
                if outputs is not None:
                    outputs.append(output)
            after = {name: value.clone() for name, value in replica.buffers().items()}
            return before, after
        finally:
            self._replicas.give_back(taken)

    def _set_modes(self, replica: Replica, training: bool) -> None:
        """Put what holds statistics in training mode, or all if that is what it takes; the rest in evaluation mode."""
        owners = {*self._norms, *(name.rpartition(".")[0] for name in self._others())}
        for path, module in replica.module.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.training = training and (self._whole or path in owners) and path not in self.frozen
                if isinstance(module, _NormBase) and path in self._known:
                    module.momentum = None if path in self._batch_norms else 1.0

    def _look(self, weights: Tensors, arguments: Arguments) -> None:
        """See, once, which buffers outside of known norm layers a run in training mode changes, and which are averages."""
        if self._looked or not (self._plain or self._batch_norms):
            return
        self._frozen_then, self._proved = list(self.frozen), {}
        self._looked = self._whole = True
        try:
            self._find(weights, arguments)
        except Exception:
            self._looked = self._whole = False
            raise

    def _find(self, weights: Tensors, arguments: Arguments) -> None:
        with same_random_numbers():
            before, after = self._of_one(weights, arguments, {})
        for path, names in list(self._batch_norms.items()):
            if not differ(before[names[-1]], after[names[-1]]) and any(differ(before[name], after[name]) for name in names):
                del self._batch_norms[path]  # another module runs it
                self._known.remove(path)
                self._plain += names
        self._tell_state(weights, arguments)
        changed = [name for name in self._plain if name in after and differ(before.get(name), after[name])]
        changed += [name for name in self._plain if name in self._replicas.habits.changed_in_training and name not in changed]
        self._changed = [name for name in changed if alike(before.get(name), after[name])]
        self._odd.update(set(changed) - set(self._changed))
        self._whole = False
        if not self._changed:
            return
        try:
            with same_random_numbers():
                own, again = self._of_one(weights, arguments, {})
            self._whole = any(not differ(own[name], again[name]) for name in changed if differ(before[name], after[name]))
        except Exception:  # a module above gives another output in training, and this one takes it apart
            self._whole = True
        if self._whole:  # a module above decides
            own, again = before, after
        self._find_averages(weights, arguments, own, again)

    def _find_averages(self, weights: Tensors, arguments: Arguments, own: Tensors, after: Tensors) -> None:
        """Which buffers keep a constant share of what they were, and take the rest from the batch alone."""
        others, other = {name: smaller(value) for name, value in weights.items()}, Arguments(*arguments.of(0, smaller))
        floats = [name for name in self._changed if own[name].is_floating_point() and own[name].numel()]
        moved = {name: other_than(own[name]) for name in floats}
        proved, here = dict[str, float](), dict[str, Tensor]()
        with suppress(Exception):  # what does not run with other numbers is taken for no average
            here = self._again(others, other, {}) if moved else {}
            elsewhere = partial(self._again, others, other)
            proved = shares_of(partial(self._again, weights, arguments), elsewhere, own, after, here, moved) if moved else {}
        late = self._starting(weights, arguments, moved)
        clocks = {
            name: far_from(own[name])
            for name in self._changed
            if name not in proved and (not own[name].is_floating_point() or not differ(here.get(name), after[name]))
        }
        self._changed += late
        if proved and not late and not (clocks and self._matters(weights, arguments, after, clocks)):
            self._proved = proved

    def _check_averages(
        self, weights: Tensors, arguments: Arguments, given: Tensors, own: Tensors, after: Tensors, seen: int
    ) -> None:
        """See that averages keep their share in this batch too, and that nothing reads them."""
        moved, later = {name: other_than(own[name]) for name in self._averages}, dict[str, Tensor]()
        with suppress(Exception):  # it may not run with other numbers
            later = self._again(weights, arguments, {**given, **moved}, seen)
        read = any(differ(later.get(name), after[name]) for name in after if name not in moved)  # as codes read their sums
        self._averages = {
            name: share
            for name, share in self._averages.items()
            if not read and name in after and alike(later.get(name), after[name]) and alike(own[name], after[name])
            if keeps(later[name] - after[name], moved[name] - own[name], share)
        }

    def _again(self, weights: Tensors, arguments: Arguments, buffers: Tensors, seed: int = 0) -> dict[str, Tensor]:
        """The buffers after the same run from other ones."""
        with same_random_numbers(seed):
            return self._of_one(weights, arguments, buffers)[1]

    def _starting(self, weights: Tensors, arguments: Arguments, moved: Tensors) -> list[str]:
        """The buffers that begin to change when those are moved that do, in a module above too."""
        own = {name: self._replicas.template.get_buffer(name) for name in self._changed}
        counters = {name: far_from(value) for name, value in own.items() if not value.is_floating_point()}
        late: list[str] = []
        whole, self._whole = self._whole, True
        for more in filter(None, (moved, counters)):
            start, end = dict[str, Tensor](), dict[str, Tensor]()
            with suppress(Exception), same_random_numbers():
                start, end = self._of_one(weights, arguments, more)
            same = [name for name in self._plain if name in end and alike(start.get(name), end[name])]
            late += [name for name in same if name not in (*self._changed, *late) and differ(start[name], end[name])]
        self._whole = whole
        return late

    def _matters(self, weights: Tensors, arguments: Arguments, after: Tensors, clocks: Tensors) -> bool:
        """Whether evaluation reads counters, as an average that takes its start off does."""
        outputs: list[Any] = []
        for more in ({}, clocks):
            try:
                with same_random_numbers():
                    self._of_one(weights, arguments, {**after, **more}, (False,), outputs)
            except Exception:
                return True
        return outputs_differ(*outputs)
