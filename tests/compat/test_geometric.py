"""Graph networks of torch_geometric, on batches of its own loader."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from tests.compat.exercise import MARKS, Case, exercise

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GATConv, GCNConv, global_mean_pool
from torch_geometric.nn.models import GCN

pytestmark = MARKS


class Net(nn.Module):
    def __init__(self, layer=GCNConv, pooled=True):
        super().__init__()
        self.first, self.second, self.head = layer(4, 8), layer(8, 8), nn.Linear(8, 3)
        self.norm, self.pooled = nn.BatchNorm1d(8), pooled

    def forward(self, x, edge_index, batch):
        x = self.norm(self.first(x, edge_index)).relu()
        x = self.second(x, edge_index).relu()
        return self.head(global_mean_pool(x, batch) if self.pooled else x)


class Graphs(pl.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def loss(self, data):
        out = self.model(data.x, data.edge_index, data.batch)
        return F.cross_entropy(out, data.y if len(out) == len(data.y) else data.node_y)

    def training_step(self, data, batch_idx):
        loss = self.loss(data)
        self.log("train_loss", loss, batch_size=data.num_graphs)
        return loss

    def validation_step(self, data, batch_idx):
        self.log("loss", self.loss(data), batch_size=data.num_graphs)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def graphs():
    torch.manual_seed(5)
    made = []
    for index in range(12):
        nodes = 4 + index % 4
        edges = torch.randint(0, nodes, (2, 3 * nodes))
        made.append(
            Data(x=torch.randn(nodes, 4), edge_index=edges, y=torch.tensor([index % 3]), node_y=torch.randint(0, 3, (nodes,)))
        )
    return list(DataLoader(made, batch_size=6))


def arguments(data):
    return data.x, data.edge_index, data.batch


@pytest.mark.parametrize("layer", [GCNConv, GATConv])
@pytest.mark.parametrize("pooled", [True, False])
def test_classification(layer, pooled, tmp_path):
    exercise(
        Case(lambda: Graphs(Net(layer, pooled)), graphs(), arguments, options={"deal": "batch"}, loaded=arguments), tmp_path
    )


def test_a_loader_of_graphs(tmp_path):
    exercise(Case(lambda: Graphs(Net()), graphs(), arguments, options={"deal": "batch"}), tmp_path)


class Nodes(Graphs):
    """A model of the package's own, called by name."""

    def loss(self, data):
        return F.cross_entropy(self.model(x=data.x, edge_index=data.edge_index), data.node_y)


def named(data):
    return {"x": data.x, "edge_index": data.edge_index}


def test_a_model_of_the_packages_own(tmp_path):
    case = Case(
        lambda: Nodes(GCN(4, 8, 2, 3, norm="batch", dropout=0.1)),
        graphs(),
        named,
        options={"deal": "batch"},
        loaded=named,
    )
    exercise(case, tmp_path)
