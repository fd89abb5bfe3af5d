"""Linear layers and convolutions as what they are for noisy K-FAC: one matrix that meets inputs at several places."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def known(layer: nn.Module) -> bool:
    """Whether a layer is linear, or a convolution of one group and padded by numbers of zeros."""
    if isinstance(layer, nn.Conv2d):
        return (layer.groups, layer.padding_mode) == (1, "zeros") and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def inputs_of(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What the matrix is multiplied by, ``(batch, places, size)``: of a convolution patches; last a one if there is a bias."""
    if isinstance(layer, nn.Conv2d):
        inputs = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
    inputs = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    return inputs if layer.bias is None else F.pad(inputs, (0, 1), value=1.0)


def outputs_of(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Outputs or their gradients, ``(batch, places, outputs)``."""
    if isinstance(layer, nn.Conv2d):
        outputs = outputs.flatten(2).mT
    return outputs.reshape(len(outputs), -1, outputs.shape[-1])


def matrix_of(tensors: list[Tensor]) -> Tensor:
    """A layer's weight and bias, if it has one, or what is shaped like them, ``(outputs, size)``."""
    return torch.cat([one.detach().reshape(len(one), -1) for one in tensors], 1)


@torch.no_grad()
def put(matrix: Tensor, tensors: list[Tensor]) -> None:
    """Write a matrix into a layer's weight and bias."""
    for one, part in zip(tensors, matrix.tensor_split([tensors[0][0].numel()], 1), strict=False):
        one.copy_(part.reshape(one.shape))
