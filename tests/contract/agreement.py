"""What holds for every target: a Hypernet of it against plain modules with the same weights, in double precision."""

from __future__ import annotations

import copy
import pickle
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from lightning_hypernet import Ensemble, Hypernet
from lightning_hypernet.target.backends import Vmap
from tests.contract.by_hand import joined, modes_of_a_pass, passed, run, scalar, stacked_by_hand
from tests.contract.pictures import equal, kinds, leaves, picture, same

SMALL = {"preset": "compact", "hidden": (4,), "extractor_hidden": (4,), "code_size": 2}
NETWORKS = 3
EXACT, CLOSE = 1e-10, 1e-7
TINY = 1e-14
"""The eps of norm layers where their scaling is looked at: small, and yet above what rounding makes of a constant channel."""
HARMLESS = (
    "cannot run .*, so its networks run one after the other",
    "no gauge is fixed",
    "performance drop because we have not yet implemented the batching rule",
)
"""Warnings that tell of no fault: vmap can't run everything, and not everything can be exported."""


@dataclass(frozen=True)
class What:
    """A target, its inputs, and what is particular about it.

    Args:
        make: Gives a fresh target.
        inputs: Gives what it is called with: a tuple of arguments, or a dictionary of keyword arguments.
        options: Of the Hypernet.
        parts: Deals such inputs out to a number of networks; None: tensors are cut along the first axis, or ``batch_dim``,
            where they have the size of the first tensor.
        averages: Of buffers outside of norm layers that are moving averages, the share that stays; others are carried.
        vmap: Whether vmap runs it in evaluation, and in training; None: it may fall back to the loop.
        gauge: Whether its gauge is looked at, which takes an export of it.
        drawn: Whether it draws random numbers in training that come in another order under vmap.
        tells: What the warnings say that must come.
        refuses: For a part of the contract, what the error says.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: Callable[[Any, int], Sequence[Any]] | None = None
    averages: Mapping[str, float] = field(default_factory=dict)
    vmap: tuple[bool, bool] | None = None
    gauge: bool = False
    drawn: bool = False
    tells: Sequence[str] = ()
    refuses: Mapping[str, str] = field(default_factory=dict)

    def fresh(self) -> nn.Module:
        torch.default_generator.manual_seed(0)
        return self.make().double()

    def hypernet(self, seed: int = 1, **options: Any) -> Hypernet:
        target = self.fresh()
        before = dict(picture(target))
        torch.default_generator.manual_seed(seed)
        hypernet = Hypernet(target, samples=NETWORKS, members=NETWORKS, latent_dim=4, reduce=None,
                            **{"generator": SMALL, **self.options, **options})  # fmt: skip
        same(dict(picture(target)), before)
        return hypernet

    def batches(self, count: int) -> list[Any]:
        torch.default_generator.manual_seed(2)
        return [self.inputs() for _ in range(count)]

    def dealt(self, call: Any) -> Sequence[Any]:
        if self.parts is not None:
            return self.parts(call, NETWORKS)
        axis = self.options.get("batch_dim") or 0
        size = next(leaf.shape[axis] for leaf in _pytree.tree_leaves(call) if isinstance(leaf, Tensor) and leaf.ndim > axis)

        def part(leaf: Any, index: int) -> Any:
            follows = isinstance(leaf, Tensor) and leaf.ndim > axis and leaf.shape[axis] == size
            return leaf.tensor_split(NETWORKS, axis)[index] if follows else leaf

        return [_pytree.tree_map(lambda leaf, index=index: part(leaf, index), call) for index in range(NETWORKS)]

    def refusal(self, part: str) -> AbstractContextManager[Any]:
        if part not in self.refuses:
            return nullcontext()
        return pytest.raises((TypeError, ValueError, RuntimeError), match=self.refuses[part])


def agrees(make: Callable[[], nn.Module], inputs: Callable[[], Any], **what: Any) -> None:
    """Assert that a Hypernet of a target is, in all that it computes and keeps, what its plain networks are.

    Args:
        make: Gives a fresh target.
        inputs: Gives what it is called with.
        what: What is particular about it, as in `What`.
    """
    case = What(make, inputs, **what)
    with _told(case):
        with case.refusal("wrapping"):
            loop = case.hypernet(execution="loop")
        if "wrapping" in case.refuses:
            return
        for part, check in (("training", training), ("statistics", statistics), ("members", members), ("copies", copies)):
            with case.refusal(part):
                check(case, loop)
            if part in case.refuses:
                return
        if case.gauge:
            gauge(case, loop)
        vmap = case.hypernet(execution="vmap")
        for index, check in enumerate((members, training)):
            if index == 0 or not case.drawn:
                check(case, vmap)
                if case.vmap is not None:
                    assert isinstance(vmap.executor.backend, Vmap) == case.vmap[index]
                    vmap = case.hypernet(execution="vmap")


def networks(hypernet: Hypernet, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None) -> list[nn.Module]:
    """The plain networks of weights, with the target's own buffers but for those that are given."""
    return hypernet.executor.materialize_all(weights, buffers or {})


