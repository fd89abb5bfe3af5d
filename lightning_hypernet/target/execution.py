"""Run many weight vectors through one target."""

from __future__ import annotations

import copy
import operator
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_hypernet.target.arguments import Arguments

ExecutionMode = Literal["auto", "loop", "vmap"]
Tensors = Mapping[str, Tensor]
_CONTAINERS = (list, dict, set, deque)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Executor:
    """A target without weights of its own, which runs with the weights it is given.

    Args:
        target: The target. It is copied; the copy keeps what is not generated.
        aliases: For every generated parameter its names in the target; more than one where parameters are tied.
        mode: ``"loop"`` runs one network after the other, ``"vmap"`` all at once, ``"auto"`` takes the loop on CPUs and vmap on
            accelerators. What vmap cannot run (recurrent layers, solvers, uneven parts) goes to the loop.
    """

    def __init__(self, target: nn.Module, aliases: Mapping[str, Sequence[str]], mode: ExecutionMode = "auto") -> None:
        if mode not in get_args(ExecutionMode):
            raise ValueError(f"execution must be one of {', '.join(get_args(ExecutionMode))}, not {mode!r}")
        self.target = copy.deepcopy(target)
        self.mode = mode
        self.frozen = [False] * len(self._norms)
        self.aliases = {name: tuple(names) for name, names in aliases.items()}
        self._fill(dict.fromkeys(self.aliases))

    def _fill(self, weights: Mapping[str, Tensor | None]) -> None:
        for name, value in weights.items():
            for alias in self.aliases[name]:
                path, _, key = alias.rpartition(".")
                module = self.target.get_submodule(path)
                module._parameters[key] = value  # type: ignore[assignment]
                if isinstance(module, nn.RNNBase):
                    pairs = zip(module._flat_weights_names, module._flat_weights, strict=True)
                    module._flat_weights = [value if name == key else weight for name, weight in pairs]

    def _fill_buffers(self, buffers: Tensors) -> None:
        for name, value in buffers.items():
            path, _, key = name.rpartition(".")
            self.target.get_submodule(path)._buffers[key] = value

    @property
    def _norms(self) -> dict[str, nn.Module]:
        """The norm layers of the target that keep running statistics."""
        modules = self.target.named_modules()
        return {path: module for path, module in modules if isinstance(module, _NormBase) and module.track_running_stats}

    @property
    def statistics(self) -> dict[str, Tensor]:
        """The running statistics of the target's norm layers, by name."""
        return _buffers_of(self._norms)

    def note_frozen(self) -> None:
        """Remember which norm layers are in evaluation mode in training: they keep the target's own statistics for good."""
        self.frozen = [not module.training for module in self._norms.values()]

    def materialize(self, weights: Tensors, buffers: Tensors | None = None) -> nn.Module:
        """A plain copy of the target with one network's weights.

        Args:
            weights: Every generated parameter, without a leading axis.
            buffers: Buffers that differ from the target's own.

        Returns:
            A module of the target's own class, in the target's mode; it shares no memory with anything.
        """
        parameters = {name: nn.Parameter(value.detach().clone()) for name, value in weights.items()}
        with self._kept():
            self._fill(parameters)
            module = copy.deepcopy(self.target, {id(parameter): parameter for parameter in parameters.values()})
        for name, value in (buffers or {}).items():
            module.get_buffer(name).copy_(value)
        return module

    def materialize_all(self, weights: Tensors, buffers: Tensors) -> list[nn.Module]:
        """Every network as `materialize` gives it; the tensors are ``{name: (S, *shape)}``."""
        return [
            self.materialize(row, {name: value[index] for name, value in buffers.items()})
            for index, row in enumerate(_rows(weights))
        ]

    def run(
        self,
        weights: Tensors,
        arguments: Arguments,
        buffers: Tensors | None = None,
        method: str = "forward",
        chunk_size: int | None = None,
    ) -> list[Any]:
        """Call the target once with the weights of every network, in the target's present mode.

        The target is left as it was, whatever happens: its state, its buffers, its modes.

        Args:
            weights: ``{name: (S, *shape)}``.
            arguments: Arguments of the call, shared by all networks or dealt out to them.
            buffers: ``{name: (S, *shape)}``, buffers of their own for every network.
            method: Which method or submodule of the target is called, or which property is read.
            chunk_size: Networks that vmap runs at once; all by default.

        Returns:
            The output of every network that got a part of the arguments.

        Raises:
            TypeError: If the target cannot run and none of its inputs is a floating-point tensor.
        """
        networks = len(arguments.sizes) if arguments.sizes else len(next(iter(weights.values())))
        weights = {name: value[:networks] for name, value in weights.items()}
        buffers = {name: value[:networks] for name, value in (buffers or {}).items()}
        accelerated = next(iter(weights.values())).device.type != "cpu"
        try:
            if arguments.even and (self.mode == "vmap" or (self.mode == "auto" and accelerated)):
                return self._vmap_or_loop(weights, arguments, buffers, method, chunk_size)
            return self._loop(weights, arguments, buffers, method)
        except (RuntimeError, TypeError) as error:
            dtypes = {tensor.dtype for tensor in arguments.tensors}
            if not dtypes or any(dtype.is_floating_point for dtype in dtypes) or "type" not in str(error):
                raise
            raise TypeError(
                f"{type(self.target).__name__} cannot run on inputs of {', '.join(map(str, dtypes))}; "
                "convert them to floating point, as in x.float() / 255"
            ) from error

    def _vmap_or_loop(
        self, weights: Tensors, arguments: Arguments, buffers: Tensors, method: str, chunk_size: int | None
    ) -> list[Any]:
        try:
            return self._vmap(weights, arguments, buffers, method, chunk_size)
        except Exception as error:
            outputs = self._loop(weights, arguments, buffers, method)
            self.mode = "loop"
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"vmap cannot run {type(self.target).__name__}, so its networks run one after the other: {reason}",
                stacklevel=2,
            )
            return outputs

    def _loop(self, weights: Tensors, arguments: Arguments, buffers: Tensors, method: str) -> list[Any]:
        outputs = []
        for index, row in enumerate(_rows(weights)):
            with self._installed(row, {name: value[index] for name, value in buffers.items()}):
                outputs.append(self._call(method, *arguments.of(index)))
        return outputs

    @contextmanager
    def _installed(self, weights: Tensors, buffers: Tensors) -> Iterator[dict[str, Tensor]]:
        """Put one network in place; gives the buffers that its run may change."""
        with self._kept():
            clones: dict[int, Tensor] = {}
            own = {
                name: clones.setdefault(id(value), value.clone())
                for name, value in self.target.named_buffers(remove_duplicate=False)
            }
            own |= {name: value.clone() for name, value in buffers.items()}
            self._fill(weights)
            self._fill_buffers(own)
            yield own

    def _call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        called = self.target if method == "forward" else operator.attrgetter(method)(self.target)
        return called(*args, **kwargs) if callable(called) else called

    def _vmap(self, weights: Tensors, arguments: Arguments, buffers: Tensors, method: str, chunk_size: int | None) -> list[Any]:
        networks = len(next(iter(weights.values())))
        stacked = {name: value.expand(networks, *value.shape).clone() for name, value in self.statistics.items()} | {
            name: value.clone() for name, value in buffers.items()
        }
        shared = {name: value.clone() for name, value in self.target.named_buffers() if name not in stacked}
        structure: list[Any] = []

        def call(weights: Tensors, stacked: Tensors, leaves: list[Any]) -> list[Tensor]:
            with self._kept():
                self._fill(weights)
                self._fill_buffers({**shared, **stacked})
                output = self._call(method, *arguments.restore(leaves))
            flat, spec = tree_flatten(output)
            structure[:] = [flat, spec]
            return [leaf for leaf in flat if isinstance(leaf, Tensor)]

        axes = [None if axis is None else 0 for axis in arguments.axes]
        mapped = torch.func.vmap(call, in_dims=(0, 0, axes), randomness="different", chunk_size=chunk_size)
        columns = [column.unbind(0) for column in mapped(dict(weights), stacked, arguments.stacked())]
        flat, spec = structure
        outputs = []
        for index in range(networks):
            tensors = iter([column[index] for column in columns])
            outputs.append(tree_unflatten([next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in flat], spec))
        return outputs

    @torch.no_grad()
    def norm_statistics(self, weights: Tensors, batches: Iterable[Arguments]) -> dict[str, Tensor]:
        """Estimate the running statistics of every network's norm layers, in one pass over the data.

        The cumulative average over batches, as `torch.optim.swa_utils.update_bn` computes it, but with every other layer in
        evaluation mode, frozen norm layers too.

        Args:
            weights: ``{name: (S, *shape)}``.
            batches: Arguments of the target, shared by all networks.

        Returns:
            ``{name: (S, *shape)}`` for every buffer of a norm layer.

        Raises:
            ValueError: If there are no batches.
        """
        networks = len(next(iter(weights.values())))
        total = {name: value.expand(networks, *value.shape).clone() for name, value in self.statistics.items()}
        pairs = zip(self._norms.items(), self.frozen, strict=True)
        norms = {path: module for (path, module), frozen in pairs if not frozen}
        estimated = list(_buffers_of(norms))
        seen = 0
        with self._kept():
            self.target.eval()
            for module in norms.values():
                module.training, module.momentum = True, 1.0  # type: ignore[assignment]
            for seen, arguments in enumerate(batches, start=1):
                for index, row in enumerate(_rows(weights)):
                    with self._installed(row, {}) as changed:
                        self._call("forward", *arguments.of(index))
                    for name in estimated:
                        value = total[name]
                        if value.dtype.is_floating_point:
                            value[index] += (changed[name] - value[index]) / seen
                        else:
                            value[index] = seen
        if not seen:
            raise ValueError("no batch came to estimate norm statistics from; pass a loader that is not empty")
        return total

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Put back every attribute, parameter and buffer of the target afterwards."""
        before = [
            (module, dict(vars(module)), list(_containers(module)), dict(module._parameters), dict(module._buffers))
            for module in self.target.modules()
        ]
        try:
            yield
        finally:
            for module, attributes, containers, parameters, buffers in before:
                vars(module).clear()
                vars(module).update(attributes)
                for container, content in containers:
                    container.clear()
                    getattr(container, "extend" if isinstance(content, (list, deque)) else "update")(content)
                module._parameters.clear()
                module._parameters.update(parameters)
                module._buffers.clear()
                module._buffers.update(buffers)


def _buffers_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The buffers that modules, given by their paths, have themselves."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in modules.items()
        for name, buffer in module.named_buffers(recurse=False)
    }


def _containers(module: nn.Module) -> Iterator[tuple[Any, Any]]:
    """The containers that a module keeps, and those inside of them, each with a copy."""
    own = [value for name, value in vars(module).items() if isinstance(value, _CONTAINERS) and name not in _OF_EVERY_MODULE]
    inner = [value for outer in own for value in (outer.values() if isinstance(outer, dict) else outer)]
    for container in (*own, *(value for value in inner if isinstance(value, _CONTAINERS))):
        yield container, copy.copy(container)


def _rows(weights: Tensors) -> Iterator[dict[str, Tensor]]:
    """The weights of one network after the other; unbind, since the backward of an index writes a tensor of zeros."""
    for row in zip(*(value.unbind(0) for value in weights.values()), strict=True):
        yield dict(zip(weights, row, strict=True))
