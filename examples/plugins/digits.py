"""What the two plug-ins are tried on: scikit-learn's digits, an ordinary LightningModule, and one with a layer of a plug-in."""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset


class Digits(pl.LightningDataModule):
    """1,797 images of 8x8; 1,437 to train."""

    def __init__(self, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed

    def setup(self, stage: str) -> None:
        """Split the images."""
        x, y = load_digits(return_X_y=True)
        whole = TensorDataset(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(self.seed)).tolist()
        self.train, self.rest = Subset(whole, order[:1437]), Subset(whole, order[1437:])

    def train_dataloader(self) -> DataLoader:
        """The images to train with."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The others."""
        return DataLoader(self.rest, batch_size=256)


class Classifier(pl.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self, lr: float = 2e-3) -> None:
        super().__init__()
        self.lr = lr
        self.model = self.network()

    def network(self) -> nn.Module:
        """The target."""
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy of the ensemble."""
        self.log("accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class RingClassifier(Classifier):
    """The same with a layer of the plug-in `hypernet_ring`."""

    def network(self) -> nn.Module:
        """The target."""
        from hypernet_ring import RingLinear

        return nn.Sequential(RingLinear(64, 8), nn.ReLU(), nn.Linear(64, 10))