def estimate(case: What, hypernet: Hypernet, batches: Sequence[Any], population: Any = None) -> None:
    hypernet.update_statistics(batches, population, inputs=lambda batch: batch)


# The parts of the contract


def statistics(case: What, hypernet: Hypernet) -> None:
    """Buffers that training changes are, for every network, those of the plain module after the same passes."""
    batches = case.batches(3)
    kept, random = dict(picture(hypernet.target)), torch.get_rng_state()
    population = hypernet.train().sample(2)
    estimate(case, hypernet, batches, population)
    assert torch.equal(torch.get_rng_state(), random)
    same(dict(picture(hypernet.target)), kept)
    trial, *plain = networks(hypernet, {name: torch.cat([value[:1], value]) for name, value in population.weights.items()})
    modes = modes_of_a_pass(trial, batches[0])
    for ours, theirs in zip(hypernet.materialize(population), plain, strict=True):
        passed(theirs, batches, modes, case.averages)
        same(dict(ours.named_buffers()), dict(theirs.named_buffers()), EXACT)


def training(case: What, hypernet: Hypernet) -> None:
    """A call in training is each network's own on its part of the batch; gradients are those of the networks."""
    (call,) = case.batches(1)
    hypernet.train()
    kept = dict(picture(hypernet.target))
    torch.default_generator.manual_seed(3)
    ours = run(hypernet, call)
    drawn = torch.get_rng_state()
    same(dict(picture(hypernet.target)), kept)
    weights = hypernet.population.weights
    modules = networks(hypernet, weights)
    torch.default_generator.manual_seed(3)
    outputs = [run(module, part) for module, part in zip(modules, case.dealt(call), strict=True)]
    if not (isinstance(hypernet.executor.backend, Vmap) and case.drawn):
        assert torch.equal(torch.get_rng_state(), drawn), "other random numbers were drawn"
    with torch.no_grad():
        whole = run(networks(hypernet, {name: value[:1] for name, value in weights.items()})[0], call)
    theirs = joined(outputs, whole)
    same(ours, theirs, EXACT)
    assert dict(kinds(outputs[0])).items() <= dict(kinds(ours)).items(), "containers are of another kind"
    parameters = {name: one for name, one in hypernet.named_parameters() if one.requires_grad}
    found = torch.autograd.grad(scalar(ours), list(parameters.values()), retain_graph=True, allow_unused=True)
    scalar(theirs).backward()
    stacked = [torch.stack([_gradient(module, name) for module in modules]) for name in weights]
    through = torch.autograd.grad(list(weights.values()), list(parameters.values()), stacked, allow_unused=True)
    for (name, one), ours_, theirs_ in zip(parameters.items(), found, through, strict=True):
        wanted = torch.zeros_like(one) if theirs_ is None else theirs_
        if name.startswith("target."):
            wanted = sum(_gradient(module, name.removeprefix("target.")) for module in modules)
        same({name: torch.zeros_like(one) if ours_ is None else ours_}, {name: wanted}, CLOSE)


def members(case: What, hypernet: Hypernet) -> None:
    """All networks on the same inputs are the plain modules, call after call, and from several threads as well."""
    batches = case.batches(3)
    hypernet.eval()
    estimate(case, hypernet, batches)
    population = hypernet.sample(NETWORKS)
    plain = [module.eval() for module in hypernet.materialize(population)]
    kept = dict(picture(hypernet.target))
    for call in batches[:2]:
        torch.default_generator.manual_seed(4)
        ours = run(lambda *args, **kwargs: hypernet.run(population, *args, **kwargs), call)
        drawn = torch.get_rng_state()
        torch.default_generator.manual_seed(4)
        theirs = [run(module, call) for module in plain]
        if type(hypernet.executor.backend) is not Vmap:
            assert torch.equal(torch.get_rng_state(), drawn), "other random numbers were drawn"
        same(ours, stacked_by_hand(theirs), EXACT)
    same(dict(picture(hypernet.target)), kept)
    repeated = [dict(leaves(run(plain[0], batches[0]))) for _ in range(2)]
    lasting = any(not equal(one, repeated[1][path]) for path, one in repeated[0].items())
    if not lasting and hypernet.executor.choice == "loop":
        for module in (hypernet, hypernet.ensemble(NETWORKS)):
            _from_threads(module, batches[:2])


