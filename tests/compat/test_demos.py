"""The modules that Lightning brings along to try things with."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel, Net, RandomDataset
from pytorch_lightning.demos.lstm import LightningLSTM, SimpleLSTM
from pytorch_lightning.demos.transformer import LightningTransformer, Transformer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.compat.exercise import MARKS, Case, exercise
from tests.test_callback import vocabulary

pytestmark = MARKS


def boring():
    torch.manual_seed(5)
    return list(DataLoader(RandomDataset(32, 32), 8))


@pytest.mark.parametrize("target", ["layer", "."])
@pytest.mark.parametrize("deal", ["inputs", "batch"])
def test_boring_model(target, deal, tmp_path):
    exercise(Case(BoringModel, boring(), lambda batch: (batch,), target, {"deal": deal}), tmp_path)


class LanguageModel(LightningTransformer):
    """With an evaluation, and no data of its own."""

    def __init__(self):
        super().__init__(vocab_size=20)
        self.model = Transformer(vocab_size=20, ninp=16, nhead=2, nhid=16, nlayers=1)

    def prepare_data(self):
        pass

    def validation_step(self, batch, batch_idx):
        self.log("loss", F.nll_loss(self(*batch), batch[1].view(-1)))

    test_step = validation_step


@pytest.mark.parametrize("deal", ["inputs", "batch"])
def test_transformer(deal, tmp_path):
    exercise(Case(LanguageModel, list(vocabulary(20)), lambda batch: tuple(batch), options={"deal": deal}), tmp_path)


STATES = (torch.zeros(1, 12, 16), torch.zeros(1, 12, 16))


class Recurrent(LightningLSTM):
    def __init__(self):
        super().__init__(vocab_size=20)
        self.model = SimpleLSTM(vocab_size=20, ninp=16, nhid=16, nlayers=1, dropout=0.0)

    prepare_data = LanguageModel.prepare_data

    def validation_step(self, batch, batch_idx):
        output, _ = self.model(batch[0], STATES)
        self.log("loss", F.nll_loss(output, batch[1].view(-1)))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def with_states(batch):
    return batch[0], STATES


def test_lstm_that_carries_its_state(tmp_path):
    exercise(Case(Recurrent, list(vocabulary(20)), with_states, replay=False, loaded=with_states), tmp_path)


class Digits(pl.LightningModule):
    """The convolutional network for MNIST, on noise."""

    def __init__(self):
        super().__init__()
        self.model = Net()

    def training_step(self, batch, batch_idx):
        return F.nll_loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", F.nll_loss(self.model(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("deal", ["inputs", "batch"])
def test_net_for_digits(deal, tmp_path):
    torch.manual_seed(5)
    loader = [(torch.randn(8, 1, 28, 28), torch.randint(0, 10, (8,))) for _ in range(2)]
    exercise(Case(Digits, loader, lambda batch: batch[:1], options={"deal": deal}), tmp_path)
