"""Statistics: the buffers that training changes, estimated for every network."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.networks import call, rows_of
from lightning_hypernet.target.replicas import Replica, Replicas, Tensors

_FAR = 1000


class Statistics:
    """The buffers of a target that a run in training mode changes, whatever their layer.

    Most are moving averages of what one batch gives. A run with other numbers in the buffers shows which: what comes out
    differs by a constant share of what went in. Of these the plain average over all batches is taken. Any other (a counter, a
    queue, a codebook) is carried from batch to batch through one pass, from the target's own, as in a plain module.

    Args:
        replicas: The target's replicas.

    Attributes:
        frozen: Paths of the modules that are in evaluation mode in training: their buffers stay the target's own.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        modules = replicas.template.named_modules()
        self._norms = {path: one for path, one in modules if isinstance(one, _NormBase) and one.track_running_stats}
        # Of torch's own the cumulative average is over calls, as torch computes it where there is no momentum.
        self._batch_norms = {
            path: [f"{path}.{name}" if path else name for name, _ in one.named_buffers(recurse=False)]
            for path, one in self._norms.items()
            if isinstance(one, _BatchNorm) and type(one).forward is _BatchNorm.forward
        }
        self._begun: set[tuple[str, int]] = set()
        self._plain = [name for name, _ in replicas.template.named_buffers() if name not in self.norms()]
        self._shares: dict[str, float | None] | None = None
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

    def norms(self) -> dict[str, Tensor]:
        """The target's own statistics in norm layers, by name."""
        return {
            f"{path}.{name}" if path else name: buffer
            for path, module in self._norms.items()
            for name, buffer in module.named_buffers(recurse=False)
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
        """Buffers outside of norm layers that training was seen to change."""
        if self._shares is not None:
            return list(self._shares)
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
        self._begun = set()
        total: dict[str, Tensor] = {}
        for seen, arguments in enumerate(batches, start=1):
            for index, row in enumerate(rows_of(weights, change)):
                if not total:
                    self._look(row, arguments)
                    own = self._own([*self.norms(), *self._others()])
                    total = {name: value.expand(networks, *value.shape).clone() for name, value in own.items()}
                self._add(total, index, row, arguments, seen)
        if not seen:
            raise ValueError("no batch came to estimate statistics from; pass a loader that is not empty")
        odd = [name for names in self._batch_norms.values() for name in names if name in total and total[name].isnan().any()]
        if odd:
            raise ValueError(f"the statistics {odd[0]} come out as NaN: the loader's inputs, or the weights, hold some")
        return total

    def _add(self, total: dict[str, Tensor], index: int, row: Tensors, arguments: Arguments, seen: int) -> None:
        """Take one batch of one network in."""
        shares = self._shares or {}
        carried = {name: total[name][index] for name, share in shares.items() if share is None}
        counted = {path: names for path, names in self._batch_norms.items() if path not in self.frozen}
        for path, names in counted.items():
            begun = (path, index) in self._begun
            carried |= {name: total[name][index] if begun else torch.zeros_like(total[name][index]) for name in names}
        own, after = self._of_one(row, arguments, carried)
        for path, names in counted.items():
            if all(name in after for name in names) and after[names[-1]] > 0:
                self._begun.add((path, index))
                for name in names:
                    total[name][index] = after[name]
        for name in self._others_of_norms(after):
            if total[name].dtype.is_floating_point:
                total[name][index] += (after[name] - total[name][index]) / seen
            elif not torch.equal(after[name], own[name]):
                total[name][index] = seen
        for name, share in shares.items():
            if after[name].shape != total[name].shape[1:]:
                continue
            if share is None:
                total[name][index] = after[name]
            else:
                fresh = (after[name] - share * own[name]) / (1 - share)
                total[name][index] = fresh if seen == 1 else total[name][index] + (fresh - total[name][index]) / seen

    def _others_of_norms(self, buffers: Mapping[str, Tensor]) -> list[str]:
        """The statistics of the other norm layers, which take each batch by itself."""
        paths = {path for path in self._norms if path not in self._batch_norms and path not in self.frozen}
        return [name for name in self.norms() if name in buffers and name.rpartition(".")[0] in paths]

    def _own(self, names: Iterable[str]) -> dict[str, Tensor]:
        return {name: self._replicas.template.get_buffer(name) for name in names}

    def _of_one(
        self, weights: Tensors, arguments: Arguments, buffers: Tensors, training: bool = True, outputs: list[Any] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The buffers before and after one batch with one network's weights.

        Args:
            weights: The network.
            arguments: The batch.
            buffers: Buffers that are other than the target's own.
            training: Whether statistics are taken.
            outputs: Takes the output of the run.
        """
        (replica,) = taken = self._replicas.take(1)
        try:
            replica.own_buffers()
            replica.install(weights, {name: value.clone() for name, value in buffers.items()})
            self._set_modes(replica, training)
            before = {name: value.clone() for name, value in replica.buffers().items()}
            args, kwargs = arguments.of(0, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)
            output = call(replica.module, "forward", args, kwargs)
            if outputs is not None:
                outputs.append(output)
            return before, {name: value.clone() for name, value in replica.buffers().items()}
        finally:
            self._replicas.give_back(taken)

    def _set_modes(self, replica: Replica, training: bool) -> None:
        """Put what holds statistics in training mode, or all if that is what it takes; the rest in evaluation mode."""
        owners = {*self._norms, *(name.rpartition(".")[0] for name in self._others())}
        for path, module in replica.module.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.training = training and (self._whole or path in owners) and path not in self.frozen
                if isinstance(module, _NormBase) and path in self._norms:
                    module.momentum = None if path in self._batch_norms else 1.0

    def _look(self, weights: Tensors, arguments: Arguments) -> None:
        """See, once, which buffers outside of norm layers a run in training mode changes, and how."""
        if not self._plain or self._shares is not None:
            return
        self._whole = True
        with _same_random_numbers():
            before, after = self._of_one(weights, arguments, {})
        changed = [name for name in self._plain if name in after and _differ(before.get(name), after[name])]
        changed += [name for name in self._others() if name in after and name not in changed]
        self._shares = dict.fromkeys(changed)
        if not changed:
            self._whole = False
            return
        odd = [name for name in changed if before[name].shape != after[name].shape]
        for name in odd:
            del self._shares[name]
        self._whole = False
        with _same_random_numbers():
            own, again = self._of_one(weights, arguments, {})
        if any(not _differ(own[name], again[name]) for name in changed if _differ(before[name], after[name])):
            self._whole = True  # a module above decides
            own, again = before, after
        self._find_shares(weights, arguments, own, again)
        carried = [name for name, share in self._shares.items() if share is None]
        kind = type(self._replicas.template).__name__
        if carried:
            warnings.warn(
                f"{', '.join(carried)} of {kind} change in training and are no averages over "
                "batches, as counters, queues and codebooks are not: for every network they are carried through one pass over "
                "the inputs, and every training step starts from the target's own",
                stacklevel=2,
            )
        if odd:
            warnings.warn(
                f"{', '.join(odd)} of {kind} change their size in training, and networks side by side have buffers of one "
                "size: every network keeps the target's own; give them a fixed size, of which a part is filled",
                stacklevel=2,
            )

    def _find_shares(self, weights: Tensors, arguments: Arguments, before: Tensors, after: Tensors) -> None:
        """Run with other numbers in all buffers: what comes out differs by which share of what went in?"""
        assert self._shares is not None
        floats = [name for name in self._shares if before[name].is_floating_point() and before[name].isfinite().all()]
        moved = {name: before[name] + 1 + torch.rand_like(before[name]) * (1 + before[name].abs()) for name in floats}
        other = after
        if floats:
            with _same_random_numbers():
                _, other = self._of_one(weights, arguments, moved)
        for name in floats:
            ratio = ((other[name] - after[name]) / (moved[name] - before[name])).double()
            share = ratio.mean().item()
            if ratio.numel() and (ratio - share).abs().max() < 1e-3 and -1e-3 < share < 1 - 1e-3:
                self._shares[name] = max(0.0, share)
        counters = {name: ~before[name] if before[name].dtype == torch.bool else before[name] + _FAR
                    for name in self._shares if not before[name].is_floating_point()}  # fmt: skip
        averages = {name: moved[name] for name in floats if self._shares[name] is not None}
        followed = [name for name in (*floats, *counters) if name not in averages]
        readers = self._readers(weights, arguments, after, averages, followed)  # as codes read their sums
        late = self._readers(weights, arguments, after, counters, floats)  # as a warm-up reads its count
        if readers or late or (counters and self._matters(weights, arguments, after, counters)):
            self._shares = dict.fromkeys([*self._shares, *readers, *late])

    def _readers(
        self, weights: Tensors, arguments: Arguments, after: Tensors, moved: Tensors, followed: Sequence[str]
    ) -> list[str]:
        """Which of these buffers' updates, and which buffers that do not change yet, read those that are moved."""
        assert self._shares is not None
        if not moved:
            return []
        with _same_random_numbers():
            _, later = self._of_one(weights, arguments, moved)
        whole, self._whole = self._whole, True  # a module above may hold what does not change yet
        with _same_random_numbers():
            start, all_later = self._of_one(weights, arguments, moved)
        self._whole = whole
        begun = {**all_later, **start}
        still = [
            name
            for name in self._plain
            if name not in self._shares and begun[name].shape == all_later[name].shape  # what grows is told apart
            if _differ(start.get(name), all_later[name])
        ]
        return still + [name for name in followed if _differ(later[name], after[name])]

    def _matters(self, weights: Tensors, arguments: Arguments, after: Tensors, counters: Tensors) -> bool:
        """Whether evaluation reads counters, as an average that takes its start off does."""
        assert self._shares is not None
        outputs: list[Any] = []
        for more in ({}, counters):
            given = {name: more.get(name, after[name]) for name in self._shares}
            try:
                with _same_random_numbers():
                    self._of_one(weights, arguments, given, training=False, outputs=outputs)
            except Exception:
                return True
        leaves = [[leaf for leaf in torch.utils._pytree.tree_leaves(one) if isinstance(leaf, Tensor)] for one in outputs]
        return any(_differ(one, other) for one, other in zip(*leaves, strict=True))


def _differ(one: Tensor | None, other: Tensor) -> bool:
    return one is None or one.shape != other.shape or one.dtype != other.dtype or not torch.equal(one, other)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Within, the random numbers that were drawn within the last of these."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
