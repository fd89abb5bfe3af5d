"""Ensemble: a fixed set of sampled networks."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet import folder as files
from lightning_hypernet import recipe as recipes
from lightning_hypernet.archive import ArchiveError, Stored, another, differing, listed, refuse
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.plugins import plugins_with
from lightning_hypernet.population import StackedTensors, StoredLatents
from lightning_hypernet.target.choice import Choices
from lightning_hypernet.target.execution import Executor, copied_with_target, is_followed
from lightning_hypernet.target.joining import stack
from lightning_hypernet.target.layout import read_batch_dim
from lightning_hypernet.target.loaders import Feed, check_loader
from lightning_hypernet.target.networks import Networks
from lightning_hypernet.target.reduction import Reduction, check_reduction, reduce_outputs
from lightning_hypernet.target.replicas import version_of
from lightning_hypernet.uncertainty import Predicting
from lightning_hypernet.uncertainty.calibration import problems
from lightning_hypernet.values import instance, whole


class _Signed:
    """A module's forward, with the signature of that of the networks in it, which exporters read.

    Args:
        forward: The method.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self.__doc__ = forward.__doc__

    def __get__(self, module: Any, owner: Any = None) -> Any:
        if module is None:
            return self.forward
        bound = functools.partial(self.forward, module)
        if not torch.compiler.is_compiling():  # nobody reads it while a graph is made
            bound.__wrapped__ = module.network.forward  # type: ignore[attr-defined]
        return bound


