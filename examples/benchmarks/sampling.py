"""Sampling: how many networks a second, against copying as many numbers."""

from collections.abc import Iterator

import torch

from outcome import Outcome
from peers import peers
from targets import LENET, MNIST
from timing import DEVICE, FULL, QUICK, Step, interleaved, medians, ratio, weights
from training import wrapped

BOUND = "memcpy"


def memcpy(numbers: int) -> Step:
    """Copies numbers into memory of its own."""
    source, copied = torch.rand(numbers, device=DEVICE), torch.empty(numbers, device=DEVICE)
    copied.fill_(0.0)
    return lambda: copied.copy_(source)


def sampling(quick: bool) -> Iterator[Outcome]:
    """Networks a second at 100 and 1,000 at once."""
    for case in (MNIST, LENET):
        for count in (2, 3) if quick else (100, 1000):
            target = case.target()
            compared: dict[str, Step] = {BOUND: memcpy(count * weights(target))}
            for generator in ("default", "compact"):
                hypernet = wrapped(case, generator=generator).eval()
                compared[f"ours, {generator}"] = lambda hypernet=hypernet, count=count: hypernet.sample(count).weights
            for name, (module, draw) in peers(target).items():
                module.eval()
                compared[name] = lambda draw=draw, count=count: draw(count)
            with torch.inference_mode():
                seconds = interleaved(compared, QUICK if quick else FULL)
            kept = medians(seconds)
            lines = []
            for name, some in seconds.items():
                share = ratio(seconds[BOUND], some)
                spread = f"{100 * share.median:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"
                lines.append([name, f"{count / kept[name]['median']:,.0f}", spread])
            title = f"sampling: {case.name}, {count:,} at once"
            yield Outcome(title, ["system", "networks/s", "share of the bound, %"], lines, {"seconds": kept, "networks": count})
