"""Placing: a Hypernet put where a part of a LightningModule was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from lightning_hypernet.conditions import Condition, Conditions, recipe_of_conditions
from lightning_hypernet.diversity import WeightedDiversity
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.shards import refuse_sharded
from lightning_hypernet.target.backends import Loop
from lightning_hypernet.target.snapshot import Snapshot
from lightning_hypernet.values import guess

_TREES = ("pytorch_lightning.", "lightning.")
_REPLACED = {"forward", "hypernet", "setup", "training_step", "validation_step", "log"}
_OWN = (frozenset(vars(nn.Module())) | frozenset(vars(pl.LightningModule())) | _REPLACED) - {"_trainer"}


def overrides(pl_module: nn.Module, hook: str) -> bool:
    """Whether a LightningModule, of either class tree, has a hook of its own."""
    return not str(getattr(getattr(type(pl_module), hook, None), "__module__", "")).startswith(_TREES)


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """A submodule by its path; None if there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


class Moves:
    """Sees whether a step that is run once for each network moves copies of the target, which then move as often."""

    def __init__(self) -> None:
        self._left = 3  # steps: in the first the copies may still be what they follow, and a move changes nothing

    @contextmanager
    def watched(self, copies: Mapping[str, nn.Module], networks: int) -> Iterator[None]:
        """Within, the step is run; afterwards a warning tells if copies, given by their paths, have moved."""
        parameters = [parameter for copy in copies.values() for parameter in copy.parameters()] if self._left > 0 else []
        before = Snapshot(parameters)
        yield
        self._left -= 1
        if not before.same(parameters):
            self._left = 0
            warnings.warn(
                f"training_step moves {', '.join(copies)}, and deal='batch' runs it for each of {networks} networks: move it "
                "in on_train_batch_start, or take deal='inputs'",
                stacklevel=4,
            )


def built(pl_module: pl.LightningModule, path: str, place: Callable[[], None]) -> bool:
    """See that a module is there to be wrapped.

    Args:
        pl_module: The LightningModule.
        path: Path of the module.
        place: Puts the Hypernet in its place; it is called after the LightningModule's own `setup`, if that builds the module.

    Returns:
        Whether it is there now.

    Raises:
        ValueError: If it is not, and nothing is left that could build it.
    """
    if submodule(pl_module, path) is None and overrides(pl_module, "configure_model"):
        pl_module.configure_model()
    if submodule(pl_module, path) is not None:
        return True
    if overrides(pl_module, "setup"):
        pl_module.setup = _Setup(pl_module, path, place)  # type: ignore[method-assign]
        return False
    raise ValueError(_missing(pl_module, path))


def _missing(pl_module: nn.Module, path: str) -> str:
    names = [name for name, _ in pl_module.named_modules() if name]
    return (
        f"{type(pl_module).__name__} has no module {path!r}; set target to one of {', '.join(names[:10])}, or to '.' for its "
        f"own forward{guess(path, names)}"
    )


class _Setup:
    """Takes the place of `setup` once, which builds the module that is to be wrapped."""

    def __init__(self, pl_module: pl.LightningModule, path: str, place: Callable[[], None]) -> None:
        self._pl_module, self._path, self._place = pl_module, path, place

    def __call__(self, stage: str) -> None:
        del self._pl_module.setup
        self._pl_module.setup(stage)
        if submodule(self._pl_module, self._path) is None:
            raise ValueError(_missing(self._pl_module, self._path))
        self._place()


