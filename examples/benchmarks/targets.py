"""Targets: the networks that are generated, and the batches that they see."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from timing import DEVICE


@dataclass(frozen=True)
class Case:
    """A target, and how many networks and images a step has.

    Args:
        name: Its name in tables.
        make: Makes the target.
        shape: Of one image.
        samples: Networks.
        images: Images of each network.
        paper: Options of the Hypernet that make it the paper's for this target; empty: there is none.
        small: Makes what stands for the target in a quick run.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    samples: int = 8
    images: int = 16
    paper: Mapping[str, Any] = field(default_factory=dict)
    small: Callable[[], nn.Module] | None = None

    def quick(self) -> "Case":
        """The same with a few networks of two images."""
        return replace(self, make=self.small or self.make, samples=max(2, self.samples // 16), images=2)

    @property
    def title(self) -> str:
        """Name and sizes."""
        return f"{self.name}, {self.samples} networks x {self.images} images"

    def target(self) -> nn.Module:
        """The target in training mode, with the same weights every time."""
        torch.manual_seed(0)
        return self.make().to(DEVICE).train()

    def batch(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Random images and labels: as many as a step has, or as are wanted."""
        count = count or self.samples * self.images
        random = torch.Generator().manual_seed(1)
        images = torch.rand(count, *self.shape, generator=random)
        return images.to(DEVICE), torch.randint(0, 10, (count,), generator=random).to(DEVICE)


def mlp(inputs: int = 64, *hidden: int) -> nn.Sequential:
    """Linear layers with ReLU between them, ten outputs."""
    widths = [inputs, *hidden, 10]
    layers = [layer for one, other in itertools.pairwise(widths) for layer in (nn.Linear(one, other), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def mnist() -> nn.Sequential:
    """The paper's MNIST target: 20,018 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 16, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(784, 8),
        nn.ReLU(),
        nn.Linear(8, 10),
    )


def lenet() -> nn.Sequential:
    """The paper's LeNet for CIFAR-10: 62,006 weights."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(6, 16, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def vit(width: int = 64, depth: int = 4) -> nn.Module:
    """A small vision transformer for 32x32."""
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=width, depth=depth, num_heads=4, num_classes=10)


MLP = Case("MLP 64-32-10", lambda: mlp(64, 32), (64,))
MANY = replace(MLP, samples=64, images=8)
MNIST = Case(
    "MNIST target", mnist, (1, 28, 28), 32, 32, {"generator": "paper_mnist", "latent_dim": 300, "prior": "uniform"}
)  # fmt: skip
LENET = Case("LeNet", lenet, (3, 32, 32), 10, 128, {"generator": "paper_cifar_lenet", "latent_dim": 100})
RESNET = Case(
    "resnet18 at 32x32",
    lambda: timm.create_model("resnet18", num_classes=10),
    (3, 32, 32),
    small=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 10)),
)
VIT = Case("ViT, width 64, depth 4, at 32x32", vit, (3, 32, 32), small=lambda: vit(8, 1))
