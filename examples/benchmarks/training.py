"""Training: one step of many networks, beside the bare loop over them."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightning_hypernet import Hypernet
from lightning_hypernet.diversity import Entropy
from outcome import Outcome
from peers import Draw, peers
from targets import LENET, MANY, MLP, MNIST, RESNET, VIT, Case
from timing import DEVICE, FULL, QUICK, Step, dense_rate, interleaved, kernels, medians, ratio, weights

BASELINE = "bare loop"


def step_of(loss: Callable[[], Tensor], parameters: Iterable[Tensor], optimizer: torch.optim.Optimizer | None = None) -> Step:
    """A training step; on a GPU losses are computed in bf16. No gradient is left behind.

    Args:
        loss: Computes the loss.
        parameters: What it is differentiated by.
        optimizer: Steps, if there is one.
    """
    parameters = list(parameters)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            value = loss()
        value.backward()
        if optimizer is not None:
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    return step


def adam(module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all hypernetworks."""
    return torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)


def looped(target: nn.Module, stacked: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The mean loss of stacked networks, each on its part of the batch."""
    each = {name: value.unbind() for name, value in stacked.items()}
    parts = x.chunk(len(next(iter(stacked.values()))))
    outputs = [
        functional_call(target, {name: values[index] for name, values in each.items()}, part)
        for index, part in enumerate(parts)
    ]
    return F.cross_entropy(torch.cat(outputs), y)


def bare_loop(case: Case) -> Step:
    """The weights of all networks, stacked, are trained themselves."""
    target, (x, y) = case.target(), case.batch()
    stacked = {name: value.detach().expand(case.samples, *value.shape).clone() for name, value in target.named_parameters()}
    for value in stacked.values():
        value.requires_grad_()
    return step_of(lambda: looped(target, stacked, x, y), stacked.values())


def plain_modules(case: Case) -> Step:
    """Every network is a module."""
    target, (x, y) = case.target(), case.batch()
    modules = nn.ModuleList(copy.deepcopy(target) for _ in range(case.samples))

    def loss() -> Tensor:
        outputs = [module(part) for module, part in zip(modules, x.chunk(case.samples), strict=True)]
        return F.cross_entropy(torch.cat(outputs), y)

    return step_of(loss, modules.parameters())


def shared(case: Case) -> Step:
    """One network sees all images."""
    target, (x, y) = case.target(), case.batch()
    return step_of(lambda: F.cross_entropy(target(x), y), target.parameters())


def wrapped(case: Case, **options: Any) -> Hypernet:
    """Our Hypernet of a target, in training mode, its symmetries read."""
    hypernet = Hypernet(case.target(), example_inputs=case.batch(2)[0], samples=case.samples, **options).to(DEVICE).train()
    _ = hypernet.symmetries.unread
    return hypernet


def ours(case: Case, diverse: bool = False, **options: Any) -> Step:
    """Our Hypernet with its optimizer, and the entropy of its networks where they shall be diverse."""
    hypernet, (x, y), entropy = wrapped(case, **options), case.batch(), Entropy().to(DEVICE)

    def loss() -> Tensor:
        value = F.cross_entropy(hypernet(x), y)
        return value + 1e-3 * entropy(hypernet.population) if diverse else value

    return step_of(loss, hypernet.parameters(), adam(hypernet))


def peer(case: Case, module: nn.Module, draw: Draw) -> Step:
    """A peer's hypernetwork with its optimizer, its networks run by the bare loop."""
    target, (x, y) = case.target(), case.batch()
    return step_of(lambda: looped(target, draw(case.samples), x, y), module.parameters(), adam(module))


def systems(case: Case) -> dict[str, Step]:
    """Everything that is compared on a target."""
    made = {BASELINE: bare_loop(case), "loop over plain modules": plain_modules(case), "one shared network": shared(case)}
    generators = {"default": {}, "compact": {"generator": "compact"}, "paper's": case.paper}
    for name, options in generators.items():
        if options or name == "default":
            made[f"ours, {name}"] = ours(case, **options)
            made[f"ours, {name}, with gauge and entropy"] = ours(case, diverse=True, **options)
    return made | {name: peer(case, *hypernetwork) for name, hypernetwork in peers(case.target()).items()}


def operations(step: Step) -> int:
    """Floating-point operations of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def train(quick: bool) -> Iterator[Outcome]:
    """One training step. All hypernetworks step their optimizer; the three ways without one have none."""
    for case in (MLP, MANY, MNIST, LENET, RESNET, VIT):
        case = case.quick() if quick else case
        compared = systems(case)
        seconds = interleaved(compared, QUICK if quick else FULL)
        columns, numbers = ["system", "ms", "ratio to the bare loop"], {"seconds": medians(seconds)}
        lines = [
            [name, f"{1e3 * numbers['seconds'][name]['median']:.2f}", str(ratio(some, seconds[BASELINE]))]
            for name, some in seconds.items()
        ]
        if DEVICE.type == "cuda":
            columns += ["kernels", "share of dense bf16, %"]
            work, rate = operations(compared[BASELINE]), dense_rate()
            for line in lines:
                of = numbers["seconds"][line[0]]
                of["kernels"], of["share"] = kernels(compared[line[0]]), work / rate / of["median"]
                line += [str(of["kernels"]), f"{100 * of['share']:.2f}"]
        yield Outcome(f"training step: {case.title}, {weights(case.target()):,} weights", columns, lines, numbers)