def put(pl_module: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module where another was."""
    parent, _, name = path.rpartition(".")
    setattr(pl_module.get_submodule(parent), name, module)


def warn_of_hidden(path: str, target: nn.Module, hypernet: Hypernet) -> None:
    """The LightningModule may mean the target's attribute where it gets the Hypernet's."""
    both = set(dir(target)) & set(dir(hypernet)) - set(dir(nn.Module()))
    hidden = sorted(name for name in both if not name.startswith("_") and name != "no_weight_decay")
    if hidden:
        warnings.warn(
            f"{', '.join(hidden)}: {path!r} has these names and the Hypernet in its place too, which answers to them from now "
            "on; rename them, if they are used from outside the target",
            stacklevel=3,
        )


def refuse_shared(pl_module: nn.Module, target: nn.Module, path: str) -> None:
    """Parameters that live both in the target and outside of it can't be generated, nor those that were sharded.

    Raises:
        ValueError: If there are some.
    """
    refuse_sharded(target, path)
    inside = {id(parameter) for parameter in target.parameters()}
    shared = [
        name
        for name, parameter in pl_module.named_parameters(remove_duplicate=False)
        if id(parameter) in inside and not name.startswith(f"{path}.")
    ]
    if shared:
        raise ValueError(
            f"{', '.join(shared)} of {type(pl_module).__name__} are also parameters of the target {path!r}; choose a target "
            "that holds both, or '.'"
        )


def copies_of(pl_module: nn.Module, path: str, target: nn.Module, asked: Sequence[str] | None) -> list[str]:
    """The paths of the copies that a LightningModule keeps of a target, as momentum encoders and teachers are.

    Args:
        pl_module: The LightningModule.
        path: Path of the target.
        target: The target.
        asked: Paths; None: modules of the target's class with its parameters, equal to them or frozen.

    Returns:
        Paths.

    Raises:
        ValueError: If one that is asked for is no copy.
    """
    shapes = _shapes(target)
    if asked is not None:
        for name in asked:
            if name == path:
                raise ValueError(f"copies name {name!r}, the target itself: name the modules that follow it, or () for none")
            other = submodule(pl_module, name)
            if other is None or _shapes(other) != shapes:
                raise ValueError(
                    f"{name!r} of {type(pl_module).__name__} is no copy of the target {path!r}: "
                    + ("there is no such module" if other is None else "its parameters have other names or shapes")
                )
        return list(asked)
    found: list[str] = []
    parent = path.rpartition(".")[0]
    for name, other in pl_module.named_modules():
        apart = not f"{name}.".startswith((f"{path}.", *(f"{one}." for one in found))) and not f"{path}.".startswith(f"{name}.")
        listed = isinstance(pl_module.get_submodule(name.rpartition(".")[0]), (nn.ModuleList, nn.Sequential))
        if name and apart and not (listed and name.rpartition(".")[0] == parent) and _is_copy(target, other, shapes):
            found.append(name)
    return found


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def _is_copy(target: nn.Module, other: nn.Module, shapes: dict[str, torch.Size]) -> bool:
    if other is target or type(other) is not type(target) or not shapes or _shapes(other) != shapes:
        return False
    pairs = list(zip(target.parameters(), other.parameters(), strict=True))
    if any(one is two for one, two in pairs):
        return False
    random = any(one.numel() > 1 and one.detach().flatten()[0] != one.detach().flatten()[-1] for one, _ in pairs)
    frozen = not any(two.requires_grad for _, two in pairs) and any(one.requires_grad for one, _ in pairs)
    return frozen or (random and all(torch.equal(one, two) for one, two in pairs))


def put_copies(pl_module: nn.Module, path: str, hypernet: Hypernet, names: Sequence[str], told: bool) -> list[Hypernet]:
    """Put copies of a Hypernet, without gradients, where the copies of its target are.

    Args:
        pl_module: The LightningModule.
        path: Path of the target.
        hypernet: The Hypernet.
        names: Paths of the copies.
        told: Whether the user knows of them.

    Returns:
        The copies; their networks have the Hypernet's latents while it is in a step.
    """
    made = []
    for name in names:
        before = pl_module.get_submodule(name)
        if isinstance(before, Hypernet):
            twin = before
        else:
            twin = copy.deepcopy(hypernet).requires_grad_(False)
            twin.train(before.training)
            put(pl_module, name, twin)
            if not told:
                rank_zero_info(
                    f"{name!r} of {type(pl_module).__name__} is a copy of the target {path!r}, so a copy of its Hypernet, "
                    "without gradients, stands there now; copies=() leaves it as it is"
                )
        twin.follow(hypernet)
        made.append(twin)
    return made


def refuse_copies_within(pl_module: nn.Module) -> None:
    """Under ``target="."`` a network and its momentum copy would both be generated, apart from each other.

    Raises:
        ValueError: If the LightningModule has such.
    """
    parts = list(pl_module.named_children())
    for index, (name, one) in enumerate(parts):
        shapes = _shapes(one)
        for other_name, other in parts[index + 1 :]:
            if _is_copy(one, other, shapes) and not isinstance(one, (nn.ModuleList, nn.ModuleDict)):
                raise ValueError(
                    f"{other_name!r} of {type(pl_module).__name__} is a copy of {name!r}, and target='.' would generate both "
                    f"or leave one behind: set target={name!r}, whose copies follow it"
                )


class OneModule:
    """The forward of a LightningModule whose own parameters are generated: what is set on it is set on all its networks.

    Args:
        pl_module: The LightningModule.
        hypernet: The Hypernet that was made of it.
    """

    def __init__(self, pl_module: nn.Module, hypernet: Hypernet) -> None:
        self._pl_module, self._hypernet = pl_module, hypernet

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the networks, as the LightningModule is now."""
        self.synchronize()
        return self._hypernet(*args, **kwargs)

    def synchronize(self) -> None:
        """Bring attributes, buffers and modes of the LightningModule to the target."""
        replicas = self._hypernet.executor.replicas
        for path, twin in self._hypernet.target.named_modules():
            own = submodule(self._pl_module, path)
            if own is None:
                continue
            for name, value in vars(own).items():
                if name not in _OWN and vars(twin).get(name, replicas) is not value:
                    replicas.set(twin, name, value)
            if own._buffers.keys() != twin._buffers.keys():
                twin._buffers.update(own._buffers)
                twin._non_persistent_buffers_set.update(own._non_persistent_buffers_set)
                replicas.clear()
            twin._buffers.update(own._buffers)
            if path:
                twin.training = own.training
        replicas.refresh()


def wrap_whole(pl_module: pl.LightningModule, build: Callable[[nn.Module], Hypernet]) -> Hypernet:
    """Generate a LightningModule's own parameters; its forward becomes the Hypernet's.

    Args:
        pl_module: The LightningModule.
        build: Makes the Hypernet of it.

    Returns:
        The Hypernet, which is its ``hypernet`` from now on.
    """
    refuse_sharded(pl_module, ".")
    refuse_copies_within(pl_module)
    trainer, pl_module._trainer = pl_module._trainer, None
    try:
        hypernet = build(pl_module)
    finally:
        pl_module._trainer = trainer
    for names in hypernet.banks.aliases.values():
        for name in names:
            path, _, key = name.rpartition(".")
            pl_module.get_submodule(path)._parameters[key] = None
    for name in hypernet.banks.ordinary:
        path, _, key = name.rpartition(".")
        hypernet.target.get_submodule(path)._parameters[key] = pl_module.get_parameter(name)
    pl_module.hypernet = hypernet
    pl_module.forward = OneModule(pl_module, hypernet)  # type: ignore[method-assign]
    return hypernet


def check_order(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """See that what averages weights comes behind: it copies the module in its own `setup`.

    Raises:
        ValueError: If it comes before.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    before = [type(one).__name__ for one in callbacks[: callbacks.index(callback)] if hasattr(one, "_average_model")]
    if before:
        raise ValueError(
            f"{', '.join(before)} copies the module before the Hypernet stands in it; list HypernetCallback before it"
        )


def averages_of(trainer: pl.Trainer, hypernet: Hypernet) -> list[Hypernet]:
    """The copies that other callbacks keep of a Hypernet and its followers, such as averages of its weights.

    Another Hypernet of the LightningModule may be made alike: neither it nor a copy that lies where it does is meant.
    """
    there = {name: one for name, one in trainer.lightning_module.named_modules() if isinstance(one, Hypernet)}
    held = [value for callback in trainer.callbacks for value in vars(callback).values()]  # type: ignore[attr-defined]
    named = [pair for value in held if isinstance(value, nn.Module) for pair in value.named_modules()]
    found = []
    for path, one in named:
        if isinstance(one, Hypernet) and one.same_as(hypernet) and not any(one is other for other in there.values()):
            places = [name for name in there if f".{path}".endswith(f".{name}")]
            original = there[max(places, key=len)] if places else hypernet
            found += [one] if hypernet is original or hypernet is original.leader else []
    return found


def set_conditions(hypernet: Hypernet, conditions: Conditions | None) -> None:
    """Give a Hypernet the conditions that its networks are generated for.

    Raises:
        ValueError: If they set what networks that run at once can't have each for itself, or weigh a loss that is not there.
    """
    hypernet.conditions = conditions
    if conditions is None:
        return
    context = conditions.best(conditions.starting())[None]
    hypernet.member_context = context[0]
    backend = hypernet.executor.backend
    places = [".".join(place) for place in conditions.settings(context)]
    if places and backend is not None and type(backend) is not Loop:
        raise ValueError(
            f"conditions set {places[0]} of every network, which the backend {hypernet.options['execution']!r} shares among "
            "them: set execution='loop' or 'auto'"
        )
    losses = getattr(hypernet.diversity, "losses", {})
    if odd := [name for name in conditions.weights(context) if name not in losses]:
        raise ValueError(f"a condition weighs the diversity loss {odd[0]!r}, and there are {', '.join(losses) or 'none'}")


def take_conditions(hypernet: Hypernet, conditions: Mapping[str, Condition], target: str) -> None:
    """See that a Hypernet that stands there has the conditions that were asked for; one without takes them.

    Raises:
        ValueError: If it has others.
    """
    if not conditions:
        return
    if hypernet.conditions is None:
        (network,) = hypernet.materialize(hypernet.sample(1))
        bound = Conditions(conditions, network)
        if bound.dim != hypernet.context_dim:
            raise ValueError(
                f"the target {target!r} is a Hypernet already, with context_dim={hypernet.context_dim}, and conditions have "
                f"{bound.dim} numbers"
            )
        set_conditions(hypernet, bound)
    elif hypernet.conditions.recipe != recipe_of_conditions(conditions):
        raise ValueError(
            f"the target {target!r} is a Hypernet already, with the conditions {hypernet.conditions.recipe}, not "
            f"{recipe_of_conditions(conditions)}"
        )


def set_diversity(hypernet: Hypernet, diversity: WeightedDiversity, dealt: bool) -> None:
    """Give a Hypernet its diversity losses, which have seen its distribution, whether batches are dealt out, and networks."""
    diversity.check(type(hypernet.generator), dealt)
    if diversity.losses:
        with torch.no_grad():
            diversity.prepare(hypernet.decode(hypernet.members.latents[:2]))
    hypernet.settle_samples(diversity.least_networks)
    hypernet.diversity = diversity.to(hypernet.members.device)
