"""Execution: a target's calls with many networks."""

from __future__ import annotations

import copy
import functools
import re
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.backends import BACKENDS, Backend, Loop
from lightning_hypernet.target.choice import Choices
from lightning_hypernet.target.copies import Copies
from lightning_hypernet.target.habits import Watch, check_reach
from lightning_hypernet.target.joining import join, stack
from lightning_hypernet.target.layout import BatchDim
from lightning_hypernet.target.loaders import Feed, InputsOf, check_loader
from lightning_hypernet.target.networks import ROUND, Networks, call, rows_of
from lightning_hypernet.target.places import Placeholder, filled, find_places, put_buffers
from lightning_hypernet.target.plans import Plans
from lightning_hypernet.target.replicas import Replicas, Tensors
from lightning_hypernet.target.statistics import Statistics
from lightning_hypernet.values import whole


class Executor:
    """A target without weights of its own, which runs with the weights it is given.

    Args:
        target: The target. It is copied; the copy keeps what is not generated.
        aliases: For every generated parameter its names in the target; more than one where parameters are tied.
        backend: What runs the networks; None: the loop, or batched products or vmap where they are faster, measured once for
            every signature of a call. What a backend can't run (for vmap recurrent layers, solvers, uneven parts) goes to the
            loop.
        choice: How the backend was chosen, by a name or a mapping, as files keep it.
        batch_dim: Where the batch lies in the target's inputs; None: along the first axis.

    Raises:
        ValueError: If the target can't be copied.
    """

    def __init__(
        self,
        target: nn.Module,
        aliases: Mapping[str, Sequence[str]],
        backend: Backend | None = None,
        choice: Any = "auto",
        batch_dim: BatchDim = None,
    ) -> None:
        self.backend, self.choice = backend, choice
        self.aliases = {name: tuple(names) for name, names in aliases.items()}
        own: dict[str, Tensor] = {name: target.get_parameter(name) for name in self.aliases}
        _refuse_scripted(target, own)
        places = find_places(target, own)
        stand_ins = {id(parameter): Placeholder(name) for name, parameter in own.items()}
        self.target = Copies(target, "module", dict(stand_ins)).module
        self.replicas = Replicas(self.target, places)
        self._clear()
        for path in {place.module for place in places}:
            _save_plainly(self.target.get_submodule(path))
        self.statistics = Statistics(self.replicas)
        self.choices = Choices()
        self.plans = Plans(batch_dim)
        self.feed = Feed()
        self._own = {name: weakref.ref(parameter) for name, parameter in own.items()}
        self._first = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Executor:
        """A copy with a target of its own, made as every copy of the target is."""
        if id(self.target) not in memo:
            Copies(self.target, "module", memo)
        memo[id(self.backend)] = self.backend  # which may hold streams, pools or locks
        twin = memo[id(self)] = object.__new__(Executor)
        twin.__setstate__({**copy.deepcopy({**vars(self), "_own": {}, "_first": None}, memo), "_own": self._own})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but the target's own parameters and locks.

        Raises:
            TypeError: If the target would be traced anew when it is loaded, which loses what is generated.
        """
        if any(isinstance(module, torch.fx.GraphModule) for module in self.target.modules()):
            raise TypeError("a target of torch.fx can't be pickled without its parameters; keep state_dict() or a checkpoint")
        return {**vars(self), "_own": {}, "_first": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._first = threading.Lock()
        self._clear()  # a module's own way of being copied may have made parameters anew

    def _clear(self) -> None:
        """Leave the target without generated parameters."""
        for place in self.replicas.places:
            if place.steps[0] == "_parameters":
                holder, key = place.holder(self.target)
                holder[key] = None
                if vars(self.target.get_submodule(place.module)).get(key, holder) is None:
                    del vars(self.target.get_submodule(place.module))[key]

    def materialize(self, weights: Tensors, buffers: Tensors | None = None) -> nn.Module:
        """A plain copy of the target with one network's weights.

        Args:
            weights: Every generated parameter, without a leading axis.
            buffers: Buffers that differ from the target's own.

        Returns:
            A module of the target's own class, in the target's mode; it shares no memory with anything.
        """
        with torch.inference_mode(False):
            parameters = {
                name: nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format))
                for name, value in weights.items()
            }
            module = Copies(self.target, "module").module
            for place in self.replicas.places:
                holder, key = place.holder(module)
                holder[key] = parameters[place.parameter]
            for one in module.modules():
                for name in [name for name, value in vars(one).items() if isinstance(value, _Plainly)]:
                    delattr(one, name)
            put_buffers(module, {name: value.detach().clone() for name, value in (buffers or {}).items()})
        return module

    def materialize_all(self, weights: Tensors, buffers: Tensors) -> list[nn.Module]:
        """Every network as `materialize` gives it; the tensors are ``{name: (S, *shape)}``."""
        rows = zip(*(value.unbind(0) for value in weights.values()), strict=True)
        return [
            self.materialize(dict(zip(weights, row, strict=True)), {name: value[index] for name, value in buffers.items()})
            for index, row in enumerate(rows)
        ]

    def networks(self, weights: Tensors, buffers: Tensors | None = None) -> Networks:
        """Networks of the target; tensors are ``{name: (S, *shape)}``."""
        return Networks(self.replicas, weights, buffers)

    def replaced(self, parameters: Iterable[Tensor]) -> list[str]:
        """The names of the target's own parameters, now generated, that are among some."""
        known = {id(own): name for name, reference in self._own.items() if (own := reference()) is not None}
        return [known[id(one)] for one in parameters if id(one) in known]

    def read(self, batches: Iterable[Any], device: torch.device, inputs: InputsOf | None = None) -> Iterator[Arguments]:
        """What the batches of a loader are to the target, as `Feed.read` gives it."""
        check_loader(batches)
        if inputs is not None and not callable(inputs):
            raise TypeError(f"inputs must be a function that gives the target's arguments of a batch, not {inputs!r}")
        return self.feed.read(batches, device, self.target, inputs, self.plans.batch_dim)

    def stacked(self, networks: Networks, arguments: Arguments, method: str = "forward", chunk_size: int | None = None) -> Any:
        """Call the target once with every network, all on the same inputs; every tensor of the output is ``(S, ...)``.

        Args:
            networks: S networks.
            arguments: The arguments of the call.
            method: Which method or submodule of the target is called, or which property is read.
            chunk_size: Networks that vmap runs at once; all by default.

        Raises:
            TypeError: If the target can't run and none of its inputs is a floating-point tensor.
        """
        if chunk_size is not None:
            chunk_size = whole("chunk_size", chunk_size)
        outputs, used = self._run(networks, arguments, method, chunk_size)
        return _tied(stack(outputs), used, len(outputs))

    def joined(self, networks: Networks, arguments: Arguments, method: str = "forward") -> Any:
        """Call the target with every network on its part of the inputs; one output, in the order of the inputs.

        Args and errors as in `stacked`.
        """
        try:
            outputs, used = self._run(networks, arguments, method)
        except Exception as error:
            if arguments.sizes is not None and len(arguments.sizes) > 1 and _SHAPES.search(str(error)):
                _explain(error, arguments)
            raise
        if len(outputs) == 1:
            return _tied(outputs[0], used, 1)
        sizes = arguments.sizes or [1] * len(outputs)
        joined = join(outputs, sizes, *self.plans.joint(networks, arguments, method, outputs))
        return _tied(joined, used, len(outputs))

    def single(self, networks: Networks, arguments: Arguments, method: str, index: int = 0) -> Any:
        """The output of one network alone, of whatever kind it is; args as in `stacked`.

        Raises:
            RuntimeError: If it calls a method of the target that returns nothing.
        """
        networks, index = networks.at(index)
        self.plans.check_part(networks, arguments, method)
        (output,), used = self._run(networks, arguments.alone(index), method)
        if output is None and method != "forward":
            raise RuntimeError(
                f"{type(self.target).__name__}.{method} returns nothing, so it is meant to change the target, which runs of "
                "networks leave as it was; call it before the target is wrapped"
            )
        if method != "forward":
            output = tree_map(self.replicas.original_of, output)
        return _tied(output, used, 1)

    def _run(
        self, networks: Networks, arguments: Arguments, method: str, chunk_size: int | None = None
    ) -> tuple[list[Any], Networks]:
        """The output of every network, and the networks whose replicas a backward pass may run again."""
        inputs = any(one.requires_grad for one in arguments.tensors)
        graph = torch.is_grad_enabled() and (networks.recorded or inputs or self.replicas.trained)
        try:
            if graph or arguments.parts or len(networks) <= ROUND:
                return self._at_once(networks, arguments, method, chunk_size)
            outputs = []
            for start in range(0, len(networks), ROUND):
                round_ = networks.some(slice(start, start + ROUND))
                outputs += self._at_once(round_, arguments, method, chunk_size)[0]
                del round_  # its replicas serve the next
            return outputs, networks
        except (RuntimeError, TypeError) as error:
            dtypes = {tensor.dtype for tensor in arguments.tensors}
            if not dtypes or any(dtype.is_floating_point for dtype in dtypes) or "type" not in str(error):
                raise
            raise TypeError(
                f"{type(self.target).__name__} cannot run on inputs of {', '.join(map(str, dtypes))}; "
                "convert them to floating point, as in x.float() / 255"
            ) from error

    def _at_once(
        self, networks: Networks, arguments: Arguments, method: str, chunk_size: int | None
    ) -> tuple[list[Any], Networks]:
        if is_followed():
            return self._followed(networks, arguments, method), networks
        habits, run = self.replicas.habits, self.replicas.run_of(method)
        networks.follow()
        if habits.writes_weights and not networks.recorded:
            networks = networks.some(slice(None))  # what the target writes is gone after the call
        runner = self._chosen(networks, arguments, method, chunk_size)
        if run in habits.seen:
            return runner(), networks
        with self._first:
            return (runner() if run in habits.seen else self._watched(run, networks, runner)), networks

    def _followed(self, networks: Networks, arguments: Arguments, method: str) -> list[Any]:
        """The output of every network as a tracer follows it: the target itself runs, with one after the other in it."""
        own = dict(self.target.named_buffers()) if any(self.replicas.modes) else {}
        outputs = []
        with self._first:
            for index, row in zip(range(arguments.parts or len(networks)), rows_of(networks.weights), strict=False):
                buffers = {**own, **{name: value[index] for name, value in networks.buffers.items()}}
                buffers = {name: value.clone() for name, value in buffers.items()} if own else buffers
                with filled(self.target, self.replicas.places, row, buffers):
                    args, kwargs = arguments.of(index)
                    outputs.append(call(self.target, method, args, kwargs))
        return outputs

    def _watched(self, run: tuple[Any, ...], networks: Networks, runner: Callable[[], list[Any]]) -> list[Any]:
        """The first run of its kind: on clones, and what it does is noted."""
        habits = self.replicas.habits
        habits.watch = watch = Watch(self._own)
        try:
            outputs = runner()
        finally:
            habits.watch = None
        check_reach([leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)], self._own)
        habits.learn(run, watch)
        self._tell(watch, training=any(run[1:]))
        networks.settle(habits.writes_weights)
        return outputs

    def _tell(self, watch: Watch, training: bool) -> None:
        """Name what a run changes that networks can't have of their own."""
        kind = type(self.target).__name__
        written = [name for name, one in self.target.named_parameters() if watch.wrote([one])]
        if written:
            warnings.warn(
                f"{', '.join(written)} of {kind} are parameters that are not generated, and a run writes to them: all networks "
                "change the same ones; make them buffers, of which every network has its own",
                stacklevel=2,
            )
        if watch.made and training:
            warnings.warn(
                f"{', '.join(sorted(watch.made))} of {kind} become buffers in a run in training mode, and are gone after it: "
                "register them with a tensor when the module is made, so that every network keeps its own",
                stacklevel=2,
            )

    def _chosen(self, networks: Networks, arguments: Arguments, method: str, chunk_size: int | None) -> Callable[[], list[Any]]:
        habits, loop, backend = self.replicas.habits, BACKENDS["loop"], self.backend
        if backend is None:
            backend = (
                loop if habits.keeps_state or networks.settings else BACKENDS[self.choices.of(networks, arguments, method)]
            )
        if type(backend) is Loop or not backend.takes(arguments):
            return functools.partial(loop.run, networks, arguments, method)
        return functools.partial(self._or_loop, backend, networks, arguments, method, chunk_size)

    def _or_loop(
        self, backend: Backend, networks: Networks, arguments: Arguments, method: str, chunk_size: int | None
    ) -> list[Any]:
        """Run networks; one after the other, if a backend can't."""
        try:
            return backend.run(networks, arguments, method, chunk_size)
        except Exception as error:
            outputs = BACKENDS["loop"].run(networks, arguments, method)
            if self.backend is None:
                self.choices.refuse(networks, arguments, method)
            else:
                self.backend = BACKENDS["loop"]
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(
                    f"{type(backend).__name__} cannot run {type(self.target).__name__}, so its networks run one after the "
                    f"other: {reason}",
                    stacklevel=2,
                )
            return outputs


