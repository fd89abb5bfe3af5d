"""Hypernet: a module whose weights are drawn from a generator."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_hypernet import checkpoint
from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.generator import GeneratorConfig, Prior
from lightning_hypernet.members import Members, warn_of_statistics
from lightning_hypernet.plugins import Plugins
from lightning_hypernet.population import Population
from lightning_hypernet.sampler import Sampler
from lightning_hypernet.summary import summarize
from lightning_hypernet.symmetry.gauge import Gauge
from lightning_hypernet.symmetry.graph import SymmetryError
from lightning_hypernet.target.arguments import Arguments, Reduction, reduce_outputs
from lightning_hypernet.target.execution import is_exported, is_followed
from lightning_hypernet.target.facade import Facade, PartCalls
from lightning_hypernet.target.filters import Structure


class Hypernet(Sampler):
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
        context_dim: Numbers in the condition of a network, which the generator reads beside z; 0: there are no conditions.
        prior: Name of the prior, or a mapping with its ``name`` and options: ``"normal"``, ``"uniform"`` on [-1, 1],
            ``"mixture"``, a normal distribution for every component, trained, or ``"torch"``, a distribution of torch; or a
            `Prior`, or a distribution of single numbers or of vectors of `latent_dim`.
        components: Mean codes per filter, and mean weights; more than 1 makes the prior a mixture of that many families of
            networks. In training these get their gradient times this number, so that the target's learning rate
            fits.
        samples: Networks drawn for each training batch.
        members: Networks of the evaluation ensemble.
        distribution: Name of the weight distribution, or a mapping with its ``name`` and options.
        generator: What the generator is made of: the name of a preset (``"default"``, ``"compact"``, ``"pretrained"``,
            ``"paper_mnist"``, ``"paper_cifar_lenet"``, ``"paper_cifar_resnet32"``), a mapping of the fields of
            `GeneratorConfig`, to which a ``preset`` may be added, or a `GeneratorConfig`.
        generate: Glob patterns over parameter names; what is left stays an ordinary parameter.
        exclude: Glob patterns of parameters that are not generated after all.
        gauge: Name of the gauge through which weight-space diversity losses see weights, or a mapping with its ``name`` and
            options, or a `Gauge`: ``"auto"`` and ``"scale"`` fix the scale of every channel group that the graph of the target
            shows, ``"softmax"`` also the shift of the logits, ``"permutation"`` also the order of channels, ``"none"`` nothing.
            A target that can't be exported has no gauge and warns under ``"auto"``, and is an error otherwise. The graph is
            read once, from the example inputs or the first batch.
        execution: Name of the backend that runs the networks, or a mapping with its ``name`` and options: ``"loop"``,
            ``"vmap"``, or ``"auto"``, whichever of the two is faster.
        reduce: How evaluation joins members: ``"mean"``, ``"log_mean_prob"``, ``"majority"`` or None, which returns
            ``(members, batch, ...)``.
        plugins: Plug-ins beside the installed ones.
        structure: What the graph shows of filters, as checkpoints keep it; None: it is read.

    Raises:
        ValueError: If an argument is out of range, a pattern matches nothing or there is nothing to generate.

    Example:
        >>> hypernet = Hypernet(nn.Linear(4, 2), samples=3)
        >>> hypernet(torch.randn(8, 4)).shape
        torch.Size([8, 2])
        >>> len(hypernet.materialize(hypernet.sample(5)))
        5
    """

    def __init__(
        self,
        target: nn.Module,
        example_inputs: Tensor | tuple[Any, ...] | None = None,
        latent_dim: int = 64,
        context_dim: int = 0,
        prior: str | Mapping[str, Any] | Prior | Distribution = "normal",
        components: int = 1,
        samples: int = 8,
        members: int = 10,
        distribution: str | Mapping[str, Any] = "generator",
        generator: str | Mapping[str, Any] | GeneratorConfig | None = None,
        generate: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        gauge: str | Mapping[str, Any] | Gauge = "auto",
        execution: str | Mapping[str, Any] = "auto",
        reduce: Reduction = "mean",
        plugins: Sequence[object] = (),
        structure: Structure | Mapping[str, Any] | None = None,
    ) -> None:
        counts = {"latent_dim": latent_dim, "components": components, "samples": samples, "members": members}
        _check(target, reduce, context_dim, counts)
        super().__init__(
            target, example_inputs, latent_dim=latent_dim, context_dim=context_dim, prior=prior, components=components,
            distribution=distribution, generator=generator, generate=generate, exclude=exclude, gauge=gauge,
            execution=execution, plugins=plugins, structure=structure,
        )  # fmt: skip
        self.samples, self.reduce = samples, reduce
        self.options |= {"samples": samples, "members": members, "reduce": reduce}
        self.diversity: nn.Module | None = None
        self.diversity_read = False
        self._smallest = 2 if any(isinstance(module, _BatchNorm) for module in self.target.modules()) else 1
        self._leave_step()
        self.members = Members(self.draw(members), context_dim, self.executor.statistics.own())
        self.training = target.training
        self.generator.train(target.training)
        shapes = {name: self.banks.shapes[first] for first, group in self.banks.aliases.items() for name in group}
        self.stand_in(Facade(self.executor.replicas, self._call, shapes, self.members.forget))

    def _leave_step(self) -> None:
        """Be outside of any step, with nothing drawn."""
        self.population: Population | None = None
        self._steps = 0
        self._context: Tensor | None = None
        self._calls = PartCalls()

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but what belongs to the present step."""
        return {
            name: value for name, value in self.__dict__.items() if name not in ("population", "_steps", "_context", "_calls")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._leave_step()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.executor.replicas.clear()
        self.symmetries.examples = self.symmetries.examples and self.symmetries.examples.map(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Hypernet:
        """Set the mode; the members are drawn anew from the generator as it is when evaluation begins."""
        self.members.forget()
        self._calls.forget()
        self.executor.replicas.refresh()
        return super().train(mode)

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
        if not self.training:
            self.members.complete(self.executor, population)
        return self.executor.stacked(population.networks, Arguments(args, kwargs), chunk_size=chunk_size)

    def materialize(self, population: Population) -> list[nn.Module]:
        """Turn every network into a plain copy of the target, whose state dict fits an unwrapped target strictly."""
        self.members.complete(self.executor, population)
        return self.executor.materialize_all(population.weights, population.buffers)

    def ensemble(self, n: int, component: int | None = None, context: Tensor | None = None) -> Ensemble:
        """Draw a fixed set of networks, as a module of its own; arguments as in `sample`."""
        population = self.sample(n, component, context)
        self.members.complete(self.executor, population)
        executor = copy.deepcopy(self.executor)
        return Ensemble(executor, population.weights, population.buffers, population.latents, self.reduce)

    @property
    def member_context(self) -> Tensor:
        """The condition of every member, ``(members, context_dim)``; assign to it, ``(context_dim,)`` for all."""
        return self.members.stored.context

    @member_context.setter
    def member_context(self, context: Tensor) -> None:
        self.members.set_context(torch.as_tensor(context))

    # As a module in place of the target

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the sampled networks in training, the joined members in evaluation; any pytree in and out."""
        if is_exported():
            raise RuntimeError(
                "a Hypernet draws its networks, so it can't be exported: export hypernet.ensemble(n), which is fixed"
            )
        return self._call("forward", args, kwargs)

    def _call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = Arguments(args, kwargs, self.samples if self.training else None, self._smallest)
        if not arguments.tensors and method == "forward":
            kinds = ", ".join(type(leaf).__name__ for leaf in arguments.leaves)
            raise TypeError(
                f"no tensor was found in the arguments ({kinds}), so there is no batch to deal out; pass tensors, tuples or "
                "dicts, or register the class with torch.utils._pytree.register_pytree_node"
            )
        population = self._training_population() if self.training else self.member_population()
        if self.training and method == "forward":
            self._note_inputs(population, arguments)
        if not arguments.tensors:
            return self.executor.first(population.networks, arguments, method)
        if self.training:
            return self.executor.joined(population.networks, arguments, method)
        outputs = self.executor.stacked(population.networks, arguments, method)
        joined = reduce_outputs(outputs, self.reduce)
        self._calls.note(method, arguments.tensors, outputs, joined)
        return joined

    def _note_inputs(self, population: Population, arguments: Arguments) -> None:
        population.batch = population.batch or arguments
        self.symmetries.examples = self.symmetries.examples or arguments.head(2).map(torch.clone)
        self.executor.statistics.note_frozen()
        if self.executor.statistics:
            self.members.estimated.zero_()
            self.members.recent.add(arguments)

    def _training_population(self) -> Population:
        if not self._steps or self.population is None:
            # with gradients always: the first call of a step may be one without, and later calls use the same networks
            with torch.inference_mode(False), torch.enable_grad():
                self.population = self.populate(self.draw(self.samples, context=self._context))
        return self.population

    @contextmanager
    def step(self, context: Tensor | None = None) -> Iterator[None]:
        """Within, every training call uses the same networks; afterwards, at the end of the outermost, they are released.

        Args:
            context: The condition of all networks, ``(context_dim,)``, or of each, ``(samples, context_dim)``; None: zeros, or
                that of the step around this one.

        Raises:
            RuntimeError: If a condition is given in evaluation mode, or when the networks of the step are drawn already.
        """
        if context is not None and not self.training:
            raise RuntimeError("in evaluation mode every member has a condition of its own: set member_context")
        if context is not None and self._steps and self.population is not None:
            raise RuntimeError("the networks of this step are drawn already: give the condition before the target is called")
        if not self._steps:
            self.population = None
        around, self._context = self._context, self._context if context is None else context
        self._steps += 1
        try:
            yield
        finally:
            self._steps -= 1
            self._context = around
            if not self._steps:
                self.population = None

    def member_population(self) -> Population:
        """The networks of the evaluation ensemble, with their norm statistics; kept while nothing changes."""
        if not self.training and self.members.estimated < 1:
            warn_of_statistics(self.target, stacklevel=4)
        if is_followed():
            self.members.forget()  # a tracer sees how they are made
        return self.members.population(self._decode_members, self)

    def _decode_members(self) -> Population:
        return self.decode(self.prior.renewed(self.members.latents))

    def update_statistics(self, batches: Iterable[Any] | None = None, population: Population | None = None) -> None:
        """Estimate the running statistics of every network's norm layers, in one pass over the data.

        Networks that are sampled later get theirs from the last 2,048 or so of these inputs.

        Args:
            batches: Inputs of the target, or tuples that begin with them, such as a loader of training data gives; None:
                the last inputs seen.
            population: The networks; None: the members of the evaluation ensemble.

        Raises:
            ValueError: If there are no batches.
        """
        if population is not None:
            population.networks.buffers = {}
            self.members.complete(self.executor, population, batches)
        elif self.executor.statistics:
            self.members.update(self.executor, self._decode_members(), batches)

    # Reports

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
            groups, unread = self.symmetries.groups, []
        except SymmetryError as error:
            groups, unread = None, [f"symmetries not read: {error}"]
        table = summarize(self.banks, self.target, self.generator, groups)
        return "\n".join([table, *unread, *self.executor.choices.summary()])

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
            ValueError: If the checkpoint holds no such Hypernet, or needs a plug-in that is not there.
        """
        options, state, needs = checkpoint.read(path, name)
        lacking = Plugins(plugins).lacking(need for need in needs if need[0] not in changes)
        if lacking:
            raise ValueError(f"{path} needs {'; '.join(lacking)}")
        hypernet = cls(target, plugins=plugins, **{**options, **changes})
        hypernet.load_state_dict(state)
        return hypernet.eval()


def _check(target: nn.Module, reduce: Any, context_dim: int, counts: Mapping[str, int]) -> None:
    problems = [f"{name} must be 1 or more, not {value!r}" for name, value in counts.items() if value < 1]
    if context_dim < 0:
        problems.append(f"context_dim must be 0 or more, not {context_dim!r}")
    if reduce not in get_args(Reduction):
        problems.append(f"reduce must be one of {get_args(Reduction)}, not {reduce!r}")
    if problems:
        raise ValueError("; ".join(problems))
    if isinstance(target, Hypernet):
        raise TypeError("the target is a Hypernet already; wrap the module that it was made from")