class Joined(nn.Module):
    """Plain networks whose outputs are joined.

    Args:
        networks: The networks.
        reduce: How their outputs are joined, as in `Ensemble`.
    """

    def __init__(self, networks: Iterable[nn.Module], reduce: Reduction = "mean") -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.reduce = reduce

    @property
    def network(self) -> nn.Module:
        """The first of the networks."""
        return self.networks[0]

    @_Signed
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The joined outputs of all networks on the same inputs."""
        return reduce_outputs(stack([network(*args, **kwargs) for network in self.networks]), self.reduce)


class Ensemble(Predicting):
    """A fixed set of networks of one target, evaluated together.

    The networks are set up once; calling them writes nothing, so that any number of threads may.

    Args:
        executor: Runs the target; the ensemble owns it.
        weights: ``{name: (members, *shape)}`` for every generated parameter.
        statistics: ``{name: (members, *shape)}``, the norm statistics of every member; empty: the target's own.
        latents: What the members were generated from.
        reduce: How their outputs are joined: ``"mean"``, ``"log_mean_prob"``, ``"majority"`` or None, or a mapping with the
            ``name`` and ``dim``, the axis of the classes.
    """

    def __init__(
        self,
        executor: Executor,
        weights: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        latents: Latents,
        reduce: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.executor = executor
        self.target = executor.target
        self.reduce = reduce
        with torch.inference_mode(False):
            self.weights = StackedTensors({name: value.detach().clone() for name, value in weights.items()})
            self.statistics = StackedTensors({name: value.detach().clone() for name, value in statistics.items()})
            self.stored = StoredLatents(latents)
        self._made: tuple[Any, Networks] | None = None
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the networks, which are set up anew."""
        return {**self.__dict__, "_made": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copied_with_target(self, memo)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.executor.replicas.clear()
        self._made = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Ensemble:
        """Set the mode; what runs changed in the members is forgotten, and the target's attributes are read anew."""
        if self.executor.replicas.refresh() or mode != self.training:
            self._made = None
        return super().train(mode)

    @property
    def networks(self) -> Networks:
        """The members' networks, set up anew when weights or statistics have changed."""
        weights, statistics = self.weights.tensors(), self.statistics.tensors()
        if is_followed():
            return self.executor.networks(weights, statistics)
        state = [(id(one), version_of(one)) for one in (*weights.values(), *statistics.values())]
        made = self._made
        if made is None or made[0] != state:
            made = self._made = (state, self.executor.networks(weights, statistics))
        return made[1]

    def __len__(self) -> int:
        return len(self.stored.z)

    @property
    def latents(self) -> Latents:
        """What the members were generated from."""
        return self.stored.latents()

    def __getitem__(self, index: slice) -> Ensemble:
        """Some of the members, as an ensemble with a copy of the target; all of them alone keep what `calibrate` fitted."""
        if not isinstance(index, slice):
            raise TypeError(
                f"an ensemble is indexed by a slice, not by {type(index).__name__}; materialize() gives single members"
            )
        if not len(range(len(self))[index]):
            raise ValueError(f"there are {len(self)} members, and {index} leaves no member")
        part = Ensemble(
            copy.deepcopy(self.executor),
            {name: value[index] for name, value in self.weights.tensors().items()},
            {name: value[index] for name, value in self.statistics.tensors().items()},
            self.latents[index],
            self.reduce,
        )
        part.calibration = self.calibration.part(index, len(self))
        return part

    @property
    def network(self) -> nn.Module:
        """Any of the networks, without its weights."""
        return self.target

    @_Signed
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The joined outputs of the members."""
        return reduce_outputs(self.members(*args, **kwargs), self.reduce, (*args, *kwargs.values()))

    def members(self, *args: Any, chunk_size: int | None = None, **kwargs: Any) -> Any:
        """The outputs of all members, every tensor ``(members, ...)``; vmap runs `chunk_size` members at once."""
        arguments = self.executor.plans.arguments(self.target, args, kwargs)
        return self.executor.stacked(self.networks, arguments, chunk_size=chunk_size)

    def update_statistics(
        self, loader: Iterable[Any], batches: int | None = None, inputs: Callable[[Any], Any] | None = None
    ) -> None:
        """Estimate the norm statistics of every member, and whatever else training changes in buffers, in one pass for all.

        The cumulative average over batches, as `torch.optim.swa_utils.update_bn` computes it.

        Args:
            loader: Training data, whose batches reach the target as in `Hypernet.update_statistics`.
            batches: Stop after that many; None: read all.
            inputs: Gives what the target is called with of a batch, as in `Hypernet.update_statistics`.

        Raises:
            ValueError: If the loader is empty, or it is not clear how its batches reach the target.
        """
        check_loader(loader, part=batches is not None)
        if self.executor.statistics.possible:
            self.statistics = StackedTensors(self._estimate(self.weights.tensors(), loader, batches, inputs))
            if self.calibration.fitted:
                self.calibration.forget()
                warnings.warn("the ensemble was calibrated with other norm statistics: calibrate it again", stacklevel=2)

    def _estimate(
        self, weights: Mapping[str, Tensor], loader: Iterable[Any], batches: int | None, inputs: Callable[[Any], Any] | None
    ) -> dict[str, Tensor]:
        some = loader if batches is None else itertools.islice(loader, whole("batches", batches))
        return self.executor.statistics.estimate(weights, self.executor.read(some, self.stored.z.device, inputs))

    def materialize(self) -> list[nn.Module]:
        """Every member as a plain copy of the target, with norm statistics of its own."""
        return self.executor.materialize_all(self.weights.tensors(), self.statistics.tensors())

    def to_module(self) -> nn.Module:
        """One plain module that gives what the ensemble does, its members with parameters and buffers of their own.

        It needs nothing of a hypernetwork to run, to be exported by `torch.export` or `torch.onnx`, or to be trained further.
        """
        module = Joined(self.materialize(), self.reduce)
        module.training = self.training
        return module

    def average(
        self, loader: Iterable[Any] | None = None, batches: int | None = None, inputs: Callable[[Any], Any] | None = None
    ) -> nn.Module:
        """Average the weights of all members, as they are, into one network, and estimate its norm statistics.

        References:
            | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
            | https://arxiv.org/abs/1905.02898, section 4.4

        Args:
            loader: Training data as in `update_statistics`; needed if the target has norm layers with running statistics.
            batches: Stop after that many; None: read all.
            inputs: As in `update_statistics`.

        Returns:
            A plain copy of the target.

        Raises:
            ValueError: If the target needs a loader and none is given.
        """
        if len(self.latents.component.unique()) > 1:
            warnings.warn(
                "the members belong to several components of the prior, whose weights do not average well; "
                "draw them from one, as in hypernet.ensemble(n, component=0)",
                stacklevel=2,
            )
        if loader is not None:
            check_loader(loader, part=batches is not None)
        mean = {name: value.mean(0, keepdim=True) for name, value in self.weights.tensors().items()}
        statistics: dict[str, Tensor] = {}
        if self.executor.statistics:
            if loader is None:
                raise ValueError("the averaged network needs norm statistics of its own: pass a loader of training data")
            statistics = self._estimate(mean, loader, batches, inputs)
        return self.executor.materialize(
            {name: value[0] for name, value in mean.items()}, {name: value[0] for name, value in statistics.items()}
        )

    def save(self, folder: str | Path, recipe: Mapping[str, Any] | None = None) -> None:
        """Store the ensemble as safetensors and a JSON recipe; nothing is pickled.

        Args:
            folder: Made if it does not exist.
            recipe: How to build the target: ``{"class_path": "timm.create_model", "init_args": {...}}``; None: `load` is given
                a target.

        Raises:
            TypeError: If the recipe, or the options of the backend, are no plain values.
        """
        recipes.check(recipe)
        content = {
            "members": len(self),
            "reduce": self.reduce,
            "execution": self.executor.choice,
            "choices": self.executor.choices.made,
            "frozen": self.executor.statistics.frozen,
            "feed": self.executor.feed.seen,
            "aliases": self.executor.aliases,
            "batch_dim": self.executor.plans.batch_dim,
            "target": None if recipe is None else dict(recipe),
        }
        state = self.state_dict()
        odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
        if odd:
            raise TypeError(f"{', '.join(odd)} of {type(self.target).__name__} is no tensor, and tensors alone are stored")
        files.PAIR.write(folder, content, {name: value.clone().contiguous() for name, value in state.items()})

    @classmethod
    def load(
        cls, folder: str | Path, target: nn.Module | None = None, plugins: Sequence[object] = (), trust: bool = False
    ) -> Ensemble:
        """Load what `save` stored; all of it is checked first.

        Args:
            folder: The folder.
            target: A module built like the target; its weights do not matter. None: it is built from the recipe, which may name
                `timm.create_model`, with plain arguments that lead to no file, or a class of modules that is loaded already.
            plugins: Plug-ins beside the installed ones, if one of them brought the backend.
            trust: Import whatever the recipe names, and let timm read what it names: for folders of your own alone.

        Raises:
            ValueError: If there is neither a target nor a recipe, the tensors are not whole or do not fit the target, or the
                format is another; the message lists all that is wrong.
        """
        if target is not None:
            instance("target", target, nn.Module, "a module built like the one that was saved")
        content, tensors = files.read(folder)
        if target is None:
            if content["target"] is None:
                raise ValueError(f"{folder} holds no recipe of the target: pass target=..., a module built like it")
            target = recipes.build_for(folder, content["target"], tensors, "weights.", trust)
        groups: dict[str, dict[str, Stored]] = {name: {} for name in files.GROUPS}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            if group != "target" and "." in rest:
                refuse(folder, [f"{name} has a dot in its name, where / stands"])
            groups.setdefault(group, {})[rest if group == "target" else rest.replace("/", ".")] = tensor
        there = {name: [kind, *shape] for name, (kind, _, *shape) in listed(groups["weights"]).items()}
        parameters = listed(dict(target.named_parameters()))
        found = list(files.misfits(content, groups, target))
        refuse(folder, another({**there, **listed(groups["target"])}, parameters, found))
        refuse(folder, (f"calibration.{text}" for text in problems(groups["calibration"], content["members"])))
        execution = content["execution"]
        try:
            check_reduction(content["reduce"])
            read_batch_dim(content["batch_dim"])
            backend = plugins_with(plugins).backend(execution)
        except (TypeError, ValueError) as error:
            raise ArchiveError(f"{folder} can't be loaded: {error}") from error
        executor = Executor(target, content["aliases"], backend, execution, content["batch_dim"])
        kept = {name: value for name, value in executor.target.state_dict().items() if isinstance(value, Tensor)}
        refuse(folder, differing(groups["target"], listed(kept), type(target).__name__))
        read = {group: {name: tensor.read() for name, tensor in some.items()} for group, some in groups.items()}
        refuse(folder, files.odd_numbers(read))
        executor.statistics.frozen = content["frozen"]
        executor.choices = Choices(content["choices"])
        executor.feed = Feed(content["feed"])
        executor.statistics.expect(read["statistics"])
        own = OrderedDict(read["target"])
        own._metadata = executor.target.state_dict()._metadata  # type: ignore[attr-defined]
        executor.target.load_state_dict(own)
        stored = read["stored"]
        latents = Latents(stored["z"], stored["component"].long(), stored["context"])
        ensemble = cls(executor, read["weights"], read["statistics"], latents, content["reduce"])
        ensemble.calibration.take(read["calibration"])
        return ensemble
