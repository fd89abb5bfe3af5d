"""Timing: systems run in turn in one process, and what they hold."""

import gc
import itertools
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

Step = Callable[[], object]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Effort:
    """How long systems are measured.

    Args:
        warmup: Rounds before those that count.
        least: Rounds that count at least.
        most: Rounds that count at most.
        seconds: After these no further round starts; a quarter of them is for the warm-up.
    """

    warmup: int
    least: int
    most: int
    seconds: float


FULL, QUICK = Effort(5, 10, 200, 20.0), Effort(1, 2, 2, 0.0)


def processor_seconds() -> float:
    """Processor time of this process; on a GPU the time at which it has done its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def child_seconds() -> float:
    """Processor time of the processes that this one has started and waited for."""
    return sum(os.times()[2:4])


def interleaved(
    systems: Mapping[str, Step], effort: Effort, clock: Callable[[], float] = processor_seconds
) -> dict[str, list[float]]:
    """Seconds of every system in every round; each round runs all of them once, in an order of its own.

    Args:
        systems: What is run, by name.
        effort: How often.
        clock: Tells the time.
    """
    order, shuffle = list(systems), random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in systems}

    def rounds(least: int, most: int, budget: float) -> None:
        start = time.perf_counter()
        for count in range(most):
            if count >= least and time.perf_counter() - start > budget:
                return
            shuffle(order)
            for name in order:
                gc.collect()
                begin = clock()
                systems[name]()
                seconds[name].append(clock() - begin)

    rounds(min(1, effort.warmup), effort.warmup, effort.seconds / 4)
    seconds = {name: [] for name in systems}
    gc.freeze()
    rounds(effort.least, effort.most, effort.seconds)
    gc.unfreeze()
    return seconds


@dataclass(frozen=True)
class Ratio:
    """Time of a system in units of the baseline's: that of the medians, and the 10th and 90th percentile over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return "1" if self.low == self.high else f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(seconds: list[float], baseline: list[float]) -> Ratio:
    """Compare two systems that were run in the same rounds."""
    low, high = np.percentile(np.divide(seconds, baseline), [10, 90])
    return Ratio(float(np.median(seconds) / np.median(baseline)), float(low), float(high))


def medians(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float | int]]:
    """What the JSON keeps of every system: median, percentiles and number of rounds."""
    return {
        name: {
            "median": float(np.median(some)),
            "p10": float(np.percentile(some, 10)),
            "p90": float(np.percentile(some, 90)),
            "rounds": len(some),
        }
        for name, some in seconds.items()
    }


def peak_memory(build: Callable[[], Step]) -> int:
    """Bytes of tensors held at the peak of a system's second step, all that were made since it was built included.

    Args:
        build: Builds the system; what exists before does not count.
    """
    gc.collect()
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        step = build()
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step = build()
        step()
        with record_function("second step"):
            step()
    events = trace.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == "second step")
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = itertools.accumulate(size for _, size in changes)
    return max(size for (when, _), size in zip(changes, held, strict=True) if when >= start)


def kernels(step: Step) -> int:
    """Kernels that a step starts on the GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    on_gpu = [event for event in trace.events() if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_gpu)


def dense_rate(size: int = 8192, times: int = 20) -> float:
    """Operations a second of a product of dense bf16 matrices."""
    one = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    for _ in range(times):
        product = one @ one
    begin = processor_seconds()
    for _ in range(times):
        torch.mm(one, one, out=product)
    return times * 2 * size**3 / (processor_seconds() - begin)


def weights(module: nn.Module) -> int:
    """Number of trained weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
