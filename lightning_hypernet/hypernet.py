"""Hypernet: a module whose weights are drawn from a generator."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.distributions import Distribution
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence

from lightning_hypernet import checkpoint
from lightning_hypernet.archive import Stored, refuse
from lightning_hypernet.checkpoint import recorded
from lightning_hypernet.generator import GeneratorConfig, Prior
from lightning_hypernet.members import Members
from lightning_hypernet.options import config_of, counts_of, samples_of
from lightning_hypernet.plugins import plugins_with
from lightning_hypernet.step_sampler import StepSampler
from lightning_hypernet.summary import summarize
from lightning_hypernet.symmetry.gauge import Gauge
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.execution import is_exported
from lightning_hypernet.target.facade import Facade
from lightning_hypernet.target.filters import Structure
from lightning_hypernet.target.layout import BatchDim, read_batch_dim
from lightning_hypernet.target.reduction import Reduction, read_reduction, reduce_outputs
from lightning_hypernet.values import instance, shown, unknown

_FLOWING = ("flow", "filter_norms", "mnf")


class Hypernet(StepSampler):
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
        latent_dim: Numbers in z; None: 64, or as many as a distribution takes its noise from.
        context_dim: Numbers in the condition of a network, which the generator reads beside z; 0: there are no conditions.
        prior: Name of the prior, or a mapping with its ``name`` and options: ``"normal"``, ``"uniform"`` on [-1, 1],
            ``"mixture"``, a normal distribution for every component, trained, ``"reweighted"``, its ``base`` until it is fitted
            (see `analysis.reweight`), or ``"torch"``, a distribution of torch; or a `Prior`, or a distribution of single
            numbers or of vectors of `latent_dim`.
        components: Mean codes per filter, and mean weights; more than 1 makes the prior a mixture of that many families of
            networks. In training these get their gradient times this number, so that the target's learning rate
            fits.
        samples: Networks drawn for each training batch; None: one of every component, two at least of a generator with
            batch norm; two of every component where there are conditions, eight at least, or where the callback has a
            diversity loss, as many as that compares.
        members: Networks of the evaluation ensemble.
        distribution: Name of the weight distribution, or a mapping with its ``name`` and options: ``"generator"``, or
            ``"noisy"``, which adds Gaussian noise and knows the density of weights given z, ``"rank_one"``, whose networks
            share all matrices and scale their inputs and outputs, or one that knows its density exactly, from noise that is z:
            ``"mean_field"``, ``"low_rank"``, ``"full"``, ``"flow"``, ``"filter_norms"``, ``"mnf"``.
        generator: What the generator is made of: the name of a preset (``"default"``, ``"compact"``, ``"adapter"``,
            ``"pretrained"``, ``"paper_mnist"``, ``"paper_cifar_lenet"``, ``"paper_cifar_resnet32"``), a mapping of the fields
            of `GeneratorConfig`, to which a ``preset`` may be added, or a `GeneratorConfig`.
        generate: Glob patterns over parameter names; what is left stays an ordinary parameter.
        exclude: Glob patterns of parameters that are not generated after all.
        gauge: Name of the gauge through which weight-space diversity losses see weights, or a mapping with its ``name`` and
            options, or a `Gauge`: ``"auto"`` and ``"scale"`` fix the scale of every channel group that the graph of the target
            shows, ``"softmax"`` also the shift of the logits, ``"permutation"`` also the order of channels, ``"none"`` nothing.
            A target that can't be exported has no gauge and warns under ``"auto"``, and is an error otherwise. The graph is
            read once, from the example inputs or the first batch.
        execution: Name of the backend that runs the networks, or a mapping with its ``name`` and options: ``"loop"``,
            ``"vmap"``, ``"batched"`` for chains of linear layers, ``"blocked"``, which is the loop over images with their
            channels last and over blocks of examples in evaluation, or ``"auto"``, whichever is fastest.
        reduce: How evaluation joins members: ``"mean"``, ``"log_mean_prob"``, ``"majority"`` or None, which returns
            ``(members, batch, ...)``, or a list of what each member returns where shapes differ; or a mapping with the ``name``
            and ``dim``, the axis of the classes where it is not axis 1.
        plugins: Plug-ins beside the installed ones.
        structure: What the graph shows of filters, as checkpoints keep it; None: it is read.
        batch_dim: Where the batch lies in the target's inputs, if not along the first axis: an axis, ``"list"`` for lists of
            examples, or for some arguments, by their name, either of these, or None if all networks share the argument.
        encoder: Name and options of the encoder that maps data sets to latents, ``"deep_sets"`` or ``"attention"``, as in
            ``{"name": "deep_sets", "inputs": 64}`` (see `Encoder`); None: there is none.

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
        latent_dim: int | None = None,
        context_dim: int = 0,
        prior: str | Mapping[str, Any] | Prior | Distribution = "normal",
        components: int = 1,
        samples: int | None = None,
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
        batch_dim: BatchDim = None,
        encoder: str | Mapping[str, Any] | None = None,
    ) -> None:
        given = {"latent_dim": latent_dim, "components": components, "samples": samples, "members": members}
        counts = counts_of({**given, "context_dim": context_dim})
        latent_dim = counts.get("latent_dim")
        context_dim, components, members = (counts[name] for name in ("context_dim", "components", "members"))
        reduce, batch_dim = read_reduction(reduce), read_batch_dim(batch_dim)
        check_target(target)
        super().__init__(
            target, example_inputs, latent_dim=latent_dim, context_dim=context_dim, prior=prior, components=components,
            distribution=distribution, generator=generator, generate=generate, exclude=exclude, gauge=gauge,
            execution=execution, plugins=plugins, structure=structure, batch_dim=batch_dim, encoder=encoder,
        )  # fmt: skip
        self.reduce, self._samples_left_open = reduce, "samples" not in counts
        self.samples = counts.get("samples") or samples_of(components, context_dim, least=self.generator.least_networks)
        self.options |= recorded({"samples": self.samples, "members": members, "reduce": reduce})
        self.diversity: nn.Module | None = None
        self.diversity_read = False
        self.smallest = 2 if any(isinstance(module, _BatchNorm) for module in self.target.modules()) else 1
        self.leave_step()
        self.members = Members(self.draw(members), context_dim, self.executor.statistics.norms())
        self.training = target.training
        self.generator.train(target.training)
        shapes = {name: self.banks.shapes[first] for first, group in self.banks.aliases.items() for name in group}
        self.stand_in(Facade(self.executor.replicas, self._call, shapes, self.members.forget))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.executor.replicas.clear()
        self.symmetries.examples = self.symmetries.examples and self.symmetries.examples.map(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Hypernet:
        """Set the mode; the members are drawn anew from the generator as it is when evaluation begins."""
        self.members.forget()
        self.part_calls.forget()
        self.executor.replicas.refresh()
        return super().train(mode)

    def settle_samples(self, compared: int) -> None:
        """Draw as many networks in a step as suits them, unless a number was given, or set since.

        Args:
            compared: How many networks diversity losses compare; 0: there are none.
        """
        if self._samples_left_open and self.samples == self.options["samples"]:
            self.samples = samples_of(self.components, self.context_dim, compared, self.generator.least_networks)
            self.options["samples"] = self.samples

    # As a module in place of the target

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the sampled networks in training, the joined members in evaluation; any pytree in and out."""
        if is_exported():
            raise RuntimeError(
                "a Hypernet draws its networks, so it can't be exported: export hypernet.ensemble(n), which is fixed"
            )
        return self._call("forward", args, kwargs)

    def compile(self, **options: Any) -> None:
        """Compile what a step computes: the generator in training, the networks' forward, the gauge and the entropy.

        Each is a graph of its own. Latents are drawn and batches dealt out as before, and the first run of a kind is as it was.
        `torch.compile` of a module that holds the Hypernet compiles what is around it. Copies are not compiled, nor what runs
        under vmap, which ``"auto"`` leaves out then.

        Args:
            options: Those of `torch.compile`, such as ``fullgraph=True``.
        """
        for compiler in (self.executor.replicas.compiler, self.symmetries.compiler):
            compiler.start(options)

    def _call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return _aside(self._call, method, args, kwargs)
        plans, arguments = self.executor.plans, Arguments(args, kwargs)
        led = self.led()
        drawn = self.training or self.has_latents
        population = led or (self.training_population() if drawn else self.member_population())
        dealt = self.alone is None and (self.training or led is not None)
        if dealt and method == "forward" and not _can_be_dealt(args, kwargs, arguments):
            kinds = ", ".join(type(leaf).__name__ for leaf in (*args, *kwargs.values()))
            raise TypeError(
                f"there is no batch to deal out in the arguments ({kinds}); pass tensors, tuples or dicts, or take "
                "deal='batch', which deals out the batch of training_step"
            )
        if dealt and arguments.tensors:
            arguments = plans.deal(population.networks, args, kwargs, method, self.smallest)
            self.note_dealt(arguments)
        else:
            arguments = plans.arguments(self.target, args, kwargs, method)
        if self.training and method == "forward":
            population.batch = population.batch or arguments
            if self.alone is not None and arguments.batch:
                first = population.sizes.setdefault(self.alone, arguments.batch)
                population.sizes[self.alone] = arguments.batch if arguments.batch == first else 0
            if self.noted:
                self.executor.feed.note(args, kwargs)
                self._note_inputs(arguments)
        if self.alone is not None or (not arguments.tensors and (dealt or method != "forward")):
            return self.executor.single(population.networks, arguments, method, self.alone or 0)
        if dealt:
            return self.executor.joined(population.networks, arguments, method)
        outputs = self.executor.stacked(population.networks, arguments, method)
        joined = reduce_outputs(outputs, self.reduce, (*args, *kwargs.values()))
        self.part_calls.note(method, arguments.tensors, outputs, joined)
        return joined

    def _note_inputs(self, arguments: Arguments) -> None:
        self.see(arguments, whole=self.alone is not None)  # a part of a dealt out batch
        self.executor.statistics.note_frozen()
        self.symmetries.train_with(self.executor.statistics.frozen_norms)
        if self.executor.statistics.possible:
            self.members.saw(arguments)

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
        unread = self.symmetries.unread
        table = summarize(self.banks, self.target, self.generator, None if unread else self.symmetries.groups)
        told = [f"symmetries not read: {unread}"] if unread else []
        return "\n".join([table, *told, *self.executor.choices.summary()])

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        target: nn.Module,
        name: str | None = None,
        plugins: Sequence[object] = (),
        loader: Iterable[Any] | None = None,
        inputs: Callable[[Any], Any] | None = None,
        trust: bool = False,
        **changes: Any,
    ) -> Hypernet:
        """Load a Hypernet from a Lightning checkpoint that a `HypernetCallback` wrote, without the LightningModule.

        Args:
            path: The checkpoint, or a folder of `save_pretrained`. Nothing of it but tensors and plain values is read, whatever
                else it holds, and all of that is checked before anything is built.
            target: A module built like the target that was wrapped; its weights do not matter.
            name: The callback's `target`, if there were several.
            plugins: Plug-ins that were passed to the callback.
            loader: Training data, for new networks alone: their norm statistics are estimated from it, and symmetries are
                read with its first examples. The members keep the statistics that validation measured them with.
            inputs: What the target is called with of a batch of the loader, as in `update_statistics`.
            trust: Read the checkpoint with pickle, which runs code that it names: for files of your own alone.
            changes: Options that shall differ from those of the training, such as `gauge`, `execution` or `reduce`.

        Raises:
            ValueError: If the checkpoint is not whole, holds no such Hypernet or none of this target, or needs a plug-in that
                is not there; the message lists all that is wrong.
        """
        check_target(target)
        known = [option for option in inspect.signature(cls).parameters if option not in ("target", "plugins")]
        if wrong := unknown("Hypernet", changes, known):
            raise TypeError(wrong)
        kept = checkpoint.read(path, name, known, trust)
        lacking = plugins_with(plugins).lacking(need for need in kept.needs if need[0] not in changes)
        if lacking:
            raise ValueError(f"{path} needs {'; '.join(lacking)}")
        refuse(path, _exceeding(kept.options, kept.tensors))
        with kept.building():
            _check_depth(kept)
            _check_sizes(kept.options["distribution"], kept.numbers, len(kept.tensors))
            least = config_of(kept.options.get("generator"), plugins_with(plugins)).least(kept.options["latent_dim"])
            if _name(kept.options["distribution"]) in ("generator", "noisy") and least > kept.numbers:
                raise ValueError(f"its generator asks for {least:,} numbers and more, where there are {kept.numbers:,}")
            hypernet = cls(target, plugins=plugins, **{**kept.options, **changes})
        kept.load_into(hypernet, changes)
        if loader is not None:
            hypernet.remember(loader, inputs)
        return hypernet.eval()


