"""Encoders of data sets: what they read, the rates of their levels, and training on tasks."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_hypernet import Hypernet, HypernetCallback, hookimpl
from lightning_hypernet.diversity import Rate
from lightning_hypernet.task_step import tasks_of
from lightning_hypernet.tasks import DeepSets, Encoder, SetAttention

LEVELS = {"top": 3, "middle": 2, "bottom": 1}


def shaken(module):
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=source, dtype=parameter.dtype)
    return module


def encoder(kind=DeepSets, **options):
    torch.manual_seed(0)
    return shaken(kind(6, **{"inputs": 4, "classes": 3, "hidden": 8, "levels": LEVELS, **options}).double())


def data(n, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 2, generator=source).double(), torch.randint(3, (n,), generator=source)


@pytest.mark.parametrize("kind", [DeepSets, SetAttention])
def test_the_order_of_examples_is_nothing_to_the_encoder_and_their_number_is(kind):
    net = encoder(kind)
    images, labels = data(7)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    one, other, fewer = net([(images, labels), (images[order], labels[order]), (images[:5], labels[:5])], sample=False).mean
    torch.testing.assert_close(one, other)
    assert (one - fewer).abs().max() > 1e-3
    twice = net([(images.repeat(2, 1, 1), labels.repeat(2))], sample=False).mean[0]
    assert (one - twice).abs().max() > 1e-4  # as sure as there are examples
    with pytest.raises(AssertionError):
        torch.testing.assert_close(net([(images, (labels + 1) % 3)], sample=False).mean[0], one)


def test_the_deviations_of_all_levels_start_as_small_as_sigma_says():
    torch.manual_seed(0)
    wide = DeepSets(6, inputs=4, classes=3, levels=LEVELS)([data(5)], sample=False)
    torch.manual_seed(0)
    narrow = DeepSets(6, inputs=4, classes=3, levels=LEVELS, sigma=0.05)([data(5)], sample=False)
    torch.testing.assert_close(narrow.log_std, wide.log_std + torch.tensor(0.05).log())
    assert torch.equal(narrow.mean, wide.mean)
    with pytest.raises(ValueError, match="sigma"):
        DeepSets(6, inputs=4, sigma=0.0)


def test_the_rates_are_divergences_of_gaussians_level_by_level():
    torch.manual_seed(0)
    encoded = encoder()([data(5), data(9, 1)])
    rates = encoded.rates()
    assert list(rates) == ["top", "middle", "bottom"]
    start = 0
    for name, size in LEVELS.items():
        part = slice(start, start + size)
        q = Independent(Normal(encoded.mean[:, part], encoded.log_std[:, part].exp()), 1)
        p = Independent(Normal(torch.zeros_like(encoded.mean[:, part]), 1.0), 1)
        torch.testing.assert_close(rates[name], kl_divergence(q, p))
        start += size
    torch.testing.assert_close(encoded.rate(), sum(rates.values()))


def test_lower_levels_know_what_was_drawn_above():
    net = encoder()
    torch.manual_seed(0)
    one = net([data(5)])
    torch.manual_seed(1)
    other = net([data(5)])
    torch.testing.assert_close(one.mean[:, :3], other.mean[:, :3])
    assert (one.mean[:, 3:] - other.mean[:, 3:]).abs().min() > 0


def test_each_rate_is_taken_for_the_examples_of_its_own_task():
    torch.manual_seed(0)
    module, called = Regression(), callback(diversity={"rate": {"beta": 1.0}})
    fitted = trainer(called, max_steps=1, log_every_n_steps=1)
    seen = []
    module.on_before_backward = lambda loss: seen.append(called._drawn)
    fitted.fit(module, DataLoader(tasks(2, 0, (4, 40)), 2, collate_fn=tuple))
    rate = seen[0].encoded.rate().detach()
    torch.testing.assert_close(fitted.logged_metrics["hypernet/rate"], (rate[0] / 4 + rate[1] / 40) / 2)


class Regression(pl.LightningModule):
    def __init__(self, width=2):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(width, 1)
        self.seen = []

    def loss(self, task):
        (inputs, _), (queries, answers) = task
        self.seen.append((inputs, queries))
        return F.mse_loss(self.model(queries), answers)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("valid", loss, batch_size=1)
        return loss

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def tasks(count, seed, sizes=(6,)):
    source = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        n = sizes[index % len(sizes)]
        weight, inputs = torch.randn(2, 1, generator=source), torch.randn(2 * n, 2, generator=source)
        made.append(((inputs[:n], inputs[:n] @ weight), (inputs[n:], inputs[n:] @ weight)))
    return made


def trainer(callback, **options):
    given = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "enable_progress_bar": False,
             "enable_model_summary": False, "callbacks": [callback], **options}  # fmt: skip
    return pl.Trainer(**given)


def callback(**options):
    return HypernetCallback("model", **{
        "encoder": {"name": "deep_sets", "inputs": 3}, "deal": "batch", "latent_dim": 6, "diversity": {"rate": {"beta": 0.01}},
        "gauge": "none", "execution": "loop", **options,
    })  # fmt: skip


@pytest.mark.parametrize("collate", [None, tuple])
def test_every_task_has_a_network_made_from_its_own_data(collate):
    module, called = Regression(), callback()
    loader = DataLoader(tasks(6, 0, (6,) if collate is None else (4, 7)), 3, collate_fn=collate)
    trainer(called, max_steps=1).fit(module, loader)
    hypernet = called.hypernet.train()
    assert len(module.seen) == 3
    batch = next(iter(loader))
    supports = list(zip(*batch[0], strict=True)) if collate is None else [task[0] for task in batch]
    encoded = hypernet.encode_tasks(*supports)
    with hypernet.step(latents=encoded):
        population = hypernet.training_population()
        queries = module.seen[0][1]
        for index, (part, _) in enumerate(hypernet.deal(batch, lambda *_: [queries] * 3)):
            expected = F.linear(queries, population.weights["weight"][index], population.weights["bias"][index])
            torch.testing.assert_close(hypernet(part), expected)
    assert population.encoded is encoded


def test_the_rate_is_added_for_each_example_of_a_task_and_logged_by_level():
    losses = {}
    for beta in (0.0, 1.0):
        torch.manual_seed(0)
        called = callback(
            diversity={"rate": {"beta": beta}}, encoder={"name": "deep_sets", "inputs": 3, "levels": {"a": 4, "b": 2}}
        )
        module = Regression()
        seen = []
        module.on_before_backward = lambda loss, seen=seen: seen.append(loss.detach())
        fitted = trainer(called, max_steps=1, log_every_n_steps=1)
        fitted.fit(module, DataLoader(tasks(3, 0), 3))
        losses[beta] = seen[0]
    logged = fitted.logged_metrics
    total = logged["hypernet/rate/a"] + logged["hypernet/rate/b"]
    torch.testing.assert_close(losses[1.0] - losses[0.0], total / 6)
    torch.testing.assert_close(logged["hypernet/rate"], total / 6)


def test_a_task_whose_target_is_called_with_several_sizes_has_no_number_of_examples():
    class Both(Regression):
        def loss(self, task):
            (inputs, targets), _ = task
            return super().loss(task) + F.mse_loss(self.model(inputs[:2]), targets[:2])

    with pytest.raises(RuntimeError, match="called with several numbers of them"):
        trainer(callback(), max_steps=1).fit(Both(), DataLoader(tasks(2, 0), 2))
    trainer(callback(diversity={"rate": {"examples": 6}}), max_steps=1).fit(Both(), DataLoader(tasks(2, 0), 2))


def test_validation_sees_each_task_with_the_mean_code_of_its_data():
    module, called = Regression(), callback()
    loader = DataLoader(tasks(4, 1), 4)
    fitted = trainer(called, max_steps=2)
    fitted.fit(module, DataLoader(tasks(6, 0), 3))
    found = fitted.validate(module, loader, verbose=False)[0]["valid"]
    assert fitted.test(module, loader, verbose=False)[0]["valid"] == pytest.approx(found)
    hypernet = called.hypernet.eval()
    losses = []
    for support, (queries, answers) in tasks(4, 1):
        weights = hypernet.decode(hypernet.encode_tasks(support, sample=False).latents).weights
        losses.append(F.mse_loss(F.linear(queries, weights["weight"][0], weights["bias"][0]), answers))
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_a_checkpoint_keeps_the_encoder(tmp_path):
    module, called = Regression(), callback()
    fitted = trainer(called, max_steps=2)
    fitted.fit(module, DataLoader(tasks(6, 0), 3))
    fitted.save_checkpoint(tmp_path / "at.ckpt")
    found = Hypernet.from_checkpoint(tmp_path / "at.ckpt", Regression().model)
    support = tasks(1, 5)[0][0]
    torch.testing.assert_close(
        found.encode_tasks(support, sample=False).mean, called.hypernet.encode_tasks(support, sample=False).mean
    )


def test_networks_for_data_beat_one_network_for_all():
    """Linear regressions with weights of their own, of which one network for all can only know the mean."""
    module, called = Regression(), callback()
    fitted = trainer(called, max_epochs=12)
    fitted.fit(module, DataLoader(tasks(256, 0), 16))
    found = fitted.validate(module, DataLoader(tasks(32, 1), 16), verbose=False)[0]["valid"]
    one_for_all = torch.cat([answers for _, (_, answers) in tasks(32, 1)]).square().mean()
    assert found < 0.7 * one_for_all


class Largest(Encoder):
    """The largest example; a plug-in's encoder."""

    def summarize(self, examples):
        return F.pad(examples.amax(0), (0, self.hidden - examples.shape[1]))


