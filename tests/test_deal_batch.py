"""`deal="batch"`: the batch of a training step is dealt out and the step run once for each network, against a loop by hand."""

import copy

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils import _pytree

from lightning_hypernet import Hypernet, HypernetCallback
from tests.target.test_batches import Graphs

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
         "enable_model_summary": False}  # fmt: skip


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Ruled(pl.LightningModule):
    """A module whose step is a rule of (model, batch) that gives a loss and what is logged."""

    def __init__(self, target, rule, **log):
        super().__init__()
        self.model, self.rule, self.options = target.double(), rule, log
        self.calls, self.parts, self.grads, self.latents, self.result = [], [], None, None, None

    def log(self, name, value, *args, **kwargs):
        self.calls.append((name, value, kwargs))
        super().log(name, value, *args, **kwargs)

    def training_step(self, batch, batch_idx):
        loss, logs = self.rule(self.model, batch)
        self.parts.append(batch)
        self.latents = self.model.population.latents
        for name, value in logs.items():
            self.log(name, value, **self.options)
        return loss

    def validation_step(self, batch, batch_idx):
        loss, logs = self.rule(self.model, batch)
        self.parts.append(batch)
        for name, value in {"val_loss": loss, **logs}.items():
            self.log(name, value, batch_size=7)

    def on_before_optimizer_step(self, optimizer):
        parameters = self.model.named_parameters()
        self.grads = {name: one.grad.clone() for name, one in parameters if one.grad is not None}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(module, batches, deal="batch", trainer=(), **options):
    torch.manual_seed(0)
    callback = HypernetCallback(deal=deal, latent_dim=5, **{"samples": 3, **options})
    pl.Trainer(max_epochs=1, callbacks=[callback], **QUIET, **dict(trainer)).fit(
        module, torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda one: one)
    )
    return callback.hypernet


def by_hand(hypernet, plain, latents, parts, sizes, rule):
    """The loss, what is logged and the gradients, of plain networks with the same weights, one after the other."""
    hypernet.train()
    for one in hypernet.parameters():
        one.grad = None
    population = hypernet.populate(latents)
    total, logs = 0.0, {}
    for index, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        weights = {name: value[index] for name, value in population.weights.items()}
        loss, logged = rule(lambda *args, weights=weights, **kwargs: functional_call(plain, weights, args, kwargs), part)
        total = total + loss * size / sum(sizes)
        logs = {name: logs.get(name, 0.0) + value * size / sum(sizes) for name, value in logged.items()}
    total.backward()
    return total, logs, {name: one.grad for name, one in hypernet.named_parameters() if one.grad is not None}


def examine(target, rule, batch, parts, sizes, **options):
    """A second step (the first may set the generator going) equals the loop by hand."""
    plain, module = copy.deepcopy(target).double(), Ruled(target, rule)
    hypernet = fit(module, [batch, batch], **options)
    count = len(parts)
    assert len(module.parts) == 2 * count
    for ours, wanted in zip(module.parts[count:], parts, strict=True):
        pairs = zip(_pytree.tree_leaves(ours), _pytree.tree_leaves(wanted), strict=True)
        assert all(torch.equal(one, other) if isinstance(one, torch.Tensor) else True for one, other in pairs)
    loss, logs, grads = by_hand(hypernet, plain, module.latents, parts, sizes, rule)
    calls = module.calls[len(module.calls) // 2 :]
    assert [name for name, _, _ in calls if not name.startswith("hypernet")] == list(logs)
    for name, value, _ in calls:
        if name in logs:
            assert float(value) == pytest.approx(float(logs[name]), rel=1e-9)
    if "diversity" not in options:
        assert grads.keys() == module.grads.keys()
        for name, wanted in grads.items():
            assert torch.allclose(module.grads[name], wanted, rtol=1e-8, atol=1e-12), name
    return module, hypernet, loss


def cut(sizes, *tensors, dim=0):
    return list(zip(*(tensor.split(sizes, dim) for tensor in tensors), strict=True))


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))


def nt_xent(model, batch):
    z = F.normalize(torch.cat([model(batch[0]), model(batch[1])]), dim=1)
    count = len(batch[0])
    scores = (z @ z.T / 0.5).masked_fill(torch.eye(2 * count, dtype=torch.bool), -1e9)
    loss = F.cross_entropy(scores, (torch.arange(2 * count) + count) % (2 * count))
    return loss, {"loss": loss.detach(), "count": float(count)}


@pytest.mark.parametrize("sizes", [[4, 4, 4], [4, 3, 3], [1, 1]])
def test_a_contrastive_loss(sizes):
    one, other = numbers(sum(sizes), 3), numbers(sum(sizes), 3)
    examine(mlp(), nt_xent, (one, other), cut(sizes, one, other), sizes)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)

    def forward(self, input_ids, labels=None):
        logits = self.head(self.embed(input_ids))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100), "logits": logits}