@_disable_dynamo
def _aside(call: Callable[..., Any], *args: Any) -> Any:
    return call(*args)


def _can_be_dealt(args: tuple[Any, ...], kwargs: Mapping[str, Any], arguments: Arguments) -> bool:
    packed = any(isinstance(one, PackedSequence) for one in (*args, *kwargs.values()))
    return bool(arguments.tensors) and not packed


def _name(choice: Any) -> Any:
    """The name in a choice."""
    return choice.get("name") if isinstance(choice, Mapping) else choice


def _check_depth(kept: Any) -> None:
    """See that the file holds a tensor or more for every hidden layer that its options ask for."""
    generator = kept.options.get("generator") or {}
    given = [*(generator.get("hidden") or ()), *(generator.get("extractor_hidden") or ())]
    layers = sum(len(one) if isinstance(one, list) else 1 for one in given)
    if layers > len(kept.tensors):
        raise ValueError(f"its generator asks for {layers:,} hidden layers, and there are {len(kept.tensors):,} tensors")


def _check_sizes(distribution: Any, numbers: int, tensors: int) -> None:
    """See that the options of a flow ask for no layers that the file does not hold."""
    options = distribution if isinstance(distribution, dict) and distribution.get("name") in _FLOWING else {}
    hidden, transforms = options.get("hidden", []), options.get("transforms", 0)
    sizes = [one for one in hidden if isinstance(one, int)] if isinstance(hidden, list) else []
    least = max([*sizes, *(one * other for one, other in itertools.pairwise(sizes))], default=0)
    if least > numbers or max(len(sizes), transforms if isinstance(transforms, int) else 0) > tensors:
        raise ValueError(f"its distribution asks for more than the {numbers:,} numbers there are: {shown(options)}")


