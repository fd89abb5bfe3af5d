"""Detection with torchvision's Faster R-CNN: lists of images and of targets, losses in training, boxes in evaluation."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tests.compat.exercise import MARKS, Case, exercise

pytest.importorskip("torchvision")
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

pytestmark = MARKS


def small():
    features = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
    )
    features.out_channels = 16
    return FasterRCNN(
        features,
        min_size=48,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((8, 16, 24),), ((1.0,),)),
        rpn_post_nms_top_n_train=40,
        rpn_post_nms_top_n_test=20,
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(16 * 9, 16),
        box_predictor=FastRCNNPredictor(16, 3),
        box_detections_per_img=5,
    )


class Detector(pl.LightningModule):
    def __init__(self, make=small):
        super().__init__()
        self.model = make()

    def training_step(self, batch, batch_idx):
        losses = self.model(*batch)
        self.log_dict({name: value.detach() for name, value in losses.items()}, batch_size=len(batch[0]))
        return sum(losses.values())

    def validation_step(self, batch, batch_idx):
        found = self.model(batch[0])
        self.log("boxes", float(sum(len(one["boxes"]) for one in found)), batch_size=len(batch[0]))
        self.log("score", torch.cat([one["scores"] for one in found]).mean(), batch_size=len(batch[0]))

    def test_step(self, batch, batch_idx):
        return {"found": self.model(batch[0])}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def scenes(count, sizes=((48, 48), (56, 48), (48, 64), (48, 48))):
    torch.manual_seed(5)
    batches = []
    for _ in range(count):
        images = [torch.rand(3, *size) for size in sizes]
        targets = []
        for index, _ in enumerate(images):
            corner = torch.randint(0, 24, (1 + index % 2, 2)).float()
            targets.append({"boxes": torch.cat([corner, corner + 20], 1), "labels": torch.randint(1, 3, (len(corner),))})
        batches.append((images, targets))
    return batches


@pytest.mark.parametrize("deal", ["batch", "inputs"])
def test_faster_rcnn(deal, tmp_path):
    options = {"deal": deal, "validation": "members", "reduce": None}
    exercise(Case(Detector, scenes(2), lambda batch: (batch[0],), options=options), tmp_path)
