"""Sharding: what generates a target's weights, spread over the ranks of `ModelParallelStrategy`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed, nn

from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.shards import gathered, is_sharded, keep_extra_states, refuse_sharded
from lightning_hypernet.training_step import Step

_REFUSED = ("FSDPStrategy", "DeepSpeedStrategy")
_SHARDING = "ModelParallelStrategy"
_OTHERS = "hypernet_others"


def shards(trainer: pl.Trainer) -> bool:
    """Whether a trainer's strategy shards parameters in `configure_model`.

    Raises:
        ValueError: If it shards them in a way of its own, or splits layers.
    """
    strategy: Any = trainer.strategy
    name = type(strategy).__name__
    if name in _REFUSED:
        raise ValueError(
            f"{name} shards parameters, which a hypernetwork generates; use DDP, ModelParallelStrategy or a single device"
        )
    if name != _SHARDING:
        return False
    if (ways := strategy.device_mesh["tensor_parallel"].size()) > 1:
        raise ValueError(
            f"{_SHARDING} has tensor_parallel_size={ways}, which splits layers, and generated layers are whole on every rank: "
            f"pass data_parallel_size={trainer.world_size}, tensor_parallel_size=1"
        )
    return True


def shard_later(
    trainer: pl.Trainer, pl_module: pl.LightningModule, path: str, hypernet: Callable[[], Hypernet], backward: str
) -> None:
    """Shard what generates the weights when `configure_model` is over, before there are optimizers.

    Args:
        trainer: The trainer.
        pl_module: The LightningModule, whose `configure_model` it goes around.
        path: Path of the target.
        hypernet: Gives the Hypernet that stands there by then.
        backward: The callback's own.

    Raises:
        ValueError: If something that was asked for needs the generator whole.
    """
    if backward == "two_pass":
        raise ValueError(
            f"backward='two_pass' generates weights in parts, and {_SHARDING} gathers the generator as a whole: leave it out"
        )
    averages = [type(one).__name__ for one in trainer.callbacks if hasattr(one, "_average_model")]  # type: ignore[attr-defined]
    if averages:
        raise ValueError(
            f"{', '.join(averages)} keeps a whole copy of weights that {_SHARDING} shards: leave it out, or use DDP"
        )

    def around(_: pl.Trainer, module: pl.LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        shard(module, hypernet(), trainer.strategy.device_mesh["data_parallel"], path)  # type: ignore[attr-defined]

    _Configuring(around, pl_module, "configure_model")


class _Configuring(Step):
    """Goes around a `configure_model` that may be that of no module: the strategy must take it for one of its own."""

    def __init__(self, around: Callable[..., Any], pl_module: pl.LightningModule, name: str) -> None:
        super().__init__(around, pl_module, name)
        vars(self).pop("__wrapped__", None)

    @property
    def __code__(self) -> Any:
        return type(self).__call__.__code__


def shard(pl_module: nn.Module, hypernet: Hypernet, mesh: Any, path: str) -> None:
    r"""Give every rank its part of the generator's parameters; generated weights stay where they are generated.

    A rank draws networks of its own. The generator is gathered while it runs, forward and backward, and its gradient is
    averaged over R ranks into the parts, as DDP averages it:

    .. math:: g = \frac{1}{R} \sum_r \nabla L_r

    What trains beside it and is not sharded stays whole on every rank, starts from the numbers of rank 0, and its gradient is
    averaged too.

    Args:
        pl_module: The LightningModule.
        hypernet: The Hypernet in it.
        mesh: One-dimensional, of the ranks.
        path: Path of the target.

    Raises:
        ValueError: If the target was sharded before, copies of it follow it, or its weights have a density that is asked for
            beside them.

    References:
        | PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Zhao et al., 2023)
        | https://arxiv.org/abs/2304.11277
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard  # not in builds of torch without ranks

    generator = hypernet.generator
    if isinstance(generator, FSDPModule):
        return  # by the same callback, in a run before
    refuse_sharded(hypernet, path)
    if generator.density != "none":
        raise ValueError(
            f"the density of {type(generator).__name__} is read beside its weights, and {_SHARDING} gathers it for these "
            "alone: take distribution='generator', or DDP"
        )
    if any(isinstance(one, Hypernet) and one is not hypernet and one.same_as(hypernet) for one in pl_module.modules()):
        raise ValueError(f"copies of {path!r} follow it number by number, and {_SHARDING} shards it: use DDP")
    for tensor in (*pl_module.parameters(), *pl_module.buffers()):
        if not is_sharded(tensor) and not tensor.is_meta:
            distributed.broadcast(tensor.detach(), 0, group=mesh.get_group())
    keep_extra_states(hypernet)
    generator.register_forward_hook(_apart)
    fully_shard(generator, mesh=mesh, reshard_after_forward=True)
    for parameter in pl_module.parameters():
        if parameter.requires_grad and not is_sharded(parameter):
            parameter.register_post_accumulate_grad_hook(_averaging(mesh))


def _apart(generator: nn.Module, inputs: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in memory of their own: what gathers the generator for the backward pass hangs on tensors that are no views."""
    return {name: value.clone() if value._is_view() else value for name, value in weights.items()}


def _averaging(mesh: Any) -> Callable[[Tensor], None]:
    def average(parameter: Tensor) -> None:
        assert parameter.grad is not None
        distributed.all_reduce(parameter.grad, group=mesh.get_group())
        parameter.grad.div_(mesh.size())

    return average


def keep_apart(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Let an optimizer whose groups hold sharded and whole parameters move them one by one: one kernel takes only one kind."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if len({is_sharded(parameter) for parameter in group["params"]}) > 1:
                group.update({name: False for name in ("foreach", "fused") if name in group})


def add_state(checkpoint: dict[str, Any], name: str, hypernet: Hypernet, trainer: pl.Trainer) -> None:
    """Put the state of a Hypernet into a checkpoint: whole, unless a folder of shards is written; all ranks must come here.

    Args:
        checkpoint: The checkpoint.
        name: Where the Hypernet is in the LightningModule.
        hypernet: The Hypernet.
        trainer: The trainer.
    """
    state = {f"{name}.{key}": value for key, value in hypernet.state_dict().items()}
    if not getattr(trainer.strategy, "_save_distributed_checkpoint", False):
        state = {key: gathered(value) for key, value in state.items()}
    checkpoint["state_dict"].update(state)
    if shards(trainer):  # whose loading takes tensors alone
        others = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        checkpoint.setdefault(_OTHERS, {}).update(others)


def take_others(checkpoint: Mapping[str, Any], name: str, hypernet: Hypernet) -> None:
    """Take what is no tensor of a checkpoint, such as the number of draws: continue its random numbers."""
    for path, module in hypernet.named_modules(prefix=name):
        state = checkpoint.get(_OTHERS, {}).get(f"{path}._extra_state")
        if state is not None:
            module.set_extra_state(state)
