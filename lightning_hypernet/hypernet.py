"""Hypernet: a module whose weights are drawn from a generator."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.generator import Generator, GeneratorConfig
from lightning_hypernet.generator.latents import Prior
from lightning_hypernet.plugins import Plugins
from lightning_hypernet.population import Population, StackedTensors
from lightning_hypernet.summary import summarize
from lightning_hypernet.symmetry.alignment import symmetry_distance
from lightning_hypernet.symmetry.gauge import Gauge, GaugeName, NoGauge, ScaleGauge, build_gauge
from lightning_hypernet.symmetry.graph import SymmetryError
from lightning_hypernet.symmetry.order import Block
from lightning_hypernet.symmetry.reading import read_permutations, read_structure, read_symmetries
from lightning_hypernet.symmetry.scale import ChannelGroups
from lightning_hypernet.target.arguments import Arguments, Reduction, inputs_of, reduce_outputs, stack
from lightning_hypernet.target.execution import ExecutionMode, Executor, Tensors
from lightning_hypernet.target.facade import Part, PartCalls, attribute_of, set_attribute
from lightning_hypernet.target.filters import Structure, find_filters
from lightning_hypernet.target.modes import evaluating

_CALIBRATION_EXAMPLES = 2048
_FIRST_LATENTS = 64
_COMPARED = ("latent_dim", "components", "samples", "members", "prior", "generator", "gauge", "execution", "reduce")
_T = TypeVar("_T")


class Hypernet(nn.Module):
    """A drop-in for a module whose weights come from a hypernetwork.

    In training every call draws `samples` networks and deals the batch out to them: each network sees other examples, and
    the outputs come back in the order of the inputs, so that the mean of any loss per example is the Monte Carlo estimate
    of its expectation over z. In evaluation the outputs of `members` fixed networks are joined.

    What the target offers beside its weights, attributes and methods, the Hypernet offers too, unless it has the name itself
    (`target` is the target); a method runs as `forward` does, or on one network if it takes no tensor. Attributes are set on
    the target as well.

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898

    Args:
        target: Any module. It is copied, never changed.
        example_inputs: A tensor or a tuple of arguments of the target; None: an input of the size a timm model names, if it
            is one. With them the graph of the target shows which norm layer scales which filters, and which layer is the last;
            without, the order of the modules.
        latent_dim: Numbers in z.
        prior: ``"normal"``, ``"uniform"`` on [-1, 1], or a distribution of single numbers or of vectors of `latent_dim`.
        components: Mean codes per filter, and mean weights; more than 1 makes the prior a mixture of that many families of
            networks. In training what each has of its own gets its gradient times this number, so that the target's learning
            rate fits.
        samples: Networks drawn for each training batch.
        members: Networks of the evaluation ensemble.
        generator: What the generator is made of, as a `GeneratorConfig` or the mapping of its fields.
        generate: Glob patterns over parameter names; what is left stays an ordinary parameter.
        exclude: Glob patterns of parameters that are not generated after all.
        gauge: What weight-space diversity losses see: ``"auto"`` and ``"scale"`` fix the scale of every channel group that the
            graph of the target shows, ``"softmax"`` also the shift of the logits, ``"permutation"`` also the order of channels,
            ``"none"`` nothing; or a `Gauge`. A target
            that can't be exported has no gauge and warns under ``"auto"``, and is an error otherwise. The graph is read once,
            from the example inputs or the first batch.
        execution: ``"auto"``, ``"loop"`` or ``"vmap"``.
        reduce: How evaluation joins members: ``"mean"``, ``"log_mean_prob"``, ``"majority"`` or None, which returns
            ``(members, batch, ...)``.
        plugins: Plug-ins beside the installed ones.
        structure: Which norm layer scales which filters and which layer is the last, as checkpoints keep it; None: it is read.

    Raises:
        ValueError: If an argument is out of range, a pattern matches nothing or there is nothing to generate.

    Example:
        >>> hypernet = Hypernet(nn.Linear(4, 2), samples=3)
        >>> hypernet(torch.randn(8, 4)).shape
        torch.Size([8, 2])
        >>> len(hypernet.materialize(hypernet.sample(5)))
        5
    """

    member_latents: Tensor
    _member_components: Tensor
    calibrated: Tensor

    def __init__(
        self,
        target: nn.Module,
        example_inputs: Tensor | tuple[Any, ...] | None = None,
        latent_dim: int = 64,
        prior: Literal["normal", "uniform"] | torch.distributions.Distribution = "normal",
        components: int = 1,
        samples: int = 8,
        members: int = 10,
        generator: GeneratorConfig | Mapping[str, Any] | None = None,
        generate: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        gauge: GaugeName | Gauge = "auto",
        execution: ExecutionMode = "auto",
        reduce: Reduction = "mean",
        plugins: Sequence[object] = (),
        structure: Structure | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        counts = {"latent_dim": latent_dim, "components": components, "samples": samples, "members": members}
        problems = [f"{name} must be 1 or more, not {value!r}" for name, value in counts.items() if value < 1]
        if not isinstance(gauge, Gauge) and gauge not in get_args(GaugeName):
            problems.append(f"gauge must be one of {get_args(GaugeName)} or a Gauge, not {gauge!r}")
        if reduce not in get_args(Reduction):
            problems.append(f"reduce must be one of {get_args(Reduction)}, not {reduce!r}")
        if problems:
            raise ValueError("; ".join(problems))
        if isinstance(target, Hypernet):
            raise TypeError("the target is a Hypernet already; wrap the module that it was made from")
        config = _config(generator)
        others = {"prior": prior, "generator": config, "gauge": gauge, "execution": execution, "reduce": reduce}
        self.options = counts | {name: _recorded(name, value) for name, value in others.items()}
        self.latent_dim, self.components, self.samples = latent_dim, components, samples
        self.prior = Prior(prior, latent_dim, components)
        self.reduce = reduce
        self._gauge = NoGauge() if gauge == "none" else gauge
        generate, exclude = ((names,) if isinstance(names, str) else names for names in (generate, exclude))
        reference = next(target.parameters(), torch.zeros(()))
        self.examples = _examples(target, example_inputs, reference)
        if isinstance(structure, Mapping):
            structure = Structure(**structure)
        if structure is None and self.examples is not None:
            structure = self._read_structure(target, guessed=example_inputs is None)
        self.options["structure"] = dataclasses.asdict(structure) if structure else None
        rules = Plugins(plugins).rules
        self.banks = find_filters(target, rules, generate, exclude, config.merge, config.merge_limit, structure)
        self.options |= {"generate": ["*"], "exclude": list(self.banks.ordinary)}
        named = dict(target.named_parameters(remove_duplicate=False))
        initial = {name: named[name] for name in self.banks.shapes}
        self.executor = Executor(target, self.banks.aliases, execution)
        self.target = self.executor.target
        first, _ = self.prior.draw(_FIRST_LATENTS)
        self.generator = Generator(self.banks, initial, config, latent_dim, components, first)
        self.generator.to(next(iter(initial.values())).device)
        self.diversity: nn.Module | None = None
        self.population: Population | None = None
        self.diversity_read = False
        self._groups: ChannelGroups | None = None
        self._blocks: Sequence[Block] | None = None
        self._in_step = False
        self._smallest = 2 if any(isinstance(module, _BatchNorm) for module in self.target.modules()) else 1
        self._calls = PartCalls()
        self._recent: deque[Arguments] = deque()
        self._members: tuple[tuple[int, ...], Population] | None = None
        latents, chosen = self._draw(members)
        self.register_buffer("member_latents", latents)
        self.register_buffer("_member_components", chosen.to(latents))
        self.member_statistics = StackedTensors(
            {name: value.repeat(members, *(1,) * value.ndim) for name, value in self.executor.statistics.items()}
        )
        self.register_buffer("calibrated", torch.tensor(0.0 if self.executor.statistics else 1.0))
        self.training = target.training
        self.generator.train(target.training)
        self._built = True

    def __getattr__(self, name: str) -> Any:
        """What the Hypernet does not have itself, its target may."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            target = self.__dict__.get("_modules", {}).get("target")
            if target is None or name.startswith("_"):
                raise
            return attribute_of(target, name, self._call, self.banks.aliases)

    def __setattr__(self, name: str, value: Any) -> None:
        """What the Hypernet does not have itself and its target has is set there."""
        if self.__dict__.get("_built") and not name.startswith("_") and not self._has(name) and hasattr(self.target, name):
            set_attribute(self.target, name, value)
        else:
            super().__setattr__(name, value)

    def __getitem__(self, key: Any) -> Any:
        """An item of a target that is a container."""
        return self._items[key]

    def __iter__(self) -> Iterator[Any]:
        """The items of a target that is a container."""
        return iter(self._items)

    def __len__(self) -> int:
        """How many items a target has that is a container."""
        return len(self._items)

    def __bool__(self) -> bool:
        """True, as modules are."""
        return True

    @property
    def _items(self) -> Part:
        return Part(self.target, "", self._call, self.banks.aliases)

    def _has(self, name: str) -> bool:
        places = (self.__dict__, self._parameters, self._buffers, self._modules)
        return hasattr(type(self), name) or any(name in place for place in places)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but what belongs to the present step."""
        return {**self.__dict__, "population": None, "_members": None, "_recent": deque(), "_calls": PartCalls()}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._members = None
        self._recent = deque(arguments.map(fn) for arguments in self._recent)
        self.examples = self.examples and self.examples.map(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Hypernet:
        """Set the mode; the members are drawn anew from the generator as it is when evaluation begins."""
        self._members = None
        self._calls.forget()
        return super().train(mode)

    @property
    def member_components(self) -> Tensor:
        """``(members,)``, which component of the prior each member of the evaluation ensemble belongs to."""
        return self._member_components.round().long()  # kept as floating-point numbers, which averages of weights leave alone

    def get_extra_state(self) -> Tensor:
        """Seed and number of draws of the random generator, and which norm layers are frozen."""
        return torch.tensor([self.prior.seed, self.prior.draws, *self.executor.frozen])

    def set_extra_state(self, state: Tensor) -> None:
        """Continue the random numbers of a checkpoint, bit for bit."""
        self.prior.seed, self.prior.draws, *frozen = map(int, state)
        self.executor.frozen = [bool(one) for one in frozen]

    # Sampling

    def _draw(self, n: int, component: int | None = None) -> tuple[Tensor, Tensor]:
        latents, components = self.prior.draw(n, component)
        reference = next(self.generator.parameters())
        return latents.to(reference), components.to(reference.device)

    def generate(self, latents: Tensor, components: Tensor | int = 0) -> Population:
        """Map latents to networks; the same latents always give the same networks.

        Args:
            latents: ``(n, latent_dim)``.
            components: ``(n,)`` or one number: which component of the prior each belongs to.

        Returns:
            The population.

        Raises:
            ValueError: If the latents have another shape or a component does not exist.
        """
        if latents.ndim != 2 or latents.shape[1] != self.latent_dim or not len(latents):
            raise ValueError(f"latents must be (n, {self.latent_dim}) with n > 0, not {tuple(latents.shape)}")
        components = torch.as_tensor(components, device=latents.device).expand(len(latents))
        if components.min() < 0 or components.max() >= self.components:
            raise ValueError(f"components must lie in 0 to {self.components - 1}, not {components.unique().tolist()}")
        with evaluating(self.generator):
            return self._population(latents.to(self.member_latents), components)

    def _population(self, latents: Tensor, components: Tensor, own_gradient: float = 1.0) -> Population:
        return Population(
            latents,
            components,
            self.generator(latents, components, own_gradient),
            self.banks,
            self.gauge,
            n_components=self.components,
            run=self._run_stacked,
            examples=self.examples,
        )

    # Symmetries

    def _read_structure(self, target: nn.Module, guessed: bool) -> Structure | None:
        """What the graph shows of filters; None if it can't be read. A guess of the inputs that does not fit is given up."""
        assert self.examples is not None
        try:
            return read_structure(target, *self.examples.restore(self.examples.leaves))
        except SymmetryError as error:
            if guessed:
                self.examples = None
            else:
                warnings.warn(f"the order of the modules shows the filters, since {error}", stacklevel=4)
            return None

    @property
    def channel_groups(self) -> ChannelGroups:
        """The channel groups of the target, read off its graph once.

        Raises:
            SymmetryError: If there are no inputs to read it with, or the target can't be exported.
        """
        if self._groups is None:
            self._groups = self._read(read_symmetries)
        return self._groups

    @property
    def channel_blocks(self) -> Sequence[Block]:
        """The blocks of interchangeable channels of the target, read off its graph once.

        Raises:
            SymmetryError: If there are no inputs to read it with, or the target can't be exported.
        """
        if self._blocks is None:
            self._blocks = self._read(read_permutations)
        return self._blocks

    def _read(self, reader: Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Sequence[str]], _T]) -> _T:
        if self.examples is None:
            raise SymmetryError(
                "the symmetries are read with example inputs: give example_inputs, or call the target itself in a training step"
            )
        device = self.member_latents.device.type
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            members = self.generate(self.member_latents[:1], self.member_components[:1])
            (network,) = self.executor.materialize_all(members.weights, {})
            args, kwargs = self.examples.restore(self.examples.leaves)
            return reader(network, args, kwargs, list(self.banks.shapes))

    def gauge(self, weights: Tensors, names: Collection[str] | None = None) -> Tensors:
        """Map weights ``{name: (S, *shape)}`` to their gauge-fixed form, which computes the same functions.

        Args:
            weights: All weights.
            names: Which of them are returned; None: all.

        Returns:
            The gauge-fixed weights.
        """
        if not isinstance(self._gauge, Gauge):
            try:
                self._gauge = build_gauge(self._gauge, self.channel_groups, lambda: self.channel_blocks)
            except SymmetryError as error:
                if self._gauge != "auto":
                    raise
                warnings.warn(f"no gauge is fixed: {error}", stacklevel=2)
                if self.examples is None:  # there may be some later
                    return weights if names is None else {name: weights[name] for name in names}
                self._gauge = NoGauge()
        return self._gauge(weights) if names is None else self._gauge.select(weights, names)

    @torch.no_grad()
    def symmetry_distance(self, one: Population, other: Population) -> Tensor:
        """Distance of networks from others, relative to their size, after scale and permutation symmetries are taken out.

        Args:
            one: S networks.
            other: S networks.

        Returns:
            ``(S,)``: 0 for networks that a symmetry maps to each other, up to about 1.41 for independent ones.

        Raises:
            SymmetryError: If there are no inputs to read the symmetries with, or the target can't be exported.
        """
        return symmetry_distance(one.weights, other.weights, ScaleGauge(self.channel_groups), self.channel_blocks)

    def _run_stacked(self, weights: Tensors, arguments: Arguments) -> Any:
        return stack(self.executor.run(weights, arguments))

    def sample(self, n: int, component: int | None = None) -> Population:
        """Draw networks.

        Args:
            n: How many.
            component: Draw from this component of the prior alone; None: from all, evenly.

        Returns:
            The population.

        Raises:
            ValueError: If n is not positive or the component does not exist.
        """
        if n < 1:
            raise ValueError(f"n must be 1 or more, not {n!r}")
        return self.generate(*self._draw(n, component))

    def run(self, population: Population, *args: Any, chunk_size: int | None = None, **kwargs: Any) -> Any:
        """Call the target with the weights of every network, all on the same inputs, in the present mode.

        Args:
            population: S networks.
            args: Arguments of the target.
            chunk_size: Networks that vmap runs at once; all by default.
            kwargs: Keyword arguments of the target.

        Returns:
            What the target returns, every tensor with a leading axis ``(S, ...)``.
        """
        arguments = Arguments(args, kwargs)
        if not self.training:
            self._ensure_statistics(population)
        return stack(self.executor.run(population.weights, arguments, population.buffers, chunk_size=chunk_size))

    def materialize(self, population: Population) -> list[nn.Module]:
        """Turn every network into a plain copy of the target, whose state dict fits an unwrapped target strictly."""
        self._ensure_statistics(population)
        return self.executor.materialize_all(population.weights, population.buffers)

    def ensemble(self, n: int, component: int | None = None) -> Ensemble:
        """Draw a fixed set of networks, as a module of its own; arguments as in `sample`."""
        population = self.sample(n, component)
        self._ensure_statistics(population)
        return Ensemble(
            copy.deepcopy(self.executor),
            population.weights,
            population.buffers,
            population.latents,
            population.components,
            self.reduce,
        )

    # As a module in place of the target

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the sampled networks in training, the joined members in evaluation; any pytree in and out."""
        return self._call("forward", args, kwargs)

    def _call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = Arguments(args, kwargs, self.samples if self.training else None, self._smallest)
        if not arguments.tensors and method == "forward":
            kinds = ", ".join(type(leaf).__name__ for leaf in arguments.leaves)
            raise TypeError(
                f"no tensor was found in the arguments ({kinds}), so there is no batch to deal out; pass tensors, tuples or "
                "dicts, or register the class with torch.utils._pytree.register_pytree_node"
            )
        if self.training:
            population = self._training_population()
            if method == "forward":
                population.batch = population.batch or arguments
                self.examples = self.examples or arguments.head(2).map(torch.clone)
                self.executor.note_frozen()
                if self.executor.frozen:
                    self.calibrated.zero_()
                    self._remember(arguments)
        else:
            population = self.member_population()
        if not arguments.tensors:
            return self._call_weightless(method, population, arguments)
        outputs = self.executor.run(population.weights, arguments, population.buffers, method)
        if not self.training:
            joined = reduce_outputs(stack(outputs), self.reduce)
            self._calls.note(method, arguments.tensors, outputs, joined)
            return joined

        @torch.no_grad()
        def again(other: Arguments) -> Any:
            return self.executor.run(population[:1].weights, other, population[:1].buffers, method)[0]

        return arguments.join(outputs, again)

    def _remember(self, arguments: Arguments) -> None:
        """Keep the last inputs, as many as norm statistics need."""
        self._recent.append(arguments.head(arguments.batch))
        while sum(one.batch for one in self._recent) - self._recent[0].batch >= _CALIBRATION_EXAMPLES:
            self._recent.popleft()

    def _call_weightless(self, method: str, population: Population, arguments: Arguments) -> Any:
        output = self.executor.run(population[:1].weights, arguments, population[:1].buffers, method)[0]
        if output is None:
            raise RuntimeError(
                f"{type(self.target).__name__}.{method} returns nothing, so it is meant to change the target, which a Hypernet "
                "leaves as it was; call it before the target is wrapped"
            )
        return output

    def _training_population(self) -> Population:
        if not self._in_step or self.population is None:
            # with gradients always: the first call of a step may be one without, and later calls use the same networks
            with torch.inference_mode(False), torch.enable_grad():
                self.population = self._population(*self._draw(self.samples), own_gradient=self.components)
        return self.population

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within, every training call uses the same networks; afterwards they are released."""
        self._in_step, self.population = True, None
        try:
            yield
        finally:
            self._in_step, self.population = False, None

    def member_population(self) -> Population:
        """The networks of the evaluation ensemble, with their norm statistics; kept while nothing changes.

        What is written through ``.data`` is not seen; `train` and `eval` renew them.
        """
        if not self.training and self.calibrated < 1:
            self._warn_uncalibrated()
        tensors = itertools.chain(self.parameters(), self.buffers())
        versions = [tensor._version for tensor in tensors if not tensor.is_inference()]
        state = (torch.is_autocast_enabled(self.member_latents.device.type), *versions)
        if torch.is_grad_enabled() or self._members is None or self._members[0] != state:
            with torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled()):
                members = self.generate(self.member_latents, self.member_components)
                members.buffers = self.member_statistics.tensors()
            if torch.is_grad_enabled():
                return members
            self._members = (state, members)
        return self._members[1]

    # Norm statistics

    @property
    def stale(self) -> bool:
        """Whether training went on since the norm statistics of the members were estimated, on inputs that are at hand."""
        return bool(self._recent) and bool(self.calibrated < 1)

    def calibrate(self, batches: Iterable[Any] | None = None, population: Population | None = None) -> None:
        """Estimate the running statistics of every network's norm layers, in one pass over the data.

        Networks that are sampled later get theirs from the last 2,048 or so of these inputs.

        Args:
            batches: Inputs of the target, or tuples that begin with them, such as a loader of training data gives; None:
                the last inputs seen.
            population: The networks; None: the members of the evaluation ensemble.

        Raises:
            ValueError: If there are no batches.
        """
        if not self.executor.statistics:
            return
        with torch.no_grad():
            chosen = population or self.generate(self.member_latents, self.member_components)
            statistics = self.executor.norm_statistics(chosen.weights, self._calibration_inputs(batches))
            if population is not None:
                population.buffers = statistics
                return
            if distributed.is_available() and distributed.is_initialized():
                for value in statistics.values():
                    if value.is_floating_point():
                        distributed.all_reduce(value.div_(distributed.get_world_size()))
            self.member_statistics.update(statistics)
            self.calibrated.fill_(1.0)
        self._members = None

    def _calibration_inputs(self, batches: Iterable[Any] | None) -> Iterator[Arguments]:
        if batches is None:
            yield from list(self._recent)
            return
        for arguments in inputs_of(batches, self.member_latents.device):
            self._remember(arguments)
            yield arguments

    def _ensure_statistics(self, population: Population) -> None:
        if not self.executor.statistics or population.buffers:
            return
        if self._recent:
            self.calibrate(population=population)
        else:
            self._warn_uncalibrated()

    def _warn_uncalibrated(self) -> None:
        warnings.warn(
            f"the norm statistics of these networks of {type(self.target).__name__} were never estimated, or with other "
            "weights; call hypernet.calibrate(loader) with training data",
            stacklevel=4,
        )

    # Reports

    def differences(self, options: Mapping[str, Any]) -> list[str]:
        """Which of these arguments are others than the Hypernet was built with, in words; patterns and inputs aside."""
        recorded = {name: _recorded(name, options[name]) for name in _COMPARED if name in options}
        return [
            f"{name}={self.options[name]!r}, not {value!r}" for name, value in recorded.items() if value != self.options[name]
        ]

    def diversity_loss(self) -> Tensor:
        """The weighted diversity losses of the last training forward, for a training loop of one's own.

        Raises:
            RuntimeError: If no diversity was chosen or nothing was drawn.
        """
        self.diversity_read = True
        if self.diversity is None or self.population is None:
            raise RuntimeError("diversity_loss() needs a diversity, which the callback sets, and a training forward before it")
        total: Tensor = self.diversity.total(self.diversity(self.population))  # type: ignore[operator]
        return total

    def summary(self) -> str:
        """A table that names every parameter of the target: its bank and its gauge, or why it is left as it is."""
        try:
            groups = self.channel_groups
        except SymmetryError as error:
            return f"{summarize(self.banks, self.target, self.generator, None)}\nsymmetries not read: {error}"
        return summarize(self.banks, self.target, self.generator, groups)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, target: nn.Module, name: str | None = None, plugins: Sequence[object] = (), **changes: Any
    ) -> Hypernet:
        """Load a Hypernet from a Lightning checkpoint that a `HypernetCallback` wrote, without the LightningModule.

        Args:
            path: The checkpoint; read with ``weights_only=True``.
            target: A module built like the target that was wrapped; its weights do not matter.
            name: The callback's `target`, if there were several.
            plugins: Plug-ins that were passed to the callback.
            changes: Options that shall differ from those of the training, such as `gauge`, `execution` or `reduce`.

        Raises:
            ValueError: If the checkpoint holds no such Hypernet, or its prior was a distribution object.
        """
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        recipes = checkpoint.get("hypernet", {})
        name = next(iter(recipes), None) if name is None else name
        if name not in recipes:
            raise ValueError(
                f"{path} holds no Hypernet for the target {name!r}; it has {list(recipes)} "
                "(save_weights_only=True leaves them out)"
            )
        options, prefix = recipes[name]["options"], recipes[name]["prefix"]
        if options["prior"] is None:
            raise ValueError(f"the prior in {path} was a distribution object; build the Hypernet and load its state dict")
        hypernet = cls(target, plugins=plugins, **{**options, **changes})
        state = {
            key.removeprefix(prefix): value
            for key, value in checkpoint["state_dict"].items()
            if key.startswith(prefix) and not key.startswith(f"{prefix}diversity.")
        }
        hypernet.load_state_dict(state)
        return hypernet.eval()


def _config(generator: GeneratorConfig | Mapping[str, Any] | None) -> GeneratorConfig:
    return GeneratorConfig(**generator) if isinstance(generator, Mapping) else generator or GeneratorConfig()


def _recorded(name: str, value: Any) -> Any:
    """An argument as `Hypernet.options` and checkpoints keep it."""
    if name == "generator":
        return _plain(dataclasses.asdict(_config(value)))
    if name in ("prior", "gauge") and not isinstance(value, str):
        return {"prior": None, "gauge": "none"}[name]
    return value


def _plain(value: Any) -> Any:
    """Lists in place of tuples, all the way down, as a checkpoint and YAML hold them."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _examples(target: nn.Module, example_inputs: Any, reference: Tensor) -> Arguments | None:
    if example_inputs is None:
        size = (getattr(target, "pretrained_cfg", None) or {}).get("input_size")
        if size is None:
            return None
        example_inputs = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(reference)
    arguments = Arguments(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,), {})
    return arguments.head(2).map(lambda tensor: tensor.to(reference.device))