def test_a_loss_inside_the_target_with_ignored_tokens():
    ids, labels = torch.randint(0, 9, (8, 5)), torch.randint(0, 9, (8, 5))
    labels[torch.rand(8, 5) < 0.4] = -100

    def rule(model, batch):
        output = model(**batch)
        return output["loss"], {"tokens": (batch["labels"] != -100).sum().double()}

    parts = [{"input_ids": a, "labels": b} for a, b in cut([3, 3, 2], ids, labels)]
    examine(Tagger(), rule, {"input_ids": ids, "labels": labels}, parts, [3, 3, 2])


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, batch, count):
        return torch.zeros(count, 2, dtype=x.dtype).index_add(0, batch, self.layer(x).tanh())


def test_graphs():
    graphs = [numbers(count, 3) for count in (3, 1, 4, 2, 5)]
    batch = Graphs(graphs)

    def rule(model, batch):
        out = model(batch.x, batch.batch, len(batch.graphs))
        return out.square().mean(), {"nodes": float(len(batch.x))}

    module, *_ = examine(Graph(), rule, batch, [Graphs(graphs[:2]), Graphs(graphs[2:4]), Graphs(graphs[4:])], [2, 2, 1])
    assert [len(part.x) for part in module.parts[3:]] == [4, 6, 5]


def test_graphs_of_torch_geometric():
    data = pytest.importorskip("torch_geometric.data")
    graphs = [data.Data(x=numbers(count, 3), edge_index=torch.zeros(2, 1, dtype=torch.long)) for count in (3, 1, 4, 2, 5)]

    def rule(model, batch):
        return model(batch.x, batch.batch, batch.num_graphs).square().mean(), {"nodes": float(batch.num_nodes)}

    wanted = [data.Batch.from_data_list(graphs[one]) for one in (slice(0, 2), slice(2, 4), slice(4, 5))]
    examine(Graph(), rule, data.Batch.from_data_list(graphs), wanted, [2, 2, 1])


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, images, targets):
        found = torch.stack([self.head(self.conv(image[None]).mean((2, 3)))[0] for image in images])
        errors = [(one - target["boxes"]).abs().sum() for one, target in zip(found, targets, strict=True)]
        return {"boxes": sum(errors) / max(1, sum(len(target["boxes"]) for target in targets)), "size": found.square().mean()}


def test_detection():
    images = tuple(numbers(3, 5 + index % 3, 6) for index in range(5))
    targets = tuple({"boxes": numbers(index, 4)} for index in range(5))

    def rule(model, batch):
        losses = model(*batch)
        return sum(losses.values()), {name: value.detach() for name, value in losses.items()}

    parts = [(images[one], targets[one]) for one in (slice(0, 2), slice(2, 4), slice(4, 5))]
    examine(Detector(), rule, (images, targets), parts, [2, 2, 1])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


@pytest.mark.parametrize(("length", "options"), [(4, {}), (7, {}), (7, {"batch_dim": 1}), (6, {"batch_dim": 1})])
def test_time_first(length, options):
    x, y = numbers(length, 6, 3), torch.randint(0, 2, (6,))

    def rule(model, batch):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss, {"loss": loss.detach()}

    parts = [(a, b) for a, b in zip(x.split(2, 1), y.split(2), strict=True)]
    examine(Recurrent(), rule, (x, y), parts, [2, 2, 2], **options)


class Tags(nn.Module):
    def __init__(self, batch_first=False):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=batch_first), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def tags_rule(model, batch):
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten()), {}


def test_time_first_in_all_of_the_batch_is_refused_until_it_is_said():
    x, y = numbers(7, 6, 3), torch.randint(0, 2, (7, 6))
    with pytest.raises(ValueError, match=r"rnn takes time first.*batch_dim=1"):
        fit(Ruled(Tags(), tags_rule), [(x, y)])
    parts = [(a, b) for a, b in zip(x.split(2, 1), y.split(2, 1), strict=True)]
    examine(Tags(), tags_rule, (x, y), parts, [2, 2, 2], batch_dim=1)
    examine(Tags(batch_first=True), tags_rule, (x, y), cut([3, 2, 2], x, y), [3, 2, 2])

    def turned(model, batch):  # a step that turns its batch
        return F.cross_entropy(model(batch[0].transpose(0, 1)).flatten(0, 1), batch[1].T.flatten()), {}

    examine(Tags(), turned, (x, y), cut([3, 2, 2], x, y), [3, 2, 2])


def plain_rule(model, batch):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    return loss, {"loss": loss.detach()}


