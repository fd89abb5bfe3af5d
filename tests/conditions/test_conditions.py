"""Conditions: what hyperparameters do to a network's training, against the same by hand."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback, hookimpl
from lightning_hypernet.conditions import (
    L2,
    Choice,
    Condition,
    Conditions,
    DiversityWeight,
    Dropout,
    Given,
    LabelSmoothing,
    choice,
    log_uniform,
    read_range,
    uniform,
)


def target():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()


def hypernet_with(conditions, net=None, **options):
    torch.manual_seed(0)
    net = net or target()
    bound = Conditions(conditions, net)
    hypernet = Hypernet(net, samples=4, members=2, context_dim=bound.dim, execution="loop", **options).train()
    hypernet.conditions = bound
    return hypernet


class Module(pl.LightningModule):
    def __init__(self, step=None, net=None):
        super().__init__()
        self.model, self.step = net or target().float(), step
        self.seen = []

    def training_step(self, batch, batch_idx):
        if self.step:
            return self.step(self, *batch)
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, callback, steps=2, batch=16, **options):
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(64, 4), torch.randint(0, 3, (64,)))
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=batch))
    return trainer


@pytest.mark.parametrize(
    ("range", "low", "middle", "high"),
    [(uniform(-1, 3), -1.0, 1.0, 3.0), (log_uniform(1e-4, 1e2), 1e-4, 1e-1, 1e2)],
)
def test_ranges_run_from_their_lower_to_their_upper_bound(range, low, middle, high):
    values = range.values(torch.tensor([[-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64))
    assert values.flatten().tolist() == pytest.approx([low, middle, high, high])
    assert range.values(range.point(middle).double()).item() == pytest.approx(middle, rel=1e-6)
    drawn = range.draw(2000, 1, torch.Generator().manual_seed(0))
    assert drawn.min() < -0.99 and drawn.max() > 0.99 and abs(drawn.mean()) < 0.05
    with pytest.raises(ValueError, match="must lie in"):
        range.point(1e6)


def test_draws_around_a_point_keep_to_the_range_and_follow_the_point():
    range = uniform(0, 1)
    point = torch.tensor([0.9, -0.2], requires_grad=True)
    drawn = range.around(point, 0.3, 500, torch.Generator().manual_seed(0))
    assert drawn.max() <= 1 and drawn[:, 1].detach().std() == pytest.approx(0.3, rel=0.1)
    (gradient,) = torch.autograd.grad(drawn.sum(), point)
    assert gradient.tolist() == [500, 500]


def test_a_choice_is_drawn_by_its_logits_with_the_straight_through_gradient():
    range = choice("adam", "sgd", "none")
    point = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    drawn = range.around(point, 0.1, 4000, torch.Generator().manual_seed(0))
    shares = point.softmax(0)
    assert torch.allclose(drawn.detach().mean(0), shares.detach(), atol=0.03)
    costs = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    (estimate,) = torch.autograd.grad((drawn @ costs).mean(), point)
    (exact,) = torch.autograd.grad(shares @ costs, point)
    assert torch.allclose(estimate, exact)
    assert range.best(point.detach()).tolist() == [0, 1, 0]
    assert range.said(range.values(drawn[0].detach())[0]) in range.options
    assert choice(0.1, 0.2).values(torch.tensor([[0.0, 1.0]])).tolist() == [[pytest.approx(0.2)]]


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"loguniform": [1, 2]}, ValueError, "did you mean 'log_uniform'"),
        ({"log_uniform": [0, 2]}, ValueError, "above 0"),
        ({"uniform": [2, 1]}, ValueError, "below the upper"),
        ({"uniform": [2]}, TypeError, "two bounds"),
        ({"choice": [2]}, ValueError, "two values or more"),
        ([0, 1], TypeError, "mapping"),
        ({"uniform": ["a", 1]}, ValueError, "must be a number"),
    ],
)
def test_ranges_that_are_none_are_refused(given, error, told):
    with pytest.raises(error, match=told):
        read_range("decay", given)
    assert isinstance(read_range("decay", {"choice": [1, 2]}), Choice)


@pytest.mark.parametrize("per", ["all", "parameter", "weight"])
def test_l2_is_the_penalty_by_hand(per):
    hypernet = hypernet_with({"decay": L2(log_uniform(1e-3, 1e3), ["*weight"], per=per)})
    context = hypernet.conditions.draw(4).double()
    counts = {"all": 1, "parameter": 2, "weight": 4 * 6 + 6 * 3}
    assert context.shape == (4, counts[per])
    with hypernet.step(context):
        hypernet(torch.randn(8, 4).double())
        population = hypernet.population
        penalty = hypernet.conditions.penalty(population)
        (gradient,) = torch.autograd.grad(penalty, population.weights["0.weight"])
    expected = 0.0
    decays = hypernet.conditions.values(context)["decay"]
    for s in range(4):
        own = {"all": lambda s: [decays[s]] * 2, "parameter": lambda s: decays[s],
               "weight": lambda s: decays[s].split([24, 18])}[per](s)  # fmt: skip
        for decay, name in zip(own, ("0.weight", "3.weight"), strict=True):
            expected = expected + (decay * population.weights[name][s].flatten() ** 2).sum() / 4
    assert torch.allclose(penalty, expected)
    (by_hand,) = torch.autograd.grad(expected, population.weights["0.weight"])
    assert torch.allclose(gradient, by_hand) and gradient.abs().max() > 0


def test_every_network_drops_out_at_its_own_rate():
    hypernet = hypernet_with({"rate": Dropout(uniform(0, 1))})
    context = torch.tensor([[-1.0], [1.0], [0.0], [-1.0]]).double()
    x = torch.ones(400, 4).double()
    seen = []
    for _ in range(2):
        with hypernet.step(context):
            outputs = hypernet(x).split(100)
            seen.append([len(part.unique(dim=0)) for part in outputs])
            population = hypernet.population
            bias = population.weights["3.bias"]
            assert torch.allclose(outputs[1], bias[1])
    assert all(counts[0] == counts[1] == counts[3] == 1 and counts[2] > 1 for counts in seen)
    free = torch.nn.Dropout(0.5)
    del population, outputs
    hypernet.conditions = None
    hypernet(x)
    assert {module.p for module in hypernet.target.modules() if isinstance(module, nn.Dropout)} == {free.p}
    assert {one.module[2].p for one in hypernet.executor.replicas._all} == {0.5}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("given", [{}, {"weight": torch.tensor([1.0, 2.0, 0.5])}, {"ignore_index": 2}])
def test_labels_are_smoothed_by_each_networks_own_share(reduction, given):
    hypernet = hypernet_with({"smooth": LabelSmoothing(uniform(0, 0.4))}, target().eval())
    context = hypernet.conditions.draw(4).double()
    x, y = torch.randn(10, 4).double(), torch.arange(10) % 3
    given = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    with hypernet.step(context), hypernet.conditions.around_step(context, hypernet.of_examples):
        outputs = hypernet(x)
        loss = nn.CrossEntropyLoss(reduction=reduction, **given)(outputs, y)
    shares = hypernet.conditions.values(context)["smooth"]
    sizes = [3, 3, 2, 2]
    rows = []
    for share, part, labels in zip(shares.tolist(), outputs.split(sizes), y.split(sizes), strict=True):
        rows.append(F.cross_entropy(part, labels, reduction="none", label_smoothing=share, **given))
    rows = torch.cat(rows)
    own = torch.ones(10).double() if "weight" not in given else given["weight"][y]
    own = own * (y != given.get("ignore_index", -100))
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / own.sum()}[reduction]
    assert torch.allclose(loss, expected)


def test_labels_of_probabilities_are_smoothed_too():
    hypernet = hypernet_with({"smooth": LabelSmoothing(uniform(0, 0.4))}, target().eval())
    context = torch.full((4, 1), 0.5).double()
    x, y = torch.randn(8, 4).double(), torch.rand(8, 3).double().softmax(1)
    with hypernet.step(context), hypernet.conditions.around_step(context, hypernet.of_examples):
        outputs = hypernet(x)
        loss = F.cross_entropy(outputs, y)
    assert torch.allclose(loss, F.cross_entropy(outputs, y, label_smoothing=0.3))


def test_a_step_without_cross_entropy_has_no_labels_to_smooth():
    module = Module(lambda self, x, y: self.model(x).square().mean())
    with pytest.warns(UserWarning, match="no labels to smooth"):
        fit(module, HypernetCallback(conditions={"smooth": LabelSmoothing(uniform(0, 0.4))}, samples=2))


@pytest.mark.parametrize("deal", ["inputs", "batch"])
def test_training_step_reads_its_networks_hyperparameters(deal):
    seen = []

    def step(self, x, y):
        before = self.model.hyperparameters()["margin"]
        out = self.model(x)
        own = self.model.of_examples(before)
        seen.append((before, own, len(x)))
        return (out.square().mean(1) * own).mean()

    fit(Module(step), HypernetCallback(conditions={"margin": Given(uniform(1, 2))}, samples=2, deal=deal), steps=1)
    if deal == "inputs":
        ((values, own, size),) = seen
        assert values.shape == (2,) and own.tolist() == [values[0]] * 8 + [values[1]] * 8 and size == 16
    else:
        assert len(seen) == 2 and [own for _, own, _ in seen] == list(seen[0][0])


def test_the_weight_of_a_diversity_loss_is_drawn():
    options = {"conditions": {"weight": DiversityWeight(log_uniform(1e-2, 1e2), "variance")}, "diversity": "variance"}
    callback = HypernetCallback(samples=4, **options)
    module = Module()
    totals = []
    trainer = fit(module, callback, steps=1)
    hypernet = callback.hypernet
    context = hypernet.conditions.draw(4)
    assert len(context.unique(dim=0)) == 1
    with hypernet.train().step(context):
        hypernet(torch.randn(8, 4))
        values = hypernet.diversity(hypernet.population)
        weights = hypernet.conditions.weights(context)
        totals = hypernet.diversity.total(values, weights)
    weight = hypernet.conditions.values(context)["weight"][0]
    assert torch.allclose(totals, weight * values["variance"])
    assert "hypernet/variance" in trainer.logged_metrics
    with pytest.raises(ValueError, match="weighs the diversity loss 'entropy', and there are variance"):
        fit(Module(), HypernetCallback(
            conditions={"weight": DiversityWeight(log_uniform(1e-2, 1e2), "entropy")}, diversity="variance"))  # fmt: skip


def test_draws_are_seeded_counted_and_restored():
    conditions = {"decay": L2(log_uniform(1e-4, 1)), "kind": Given(choice("a", "b")), "rate": Dropout(uniform(0, 0.5))}
    torch.manual_seed(3)
    one, other = Conditions(conditions, target()), Conditions(conditions, target())
    torch.manual_seed(4)
    noise = torch.rand(3)
    torch.manual_seed(4)
    first = [one.draw(5) for _ in range(3)]
    assert torch.equal(noise, torch.rand(3))
    assert torch.equal(torch.stack(first), torch.stack([other.draw(5) for _ in range(3)]))
    assert not torch.equal(first[0], first[1]) and one.dim == 4
    state = one.state_dict()
    other.draw(2)
    after = one.draw(5)
    other.load_state_dict(state)
    assert torch.equal(other.draw(5), after)
    said = one.said(one.best(one.starting({"decay": 0.1, "kind": "b"})))
    assert said["decay"] == pytest.approx(0.1) and said["kind"] == "b" and said["rate"] == pytest.approx(0.25)


def test_at_the_center_a_condition_adds_nothing():
    hypernet = hypernet_with({"decay": L2(log_uniform(1e-4, 1))})
    with torch.no_grad():
        for value in (*hypernet.generator.conditioner.right, *hypernet.generator.conditioner.gates):
            value.normal_()
    hypernet.generator.focus(torch.tensor([0.3]), 0.1)
    z = torch.randn(3, hypernet.latent_dim).double()
    latents = hypernet.draw(3).given(torch.tensor([0.3]).double())
    at, away = hypernet.decode(latents), hypernet.decode(latents.given(torch.tensor([0.5]).double()))
    bare = hypernet.generator.conditioner
    hypernet.generator.conditioner = None
    plain = hypernet.decode(latents)
    hypernet.generator.conditioner = bare
    assert torch.allclose(at.vectors, plain.vectors) and not torch.allclose(away.vectors, plain.vectors)
    spread = [one.vectors.std(0).mean() for one in (plain, away)]
    assert not torch.allclose(*spread) and z.shape == (3, 64)


def test_conditions_are_named_in_plain_values_and_by_plugins():
    class Shift(Condition):
        """A shift of the loss."""

        def __init__(self, range, by=1.0):
            super().__init__(range)
            self.by = by

        def penalty(self, population, values):
            return self.by + values[:, 0]

    class Plugin:
        @hookimpl
        def hypernet_register_conditions(self, register):
            register("shift", Shift)

    conditions = {
        "decay": {"name": "l2", "range": {"log_uniform": ["1e-4", "1"]}, "parameters": "0.*"},
        "shift": {"name": "shift", "range": {"uniform": [0, 1]}, "by": "2"},
    }
    callback = HypernetCallback(conditions=conditions, plugins=[Plugin()], samples=2)
    trainer = fit(Module(), callback)
    assert callback.hypernet.context_dim == 2 and callback.conditions["shift"].by == 2
    assert trainer.logged_metrics["hypernet/penalty"] > 2
    with pytest.raises(ValueError, match="unknown condition 'dropuot'; did you mean 'dropout'"):
        HypernetCallback(conditions={"decay": {"name": "dropuot", "range": {"uniform": [0, 1]}}})
    with pytest.raises(TypeError, match="has no range"):
        HypernetCallback(conditions={"decay": {"name": "l2"}})
    with pytest.raises(ValueError, match="leave out context and context_dim"):
        HypernetCallback(conditions={"decay": L2(uniform(0, 1))}, context_dim=3)


@pytest.mark.parametrize(
    ("conditions", "options", "told"),
    [
        ({"decay": L2(uniform(0, 1), "head.*")}, {}, "no parameter matches head"),
        ({"rate": Dropout(uniform(0, 1), "head")}, {}, "no dropout layer matches head; there are 2"),
        ({"rate": Dropout(uniform(0, 1))}, {"execution": "vmap"}, "conditions set 2.p of every network"),
        ({"decay": L2(uniform(0, 1))}, {"exclude": ["0.*"]}, "0.weight is not generated"),
    ],
)
def test_what_a_condition_can_not_act_on_is_told(conditions, options, told):
    with pytest.raises(ValueError, match=told):
        fit(Module(), HypernetCallback(conditions=conditions, samples=2, **options))


@pytest.mark.parametrize(
    ("kind", "range"),
    [(Dropout, uniform(0, 2)), (LabelSmoothing, choice(0, 3)), (L2, uniform(-1, 1)), (L2, choice(True, False)),
     (Dropout, choice("low", "high"))],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(kind, range):
    with pytest.raises(ValueError, match=f"the values of {kind.__name__} must be numbers from 0"):
        kind(range)
    assert L2(choice("1e-4", "1")).range.options == (1e-4, 1)


def test_one_condition_serves_two_targets():
    conditions = {"rate": Dropout(uniform(0, 0.5))}
    one = Conditions(conditions, nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
    other = Conditions(conditions, nn.Sequential(nn.Dropout(0.1), nn.Linear(2, 2)))
    context = torch.zeros(1, 1)
    assert list(one.settings(context)) == [("1", "p")] and list(other.settings(context)) == [("0", "p")]


def test_other_conditions_on_a_hypernet_that_is_there_are_refused():
    module, first = Module(), HypernetCallback(conditions={"decay": L2(log_uniform(1e-4, 1))}, samples=2)
    fit(module, first)
    fit(module, HypernetCallback(conditions={"decay": L2(log_uniform(1e-4, 1))}, samples=2))
    with pytest.raises(ValueError, match="is a Hypernet already, with the conditions"):
        fit(module, HypernetCallback(conditions={"decay": L2(log_uniform(1e-4, 2))}, samples=2))
    state = first.state_dict()["conditions"]
    with pytest.raises(ValueError, match="was written with the conditions"):
        Conditions({"other": L2(log_uniform(1e-4, 1))}, target()).load_state_dict(state)


def test_without_a_search_members_have_values_that_occur():
    callback = HypernetCallback(conditions={"rate": Dropout(choice(0.0, 0.5))}, samples=2, members=3)
    fit(Module(), callback)
    assert callback.hypernet.member_context.tolist() == [[1, 0]] * 3


def test_losses_of_several_calls_are_each_smoothed():
    hypernet = hypernet_with({"smooth": LabelSmoothing(uniform(0, 0.4))}, target().eval())
    context = hypernet.conditions.draw(4).double()
    x, y = torch.randn(8, 4).double(), torch.arange(8) % 3
    shares = hypernet.conditions.values(context)["smooth"]
    with hypernet.step(context), hypernet.conditions.around_step(context, hypernet.of_examples):
        whole, part = hypernet(x), hypernet(x[:4])
        losses = F.cross_entropy(whole, y, reduction="none"), F.cross_entropy(part, y[:4], reduction="none")
        with pytest.raises(ValueError, match="called with 8 or 4 examples in this step, not with 3"):
            F.cross_entropy(whole[:3], y[:3])
    for loss, outputs, own in zip(losses, (whole, part), (shares.repeat_interleave(2), shares), strict=True):
        pairs = zip(outputs, y[: len(outputs)], own.tolist(), strict=True)
        rows = [F.cross_entropy(one, label, label_smoothing=share) for one, label, share in pairs]
        assert torch.allclose(loss, torch.stack(rows))


@pytest.mark.parametrize(
    ("make", "told"),
    [(lambda: LabelSmoothing(uniform(0, 0.4)), "two conditions are LabelSmoothing"),
     (lambda: DiversityWeight(log_uniform(1e-2, 1), "variance"), "two conditions weigh one diversity loss of variance")],
)  # fmt: skip
def test_two_conditions_that_do_one_thing_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        fit(Module(), HypernetCallback(conditions={"a": make(), "b": make()}, diversity="variance", samples=2))


@pytest.mark.parametrize("kind", ["attention", "lstm"])
def test_dropout_within_attention_and_recurrent_layers_is_set_too(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(16, 16, 2, dropout=0.5, batch_first=True)
            if kind == "attention":
                self.layer = nn.TransformerEncoderLayer(16, 2, 8, dropout=0.5, batch_first=True)

        def forward(self, x):
            out = self.layer(x)
            return out[0] if isinstance(out, tuple) else out

    hypernet = hypernet_with({"rate": Dropout(uniform(0, 0.9))}, Net().double())
    x = torch.randn(1, 3, 16).double().expand(8, 3, 16)
    with hypernet.step(torch.tensor([[-1.0], [0.0], [-1.0], [0.0]]).double()):
        # up to rounding: equal rows differ by it on some processors
        same = [torch.allclose(*part, rtol=0, atol=1e-12) for part in hypernet(x).split(2)]
    assert same == [True, False, True, False]
    places = hypernet.conditions.settings(torch.zeros(1, 1))
    assert ("layer.self_attn" if kind == "attention" else "layer", "dropout") in places