class Plugin:
    @hookimpl
    def hypernet_register_encoders(self, register):
        register("largest", Largest)


def test_an_encoder_of_a_plugin_is_chosen_by_its_name():
    net = Hypernet(nn.Linear(2, 1), encoder={"name": "largest", "inputs": 2, "hidden": 4}, plugins=[Plugin()], latent_dim=3)
    assert net.encode_tasks(torch.randn(5, 2)).z.shape == (1, 3)
    assert ("encoder", "largest", "Plugin") in net.needs


def test_what_does_not_go_with_an_encoder_is_refused():
    with pytest.raises(ValueError, match="set deal='batch'"):
        callback(deal="inputs")
    with pytest.raises(ValueError, match="leave out backward"):
        callback(backward="two_pass")
    with pytest.raises(ValueError, match="pass encoder="):
        callback(encoder=None, support=lambda task: task)
    with pytest.raises(TypeError, match="support must be a function"):
        callback(support="support")
    with pytest.raises(ValueError, match="takes the prior's place"):
        Hypernet(nn.Linear(2, 1), encoder={"name": "deep_sets", "inputs": 2}, prior="uniform")
    with pytest.raises(ValueError, match="'deep_set'; did you mean 'deep_sets'"):
        Hypernet(nn.Linear(2, 1), encoder={"name": "deep_set", "inputs": 2})
    with pytest.raises(ValueError, match="must add up to latent_dim=6"):
        DeepSets(6, 4, levels={"a": 4})
    with pytest.raises(RuntimeError, match="has no encoder"):
        Hypernet(nn.Linear(2, 1)).encode_tasks(torch.randn(3, 2))
    net = encoder()
    with pytest.raises(ValueError, match="has 9 numbers, and the encoder reads inputs=4"):
        net([(torch.randn(5, 3, 3), torch.zeros(5, dtype=torch.long))])
    with pytest.raises(ValueError, match="integer labels"):
        net([(torch.randn(5, 4), torch.zeros(5))])
    with pytest.raises(ValueError, match="labels must lie in 0 to 2"):
        net([(torch.randn(2, 4), torch.tensor([0, 3]))])
    with pytest.raises(ValueError, match="takes its noise"):
        Hypernet(nn.Linear(2, 1), encoder={"name": "deep_sets", "inputs": 2}, distribution="mean_field")
    with pytest.raises(ValueError, match="one or more"):
        net([(torch.randn(0, 4), torch.zeros(0, dtype=torch.long))])
    population = Hypernet(nn.Linear(2, 1)).sample(2)
    population.encoded = net([data(5)])
    with pytest.raises(ValueError, match="levels are top, middle, bottom"):
        Rate({"top": 1.0}, examples=3)(population)
    with pytest.raises(ValueError, match="no encoder made these networks"):
        Rate(examples=3)(Hypernet(nn.Linear(2, 1)).sample(2))
    with pytest.raises(ValueError, match=r"of lengths \[2, 3\]"):
        tasks_of([torch.zeros(2, 3), torch.zeros(3, 3)])