def copies(case: What, hypernet: Hypernet) -> None:
    """Members are the plain modules; copies, pickles, states and files give the same outputs."""
    call, *batches = case.batches(3)
    hypernet.eval()
    estimate(case, hypernet, batches)
    ensemble = hypernet.ensemble(NETWORKS)
    twin = case.hypernet(seed=5)
    twin.load_state_dict(copy.deepcopy(hypernet.state_dict()))
    other = hypernet.ensemble(NETWORKS)
    other.load_state_dict(copy.deepcopy(ensemble.state_dict()))
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(folder)
        loaded = Ensemble.load(folder, case.fresh())
    for module, others in ((hypernet, [twin]), (ensemble, [other, loaded])):
        others += [way(module) for way in (copy.deepcopy, _pickled) if _works(way, case.fresh())]
        outputs = [first_call(one, call) for one in (module, *others)]
        plain = module.materialize() if module is ensemble else hypernet.materialize(hypernet.member_population())
        torch.default_generator.manual_seed(7)
        with torch.no_grad():
            same(outputs[0], stacked_by_hand([run(network.eval(), call) for network in plain]), EXACT)
        for one in outputs[1:]:
            same(one, outputs[0], EXACT)


def gauge(case: What, hypernet: Hypernet) -> None:
    """Gauge-fixed weights compute the same function, in evaluation, with statistics of their own; without the eps of norms."""
    call, *batches = case.batches(3)
    weights = hypernet.sample(2).weights
    with torch.no_grad():
        fixed = hypernet.symmetries.gauge(weights)
    modes = modes_of_a_pass(networks(hypernet, weights)[0], call)
    both = [networks(hypernet, one) for one in (weights, fixed)]
    outputs = []
    for module in (module for some in both for module in some):
        for child in module.modules():
            if isinstance(getattr(child, "eps", None), float):
                child.eps = TINY
        torch.default_generator.manual_seed(6)
        passed(module, batches, modes, case.averages)
        with torch.no_grad():
            outputs.append(run(module.eval(), call))
    for one, other in zip(outputs[:2], outputs[2:], strict=True):
        same(other, one, CLOSE)


# Helpers


def first_call(module: nn.Module, call: Any) -> Any:
    """The output of the first call in evaluation, before which nothing is kept."""
    module.train()
    module.eval()
    torch.default_generator.manual_seed(7)
    with torch.no_grad():
        return run(module, call)


def _from_threads(module: nn.Module, batches: Sequence[Any]) -> None:
    with torch.no_grad():
        alone = [dict(picture(module(**call) if isinstance(call, dict) else module(*call))) for call in batches]
    module.train()
    module.eval()  # what is kept is made anew, by whoever comes first
    barrier, found = threading.Barrier(4), []

    def work(number: int) -> None:
        barrier.wait()
        index, call = number % len(batches), batches[number % len(batches)]
        with torch.no_grad():
            found.append((index, dict(picture(module(**call) if isinstance(call, dict) else module(*call)))))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4, "a thread stopped"
    for index, one in found:
        same(one, alone[index], EXACT)


def _gradient(module: nn.Module, name: str) -> Tensor:
    parameter = dict(module.named_parameters(remove_duplicate=False))[name]
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def _works(way: Callable[[nn.Module], nn.Module], target: nn.Module) -> bool:
    try:
        way(target)
    except Exception:
        return False
    return True


@contextmanager
def _told(case: What) -> Iterator[None]:
    """Within, warnings are collected; afterwards those must have come that the case names, and no others."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield
    messages = [str(one.message) for one in record if "/torch/" not in one.filename and one.category is UserWarning]
    known = [*HARMLESS, *case.tells]
    odd = [message for message in messages if not any(re.search(pattern, message) for pattern in known)]
    assert not odd, odd
    for pattern in case.tells:
        assert any(re.search(pattern, message) for message in messages), f"nothing tells of {pattern}"
