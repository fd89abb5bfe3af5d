"""Images: scikit-learn's digits by a small convolutional network; ten networks in place of one.

Seeds 0 to 2 (settings were chosen with 100: five of them, five ways): the ensemble's NLL is 0.131 nats, a member's 0.166,
the plain network's 0.137; accuracies are 95.9 %, 95.0 % and 96.0 %; with seed 0 it is worse than the plain network. With the
defaults: 0.132 nats and 96.0 %. About 40 seconds of processor time.
"""

import argparse
import logging
import math
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import HypernetCallback

CLASSES = 10

# %% [markdown]
# ## The data
#
# 1,797 digits of 8 x 8 pixels. A third is for training, so that a network has something left to be unsure of.


# %%
def load(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Training and test digits, drawn by the seed."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(images).float().view(-1, 1, 8, 8)[order] / 16, torch.tensor(labels)[order]
    return TensorDataset(x[:600], y[:600]), TensorDataset(x[600:], y[600:])


# %% [markdown]
# ## The network
#
# An ordinary LightningModule; nothing in it speaks of hypernetworks.


# %%
class Classifier(pl.LightningModule):
    """A convolutional network and its cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, CLASSES),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(data: TensorDataset, epochs: int, seed: int, callback: HypernetCallback | None = None) -> Classifier:
    """Train the module; with a callback, its network is the target of a hypernetwork."""
    pl.seed_everything(seed, verbose=False)
    module = Classifier()
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[callback] if callback else [], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, 120, shuffle=True, drop_last=True))
    return module.eval()


# %% [markdown]
# ## What is compared
#
# The ensemble's probabilities are the mean of its members'. The negative log-likelihood (NLL, in nats) of the right class is
# low for who is right and knows when not.


# %%
@torch.no_grad()
def scores(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """NLL and accuracy in percent of the joined logits ``(members, batch, classes)``, and of a member in the mean."""
    each = outputs.log_softmax(-1)
    joint = each.logsumexp(0) - math.log(len(each))
    return {
        "ensemble_nll": F.nll_loss(joint, targets).item(),
        "member_nll": sum(F.nll_loss(one, targets).item() for one in each) / len(each),
        "ensemble_accuracy": 100 * (joint.argmax(-1) == targets).float().mean().item(),
        "member_accuracy": 100 * (each.argmax(-1) == targets).float().mean().item(),
    }


def draw(inputs: Tensor, outputs: Tensor, targets: Tensor, path: Path) -> None:
    """The digits that members agree on least, and what each of them says."""
    probabilities = outputs.softmax(-1)
    mean = probabilities.mean(0)
    entropy = -(mean * mean.clamp(min=1e-12).log()).sum(-1)
    within = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1).mean(0)
    chosen = (entropy - within).argsort(descending=True)[:8].tolist()
    figure, axes = plt.subplots(2, 8, figsize=(10, 3), layout="constrained", height_ratios=[2, 1])
    for (above, below), index in zip(axes.T, chosen, strict=True):
        above.imshow(inputs[index, 0], cmap="gray_r")
        above.set(xticks=[], yticks=[], title=f"a {int(targets[index])}")
        votes = probabilities[:, index].argmax(-1).bincount(minlength=CLASSES)
        below.bar(range(CLASSES), votes, color="C0")
        below.set(xticks=[0, 9], yticks=[], ylim=(0, len(outputs)))
    figure.suptitle("Digits that ten networks disagree on most, and their votes")
    figure.savefig(path, dpi=120)


# %% [markdown]
# ## Three trainings
#
# 1. The plain network; and a second one that stops after half as many epochs, in case the first one overfits.
# 2. The same module with `HypernetCallback` and its defaults: one family of networks around trained mean weights.
# 3. The same with `components=3`: three families, which see a third of every batch each; the ensemble holds three or
#    four networks of each.
#
# All see the same images as often, so that an ensemble of ten costs one training.


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description="Ten networks in place of one, on images.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("image.png"), help="the picture")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    train, test = load(options.seed)
    inputs, targets = test.tensors

    figures = {}
    for name, epochs in (("plain", options.epochs), ("plain_stopped", max(1, options.epochs // 2))):
        with torch.no_grad():
            alone = scores(fit(train, epochs, options.seed).model(inputs)[None], targets)
        figures |= {key.replace("member", name): value for key, value in alone.items() if key.startswith("member")}
    callbacks = {
        "defaults": HypernetCallback(target="model"),
        "families": HypernetCallback(target="model", components=3),
    }
    for name, callback in callbacks.items():
        fit(train, options.epochs, options.seed, callback)
        with torch.no_grad():
            outputs = callback.hypernet.eval().ensemble(10).members(inputs)
        figures |= {f"{name}_{key}": value for key, value in scores(outputs, targets).items()}
    draw(inputs, outputs, targets, options.out)

    for name, value in figures.items():
        print(f"{name}: {value:.4f}")
    gain = min(figures["plain_nll"], figures["plain_stopped_nll"]) - figures["families_ensemble_nll"]
    print(f"nll_gain: {gain:.4f}")
    print(f"ensemble_is_better: {'yes' if gain > 0 else 'no'}")
    print(f"processor_seconds: {time.process_time():.0f}")


if __name__ == "__main__":
    main()
