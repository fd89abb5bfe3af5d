"""A training step asks no device for a number, so that none is waited for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_hypernet import Hypernet
from lightning_hypernet.diversity import Entropy

ASKING = {
    "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select",
    "aten::unique_dim", "aten::_unique2", "aten::unique_consecutive",
}  # fmt: skip


class Asked(TorchDispatchMode):
    """Notes what asks for numbers, or for shapes that follow from numbers."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ASKING:
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


def conv():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)), (3, 6, 6)


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), (6,)


@pytest.mark.parametrize("options", [{}, {"components": 2}, {"context_dim": 2}, {"generator": "compact"}])
@pytest.mark.parametrize(("make", "execution"), [(conv, "loop"), (conv, "blocked"), (mlp, "batched")])
def test_a_step_waits_for_nothing(make, execution, options):
    torch.manual_seed(0)
    target, shape = make()
    x, y = torch.randn(8, *shape), torch.randint(5, (8,))
    hypernet = Hypernet(target, samples=4, example_inputs=x[:2], execution=execution, **options).train()
    entropy = Entropy(coordinates=60)
    optimizer = torch.optim.SGD([*hypernet.parameters(), *entropy.parameters()], lr=1e-2)

    def step():
        with hypernet.step():
            loss = F.cross_entropy(hypernet(x), y) + 1e-3 * entropy(hypernet.population)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(12):  # what is found out once, of every parameter
        step()
    with Asked() as asked:
        step()
    assert asked.found == []