def test_a_function_deals_out():
    x, y = numbers(7, 3), torch.randint(0, 4, (7,))
    seen = []

    def deal(batch, networks):
        seen.append(networks)
        return [(batch[0][index::networks], batch[1][index::networks]) for index in range(networks)]

    parts = [(x[index::3], y[index::3]) for index in range(3)]
    examine(mlp(), plain_rule, (x, y), parts, [1, 1, 1], deal=deal)  # each part has the same share
    assert seen == [3, 3]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_accumulated_gradients_and_an_uneven_last_batch(size):
    target, batches = mlp(), [(numbers(count, 3), torch.randint(0, 4, (count,))) for count in (6, 6, size)] * 2
    plain, module, latents = copy.deepcopy(target).double(), Ruled(target, plain_rule), []
    module.on_train_batch_end = lambda *_: latents.append(module.latents)
    hypernet = fit(module, batches, trainer={"accumulate_grad_batches": 3})
    wanted = {}
    for (x, y), one in zip(batches[3:], latents[3:], strict=True):  # the first may set the generator going
        count = min(3, len(x))
        parts = list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))
        _, _, grads = by_hand(hypernet, plain, one, parts, [len(part[0]) for part in parts], plain_rule)
        wanted = {name: wanted.get(name, 0.0) + grad.clone() / 3 for name, grad in grads.items()}
    assert wanted.keys() == module.grads.keys()
    assert all(torch.allclose(module.grads[name], grad, rtol=1e-8, atol=1e-12) for name, grad in wanted.items())


def test_the_module_itself_is_the_target():
    class Whole(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.seen = mlp(), []

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            self.seen.append(len(batch[0]))
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    module = Whole().double()
    fit(module, [(numbers(8, 3), torch.randint(0, 4, (8,)))] * 2, target=".")
    assert module.seen == [3, 3, 2] * 2


def test_values_are_logged_once_with_the_size_of_the_whole_batch():
    x, y = numbers(8, 3), torch.randint(0, 4, (8,))
    module = Ruled(mlp(), lambda model, batch: (plain_rule(model, batch)[0], {"size": float(len(batch[0]))}), on_epoch=True)
    fit(module, [(x, y)])
    (value,) = [value for name, value, _ in module.calls if name == "size"]
    assert value == pytest.approx((3 * 3 + 3 * 3 + 2 * 2) / 8)
    told = Ruled(mlp(), plain_rule)
    told.rule = lambda model, batch: (told.options.update(batch_size=len(batch[0])), plain_rule(model, batch))[1]
    fit(told, [(x, y)])
    assert [kwargs["batch_size"] for name, _, kwargs in told.calls if name == "loss"] == [8]


def test_log_dict_and_metric_objects():
    class Metered(Ruled):
        def __init__(self):
            super().__init__(mlp(), plain_rule)
            self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=4)
            self.hits = []

        def training_step(self, batch, batch_idx):
            logits = self.model(batch[0])
            self.accuracy(logits, batch[1])
            self.hits += (logits.argmax(1) == batch[1]).tolist()
            loss = F.cross_entropy(logits, batch[1])
            self.log_dict({"one": loss.detach(), "two": 2 * loss.detach()}, on_step=True)
            self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
            return {"loss": loss, "logits": logits.detach()}

    module, batches = Metered(), [(numbers(8, 3), torch.randint(0, 4, (8,))) for _ in range(2)]
    fit(module, batches)
    names = [name for name, _, _ in module.calls if not name.startswith("hypernet")]
    assert names == ["one", "two", "accuracy"] * 2
    values = {name: value for name, value, _ in module.calls}
    assert float(values["two"]) == pytest.approx(2 * float(values["one"]))
    assert float(module.trainer.callback_metrics["accuracy"]) == pytest.approx(sum(module.hits) / 16)


def test_some_networks_return_none():
    x, y = numbers(9, 3), torch.tensor([0, 1, 2, 9, 9, 9, 3, 2, 1])

    def rule(model, batch):
        logits = model(batch[0])
        return (None if batch[1][0] == 9 else F.cross_entropy(logits, batch[1])), {}

    module = Ruled(mlp(), rule)
    fit(module, [(x, y)] * 2)
    assert len(module.parts) == 6
    assert all(torch.isfinite(grad).all() for grad in module.grads.values())
    nothing = Ruled(mlp(), lambda model, batch: (model(batch[0]), (None, {}))[1])
    fit(nothing, [(x, y)])
    assert not nothing.grads


