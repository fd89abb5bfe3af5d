"""The data sets of the reproductions, as tensors, and batches of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

AUGMENTED: dict[str, dict[str, Any]] = {"mnist": {"shift": 2}, "cifar10": {"shift": 2, "mirror": True}}
"""How the training images of the two small targets are changed, but for the paper's MNIST, which takes them as they are."""


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images that come in whole batches, standardised, and at will shifted and mirrored at random.

    Args:
        images: ``(n, channels, height, width)``, 0 to 255.
        labels: ``(n,)``.
        mean: Of each channel, as shares of 255.
        std: Likewise.
        shift: Largest random shift along each axis, in pixels; black comes in from outside.
        mirror: Whether every other image is mirrored.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, shift: int = 0, mirror: bool = False) -> None:
        self.images, self.labels, self.shift, self.mirror = images, labels, shift, mirror
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        self.padded = F.pad(images, [shift] * 4)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """One batch: images ``(n, channels, height, width)``, channels last in memory, and labels ``(n,)``."""
        chosen = torch.tensor(indices)
        images = self._crops(chosen) if self.shift else self.images[chosen]
        if self.mirror:
            mirrored = torch.rand(len(chosen), 1, 1, 1) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        standardised = (images.float() / 255 - self.mean) / self.std
        last = standardised.movedim(1, -1)  # in memory too, also of one channel: convolutions and pooling run faster so
        return last.flatten().view(last.shape).movedim(-1, 1), self.labels[chosen]

    def _crops(self, chosen: Tensor) -> Tensor:
        height, width = self.images.shape[-2:]
        y, x = torch.randint(2 * self.shift + 1, (2, len(chosen)))
        return self.padded.unfold(2, height, 1).unfold(3, width, 1)[chosen, :, y, x]

    def to(self, device: torch.device) -> "Images":
        """The same images on a device; there they are neither shifted nor mirrored."""
        parts = (self.images, self.labels, self.mean.flatten(), self.std.flatten())
        return Images(*(part.to(device) for part in parts))

    def loader(self, batch_size: int, shuffle: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches; the incomplete last one is left out where they are shuffled."""
        return DataLoader(self, batch_size, shuffle, drop_last=shuffle, collate_fn=_as_it_is)


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def load(name: str, folder: Path, shift: int = 0, mirror: bool = False, standardise: bool = True) -> tuple[Images, Images]:
    """Training and test images of ``mnist`` or ``cifar10``, from an npz file in the folder or else from torchvision.

    Args:
        name: Name of the data set.
        folder: Where ``NAME.npz`` lies, with the arrays x_train, y_train, x_test and y_test, or where torchvision keeps it.
        shift: Largest random shift of training images, in pixels.
        mirror: Whether every other training image is mirrored.
        standardise: Whether to take off the mean and divide by the deviation of the training images; else 0 to 1.

    Returns:
        Both sets.
    """
    path = folder / f"{name}.npz"
    arrays = dict(np.load(path)) if path.exists() else _torchvision(name, folder)
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    images = {key: _channels_first(tensors[key]) for key in ("x_train", "x_test")}
    shares = images["x_train"].float() / 255
    mean, std = shares.mean((0, 2, 3)), shares.std((0, 2, 3))
    if not standardise:
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    train = Images(images["x_train"], tensors["y_train"].long(), mean, std, shift, mirror)
    return train, Images(images["x_test"], tensors["y_test"].long(), mean, std)


def outside(path: Path, like: Images) -> Images:
    """The images of another data set, standardised like those; labels that say nothing."""
    arrays = np.load(path)
    images = _channels_first(torch.from_numpy(next(arrays[name] for name in arrays.files if arrays[name].ndim >= 3)))
    labels = torch.zeros(len(images), dtype=torch.long)
    return Images(images, labels, like.mean.flatten(), like.std.flatten()).to(like.images.device)


def digits() -> tuple[Images, Images]:
    """A third of scikit-learn's digits to train on, the rest to test on."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=2 / 3, random_state=0, stratify=labels)
    x_train, x_test = (torch.tensor(part).view(-1, 1, 8, 8) * (255 / 16) for part in parts[:2])
    y_train, y_test = (torch.tensor(part) for part in parts[2:])
    zero, one = torch.zeros(1), torch.ones(1)
    return Images(x_train, y_train, zero, one), Images(x_test, y_test, zero, one)


def _channels_first(images: Tensor) -> Tensor:
    images = images[:, None] if images.ndim == 3 else images
    return images if images.shape[1] in (1, 3) else images.movedim(-1, 1).contiguous()


def _torchvision(name: str, folder: Path) -> dict[str, np.ndarray]:
    from torchvision import datasets

    kinds = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}
    parts = {part: kinds[name](folder, train=part == "train", download=True) for part in ("train", "test")}
    arrays = {f"x_{part}": np.asarray(data.data) for part, data in parts.items()}
    return arrays | {f"y_{part}": np.asarray(data.targets) for part, data in parts.items()}