def _exceeding(options: Mapping[str, Any], tensors: Mapping[str, Stored]) -> list[str]:
    """Options that ask for more than the file holds, in words."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    counts = [options.get(name) for name in ("members", "latent_dim", "context_dim", "components")]
    members, latent_dim, context_dim, components = (one if isinstance(one, int) else -1 for one in counts)
    wanted = {"z": (members, latent_dim), "component": (members,), "context": (members, context_dim)}
    problems = [
        f"members.stored.{name} is {shapes.get(f'members.stored.{name}', 'missing')}, and {shape} of the options"
        for name, shape in wanted.items()
        if shapes.get(f"members.stored.{name}") != shape
    ]
    codes = shapes.get("generator.mean_codes")
    if codes is not None and codes[:1] != (components,):
        problems.append(f"generator.mean_codes is {codes}, of {codes[0] if codes else 0} components, not {components}")
    return problems


def check_target(target: Any) -> None:
    """See that a target is a module, and no Hypernet.

    Raises:
        TypeError: If it is not.
        ValueError: If it was scripted or traced as a whole.
    """
    instance("the target", target, nn.Module, "an nn.Module")
    if meta := [name for name, value in target.named_parameters() if value.is_meta]:
        raise ValueError(f"{meta[0]} of the target lies on the meta device: use to_empty() and initialise it")
    if isinstance(target, torch.jit.ScriptModule):
        names = ", ".join(name for name, _ in target.named_parameters())
        raise ValueError(f"{names} belong to modules that were scripted or traced as a whole: wrap the target before torch.jit")
    if isinstance(target, Hypernet):
        raise TypeError("the target is a Hypernet already; wrap the module that it was made from")
