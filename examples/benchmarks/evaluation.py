"""Evaluation: the joined outputs of many members, against a loop over plain modules."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from lightning_hypernet import Ensemble
from outcome import Outcome
from targets import LENET, MNIST, RESNET
from timing import FULL, QUICK, interleaved, medians, ratio
from training import wrapped

BASELINE = "loop over plain modules"
CHUNK = 10
"""Members that vmap runs at once: more need more memory than they save time."""
LONG = replace(FULL, warmup=0, least=3)
"""Rounds are long, and every system has run once before."""


def evaluate(ensemble: Ensemble, x: Tensor) -> dict[str, object]:
    """Three ways to the mean output of the members of an ensemble."""
    modules = [module.eval() for module in ensemble.materialize()]
    base = copy.deepcopy(modules[0])
    state = stack_module_state(modules)
    mapped = vmap(lambda parameters, buffers: functional_call(base, (parameters, buffers), (x,)), chunk_size=CHUNK)
    return {
        BASELINE: lambda: torch.stack([module(x) for module in modules]).mean(0),
        "ours": lambda: ensemble(x),
        "vmap over stacked weights": lambda: mapped(*state).mean(0),
    }


def evaluation(quick: bool) -> Iterator[Outcome]:
    """Ensembles of 10 members, and of 100 where the networks are small; every member has its own norm statistics."""
    for case, images, sizes in ((MNIST, 2000, (10, 100)), (LENET, 2000, (10, 100)), (RESNET, 40, (10,))):
        case, images, sizes = (case.quick(), 8, (2, 3)) if quick else (case, images, sizes)
        hypernet = wrapped(case, generator="compact").eval()
        x, _ = case.batch(images)
        for members in sizes:
            ensemble = hypernet.ensemble(members, loader=[x])
            with torch.inference_mode():
                compared = evaluate(ensemble, x)
                outputs = [run() for run in compared.values()]
                for output in outputs:
                    torch.testing.assert_close(output, outputs[0], rtol=1e-3, atol=1e-4)
                seconds = interleaved(compared, QUICK if quick else LONG)
            lines = [
                [name, f"{1e3 * medians(seconds)[name]['median']:,.1f}", str(ratio(some, seconds[BASELINE]))]
                for name, some in seconds.items()
            ]
            title = f"evaluation: {case.name}, {members} members on {images:,} images"
            yield Outcome(title, ["system", "ms", "ratio to the loop"], lines, {"seconds": medians(seconds)})
