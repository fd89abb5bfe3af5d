"""How torch's own layers split into filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from lightning_hypernet.markers import hookimpl
from lightning_hypernet.target.filters import NORMS, Rule, Slot


def rows(module: nn.Module, *names: str) -> list[Slot]:
    """One filter for each row of the named parameters; a parameter that is None or absent is passed over.

    Where `torch.nn.utils.parametrize` replaced a parameter, the tensors it is computed from stand in for it, as far as they
    have as many rows.

    Args:
        module: Module that owns the parameters.
        names: Names of parameters with equal numbers of rows.

    Returns:
        One slot a parameter.
    """
    slots = []
    count = None
    for name in names:
        for path, tensor in _originals(module, name):
            count = tensor.shape[0] if count is None and tensor.ndim else count
            if tensor.ndim and tensor.shape[0] == count:
                slots.append(Slot(path, tuple(tensor.shape), tuple(tensor.shape)))
    return slots


def _originals(module: nn.Module, name: str) -> list[tuple[str, Tensor]]:
    if parametrize.is_parametrized(module, name):
        originals = module.get_submodule(f"parametrizations.{name}")
        return [(f"parametrizations.{name}.{key}", value) for key, value in originals.named_parameters(recurse=False)]
    parameter = module._parameters.get(name)
    return [] if parameter is None else [(name, parameter)]


def _layer(module: nn.Module) -> list[list[Slot]]:
    return [rows(module, "weight", "bias")]


def _conv_transpose(module: nn.Module) -> list[list[Slot]]:
    """The weight is ``(in, out / groups, *kernel)``: output unit ``g * out / groups + j`` reads the inputs of group g."""
    assert isinstance(module, _ConvTransposeNd)
    slots = []
    for slot in rows(module, "weight"):
        inputs, outputs, *kernel = slot.shape
        if inputs == module.in_channels and outputs == module.out_channels // module.groups:
            view = (module.groups, inputs // module.groups, outputs, *kernel)
            slots.append(replace(slot, view=view, axes=(0, 2)))
    return [slots + [slot for slot in rows(module, "bias") if slot.shape[0] == module.out_channels]]


def _norm(module: nn.Module) -> list[list[Slot]]:
    weight = module._parameters.get("weight")
    return [rows(module, "weight", "bias")] if weight is not None and weight.ndim == 1 else []


def _attention(module: nn.Module) -> list[list[Slot]]:
    """Query, key and value are three banks, whether their projections are packed into one parameter or not."""
    assert isinstance(module, nn.MultiheadAttention)
    units = module.embed_dim
    banks: list[list[Slot]] = []
    for index, name in enumerate(("q_proj_weight", "k_proj_weight", "v_proj_weight")):
        bank = rows(module, name)
        for slot in rows(module, "in_proj_weight") + rows(module, "in_proj_bias"):
            shape = (units, *slot.shape[1:])
            bank.append(replace(slot, shape=shape, view=shape, start=index * units))
        banks.append(bank)
    return banks


def _recurrent(module: nn.Module) -> list[list[Slot]]:
    """A filter is a gate of a unit: its row of every weight and bias of one layer and direction."""
    suffixes = dict.fromkeys(name[len("weight_ih") :] for name in module._parameters if name.startswith("weight_ih"))
    banks = []
    for suffix in suffixes:
        banks.append(rows(module, *(f"{kind}{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))))
        banks.append(rows(module, f"weight_hr{suffix}"))
    return banks


@hookimpl
def hypernet_register_filters(register: Callable[[type[nn.Module], Rule], None]) -> None:
    """Register the rules of torch's own layers."""
    for layer in (nn.Linear, nn.Bilinear, _ConvNd, nn.Embedding, nn.EmbeddingBag):
        register(layer, _layer)
    register(_ConvTransposeNd, _conv_transpose)
    register(nn.MultiheadAttention, _attention)
    for recurrent in (nn.RNNBase, nn.RNNCellBase):
        register(recurrent, _recurrent)
    for norm in NORMS:
        register(norm, _norm)