@pytest.mark.parametrize("diversity", [{"entropy": 1e-2}, {"output_entropy": 1e-2}, {"ensemble": 1.0}])
def test_diversity_joins(diversity):
    x, y = numbers(9, 3), torch.randint(0, 4, (9,))
    module, plain = Ruled(mlp(), plain_rule), Ruled(mlp(), plain_rule)
    try:
        fit(module, [(x, y)] * 2, diversity=diversity)
    except ValueError as error:
        pytest.fail(str(error))
    fit(plain, [(x, y)] * 2)
    (name,) = diversity
    assert [one for one, _, _ in module.calls].count(f"hypernet/{name}") == 2
    assert any(not torch.allclose(module.grads[key], plain.grads[key], rtol=1e-6) for key in plain.grads)


def test_statistics_are_those_of_every_network_s_parts():
    class Normed(nn.Sequential):
        pass

    target = Normed(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    x, y = numbers(12, 3), torch.randint(0, 4, (12,))
    module = Ruled(target, plain_rule)
    hypernet = fit(module, [(x, y)] * 2)
    assert [len(part[0]) for part in module.parts] == [4] * 6
    members = hypernet.eval().member_population()
    members_by_hand = hypernet.materialize(members)
    again = copy.deepcopy(hypernet)
    again.update_statistics([x])
    wanted = again.materialize(again.member_population())
    for one, other in zip(members_by_hand, wanted, strict=True):
        assert torch.allclose(one[1].running_mean, other[1].running_mean, atol=1e-8)


class Manual(Ruled):
    def __init__(self, by_hand):
        super().__init__(mlp(), plain_rule)
        self.automatic_optimization, self.by_hand = False, by_hand

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        with self.model.step():
            total = 0.0
            for part, share in self.model.deal(batch):
                total = total + share * self.rule(self.model, part)[0]
                self.parts.append(part)
            self.latents = self.model.population.latents
        self.manual_backward(total)
        self.total = total.detach()
        optimizer.step()


def test_manual_optimization_is_refused_with_the_way_by_hand():
    x, y = numbers(8, 3), torch.randint(0, 4, (8,))
    with pytest.raises(ValueError, match=r"self\.model\.deal\(batch\).*self\.model\.step\(\)"):
        fit(Manual(True), [(x, y)])
    target = mlp()
    module, plain = Manual(True), target.double()
    hypernet = fit(module, [(x, y)] * 2, deal="inputs")
    parts = cut([3, 3, 2], x, y)
    loss, _, grads = by_hand(hypernet, plain, module.latents, parts, [3, 3, 2], plain_rule)
    assert torch.allclose(module.total, loss.detach(), rtol=1e-10)
    assert all(torch.allclose(module.grads[name], grad, rtol=1e-8, atol=1e-12) for name, grad in grads.items())


def test_validation_of_members():
    x, y = numbers(8, 3), torch.randint(0, 4, (8,))
    module = Ruled(mlp(), nt_xent)
    module.rule = lambda model, batch: (plain_rule(model, batch)[0], {})
    torch.manual_seed(0)
    callback = HypernetCallback(deal="batch", validation="members", latent_dim=5, samples=3, members=4)
    trainer = pl.Trainer(max_epochs=1, num_sanity_val_steps=0, callbacks=[callback], **QUIET)
    loader = torch.utils.data.DataLoader([(x, y)], batch_size=None)
    trainer.fit(module, loader, loader)
    hypernet = callback.hypernet.eval()
    losses = [F.cross_entropy(one(x), y).item() for one in hypernet.materialize(hypernet.member_population())]
    assert len(losses) == 4
    assert [len(part[0]) for part in module.parts] == [3, 3, 2, 8, 8, 8, 8]
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(sum(losses) / 4, rel=1e-9)
    values = [kwargs["batch_size"] for name, _, kwargs in module.calls if name == "val_loss"]
    assert len(values) == 1


@pytest.mark.parametrize("wrong", [{"deal": "parts"}, {"validation": "all"}, {"deal": 3}])
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match="must be"):
        HypernetCallback(**wrong)


def test_dealing_by_hand_outside_of_lightning():
    hypernet = Hypernet(mlp().double(), samples=3).train()
    x, y = numbers(7, 3), torch.randint(0, 4, (7,))
    dealt = []
    for (a, b), share in hypernet.deal((x, y)):
        output = hypernet(a)
        dealt.append((output, a, b, share, hypernet.population))
    assert hypernet.alone is None and hypernet.population is None
    assert [share for *_, share, _ in dealt] == [3 / 7, 2 / 7, 2 / 7]
    modules = hypernet.materialize(dealt[0][-1])
    for module, (output, a, *_) in zip(modules, dealt, strict=True):
        assert torch.allclose(output, module(a), atol=1e-12)
    hypernet.eval()
    shares = [(len(part[0]), share) for part, share in hypernet.deal((x, y))]
    assert shares == [(7, 0.1)] * 10
