"""U-Nets of segmentation_models_pytorch."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch

from tests.compat.exercise import MARKS, Case, curves, exercise

smp = pytest.importorskip("segmentation_models_pytorch")
pytestmark = MARKS


class Segmenter(pl.LightningModule):
    def __init__(self, encoder="resnet18", loss=None):
        super().__init__()
        self.model = smp.Unet(encoder, encoder_depth=3, encoder_weights=None, decoder_channels=(16, 8, 8), classes=1)
        self.loss = loss or smp.losses.SoftBCEWithLogitsLoss(smooth_factor=0.0)

    def training_step(self, batch, batch_idx):
        return self.loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.model(batch[0])
        counts = smp.metrics.get_stats((logits > 0).long(), batch[1].long(), mode="binary")
        self.log_dict({"loss": self.loss(logits, batch[1]), "iou": smp.metrics.iou_score(*counts, reduction="micro")})

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def squares(count, size=8):
    """A bright square on noise, and where it is."""
    torch.manual_seed(5)
    batches = []
    for _ in range(count):
        x, y = torch.randn(size, 3, 32, 32), torch.zeros(size, 1, 32, 32)
        for image, mask in zip(x, y, strict=True):
            top, left = torch.randint(0, 20, (2,))
            mask[:, top : top + 12, left : left + 12] = 1
            image += mask
        batches.append((x, y))
    return batches


@pytest.mark.parametrize("deal", ["inputs", "batch"])
def test_unet(deal, tmp_path):
    exercise(Case(Segmenter, squares(2), lambda batch: batch[:1], options={"deal": deal}), tmp_path)


def test_unet_with_a_loss_over_the_batch(tmp_path):
    def make():
        return Segmenter(loss=smp.losses.DiceLoss("binary"))

    exercise(Case(make, squares(2), lambda batch: batch[:1], options={"deal": "batch"}), tmp_path)


def test_unet_learns_as_the_plain_one():
    def make():
        return Segmenter("tu-test_resnet")

    case = Case(make, squares(20, 16), lambda batch: batch[:1], options={"samples": 4, "generator": "default"})
    both = [curves(replace(case, seed=10 * seed), 200) for seed in range(5)]
    plain, ours = (torch.tensor(several).mean(0) for several in zip(*both, strict=True))
    assert plain[-20:].mean() < 0.15 * plain[:20].mean()
    assert ours[-20:].mean() < 1.1 * plain[-20:].mean()
    assert ours[80:100].mean() < 1.1 * plain[80:100].mean()