def is_followed() -> bool:
    """Whether `torch.jit.trace` or `torch.export` follows what runs."""
    return torch._C._get_tracing_state() is not None or is_exported()


def is_exported() -> bool:
    """Whether `torch.export` follows what runs."""
    flag = getattr(torch.compiler, "_is_exporting_flag", None)  # is_exporting() is always true under torch.compile up to 2.11
    return torch.compiler.is_exporting() if flag is None else bool(flag)


def _tied(outputs: Any, networks: Networks, count: int) -> Any:
    """The same outputs, whose graph refers to the networks that it came from.

    The nodes that do are none that a replica could refer to itself, lest the two keep each other alive.
    """

    def tie(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.requires_grad:
            return leaf
        if count == 1 or leaf.grad_fn is None:
            leaf = leaf.clone()
        assert leaf.grad_fn is not None
        leaf.grad_fn.metadata["networks"] = networks
        return leaf

    return tree_map(tie, outputs)


_SHAPES = re.compile("shape|size|dimension|index|batch|length|sequence|dim ", re.IGNORECASE)


def _explain(error: Exception, arguments: Arguments) -> None:
    """Add to an error of the target how its inputs were dealt out."""
    shapes = [tuple(leaf.shape) for leaf, axis in zip(arguments.leaves, arguments.axes, strict=True) if axis is not None
              and isinstance(leaf, Tensor)]  # fmt: skip
    note = (
        f"In training the batch of {arguments.batch} is dealt out to {arguments.parts} networks, along the first axis unless "
        f"batch_dim says where it lies; it was found in inputs {', '.join(map(str, shapes)) or 'in a list'}. For graphs, "
        "packed sequences and losses over the batch take deal='batch'."
    )
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        error.args = (f"{error}\n{note}",)


class _Plainly(functools.partial[Any]):
    """`nn.Module`'s own way of saving a module's state, in place of one that reads parameters that are generated."""


def _save_plainly(module: nn.Module) -> None:
    for name in ("_save_to_state_dict", "_load_from_state_dict"):
        if getattr(type(module), name) is not getattr(nn.Module, name) and not type(module).__module__.startswith("torch."):
            object.__setattr__(module, name, _Plainly(getattr(nn.Module, name), module))


def _refuse_scripted(target: nn.Module, generated: Mapping[str, Tensor]) -> None:
    scripted = [path for path, module in target.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    inside = [name for name in generated for path in scripted if not path or name.startswith(f"{path}.")]
    if inside:
        raise ValueError(
            f"{', '.join(inside)} belong to modules that were scripted or traced, into which no weights can be put; wrap the "
            f"target before torch.jit, or keep them as they are with exclude={inside}"
        )


def copied_with_target(module: Any, memo: dict[int, Any]) -> Any:
    """A deep copy of a module that has an `executor`, whose target is copied first and in its own way."""
    copy.deepcopy(module.executor, memo)
    twin = memo[id(module)] = object.__new__(type(module))
    twin.__setstate__(copy.deepcopy(module.__getstate__(), memo))
    return twin
