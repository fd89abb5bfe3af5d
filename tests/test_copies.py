"""Momentum copies: teachers and momentum encoders are copies of the Hypernet, and their networks have its latents."""

import copy
import logging

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback
from tests.test_callback import QUIET

RATE = 0.9


def images(n=128, batch=32):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 8, generator=generator) * 2
    labels = torch.arange(n) % 4
    return DataLoader(TensorDataset(centres[labels] + torch.randn(n, 8, generator=generator), labels), batch)


def encoder(norm=False):
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU(), nn.Linear(16, 6))


@torch.no_grad()
def move(student, teacher, rate=RATE, way="data"):
    for one, two in zip(student.parameters(), teacher.parameters(), strict=True):
        if way == "data":
            two.data = two.data * rate + one.data * (1 - rate)
        elif way == "in_place":
            two.data.mul_(rate).add_(one.data, alpha=1 - rate)
        else:
            two.lerp_(one, 1 - rate)


class Pair(pl.LightningModule):
    """What the methods share; it keeps what it sees."""

    copy_name = "teacher"

    def __init__(self, way="data", norm=False):
        super().__init__()
        self.student = encoder(norm)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.way = way
        self.losses, self.seen = [], []

    def views(self, batch):
        x, _ = batch
        return x + 0.3 * torch.randn_like(x), x + 0.3 * torch.randn_like(x)

    def training_step(self, batch, batch_idx):
        loss = self.loss(*self.views(batch))
        self.losses.append(loss.item())
        if isinstance(self.student, Hypernet):
            led = self.teacher.led()
            self.seen.append(
                (self.student.population.latents.z, led.latents.z, led.weights, copy.deepcopy(self.teacher.generator))
            )
        return loss

    def on_train_batch_end(self, *_):
        move(self.student, self.teacher, way=self.way)

    def configure_optimizers(self):
        return torch.optim.Adam([one for one in self.parameters() if one.requires_grad], lr=3e-3)


class Byol(Pair):
    def __init__(self, **options):
        super().__init__(**options)
        self.predictor = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))

    def loss(self, one, two):
        with torch.no_grad():
            targets = self.teacher(two)
        return 2 - 2 * F.cosine_similarity(self.predictor(self.student(one)), targets, dim=1).mean()


class Dino(Pair):
    """The teacher comes first in the step, and its outputs are centred."""

    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("centre", torch.zeros(6))

    def loss(self, one, two):
        with torch.no_grad():
            outputs = self.teacher(two)
            targets = ((outputs - self.centre) / 0.5).softmax(-1)
            self.centre = self.centre * 0.9 + outputs.mean(0) * 0.1
        return -(targets * self.student(one).log_softmax(-1)).sum(-1).mean()


class MeanTeacher(Pair):
    """A teacher in evaluation mode, and labels."""

    def training_step(self, batch, batch_idx):
        self.teacher.eval()
        self.labels = batch[1]
        return super().training_step(batch, batch_idx)

    def loss(self, one, two):
        outputs = self.student(one)
        with torch.no_grad():
            targets = self.teacher(two).softmax(-1)
        return F.cross_entropy(outputs, self.labels) + F.mse_loss(outputs.softmax(-1), targets)


class Dqn(Pair):
    """The copy is set to the network now and then, by its state."""

    def loss(self, one, two):
        with torch.no_grad():
            goal = 1 + 0.5 * self.teacher(two).max(1).values
        return F.smooth_l1_loss(self.student(one)[:, 0], goal)

    def on_train_batch_end(self, *_):
        if self.global_step % 3 == 0:
            self.teacher.load_state_dict(self.student.state_dict())


METHODS = {"byol": Byol, "dino": Dino, "mean_teacher": MeanTeacher, "dqn": Dqn}


class Average(pl.Callback):
    """The moving average of the student's generator, by hand."""

    def on_train_start(self, trainer, pl_module):
        self.mean = [one.detach().clone() for one in pl_module.student.generator.parameters()]

    def on_train_batch_end(self, trainer, pl_module, *_):
        now = pl_module.student.generator.parameters()
        self.mean = [RATE * mean + (1 - RATE) * one.detach() for mean, one in zip(self.mean, now, strict=True)]


def train(module, callback=None, steps=20, **options):
    pl.seed_everything(0, verbose=False)
    average = Average()
    callbacks = [callback, average] if callback and callback.target == "student" else [callback] if callback else []
    trainer = pl.Trainer(**{**QUIET, **options}, max_steps=steps, max_epochs=-1, callbacks=callbacks)
    trainer.fit(module, images())
    return trainer, average


def made(**options):
    return HypernetCallback(target="student", **{"samples": 4, "members": 3, "execution": "loop", **options})


@pytest.mark.parametrize("deal", ["inputs", "batch"])
@pytest.mark.parametrize("method", METHODS)
def test_a_copy_moves_as_the_average_and_has_the_students_latents(method, deal):
    torch.manual_seed(0)
    module = METHODS[method](way="in_place")
    _, average = train(module, made(deal=deal))
    assert isinstance(module.teacher, Hypernet)
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())
    assert all(parameter.grad is None for parameter in module.teacher.parameters())
    if method != "dqn":
        for parameter, mean in zip(module.teacher.generator.parameters(), average.mean, strict=True):
            assert ((parameter - mean).abs() < 1e-6 * mean.abs().clamp(min=1)).all()
    moved = zip(module.teacher.generator.parameters(), module.student.generator.parameters(), strict=True)
    assert max((one - two).abs().max() for one, two in moved) > 1e-4
    assert len(module.seen) == 20 * (4 if deal == "batch" else 1)
    for mine, led, weights, generator in module.seen[::7]:
        assert torch.equal(mine, led)
        latents = module.student.prior.draw(4).to(mine)
        with torch.no_grad():
            by_hand = generator.train()(type(latents)(mine, torch.zeros(4, dtype=torch.long)))
        for name, value in by_hand.items():
            assert torch.allclose(weights[name], value, atol=1e-6), name


@pytest.mark.parametrize("way", ["data", "in_place", "lerp"])
def test_ways_to_move(way):
    torch.manual_seed(0)
    module = Byol(way=way)
    _, average = train(module, made())
    for parameter, mean in zip(module.teacher.generator.parameters(), average.mean, strict=True):
        assert ((parameter - mean).abs() < 1e-6 * mean.abs().clamp(min=1)).all()


@pytest.mark.parametrize("first", [True, False])
def test_network_by_network_on_the_same_examples(first):
    """Whichever is called first: network i of both sees part i."""
    torch.manual_seed(0)

    class Looking(Pair):
        def training_step(self, batch, batch_idx):
            x = batch[0]
            order = (self.teacher, self.student) if first else (self.student, self.teacher)
            outputs = {network: network(x) for network in order}
            with torch.no_grad():
                for network, population in ((self.student, self.student.population), (self.teacher, self.teacher.led())):
                    plain = self.student.executor.materialize_all(population.weights, {})
                    parts = [one(part) for one, part in zip(plain, x.split(8), strict=True)]
                    assert torch.allclose(outputs[network], torch.cat(parts), atol=1e-6)
            return outputs[self.student].square().mean()

    train(Looking(), made(), steps=3)


@pytest.mark.slow
def test_losses_fall_as_in_plain_training():
    for method in ("byol", "mean_teacher"):
        plain, ours = [], []
        for kept, callback in ((plain, None), (ours, made(samples=4))):
            torch.manual_seed(0)
            module = METHODS[method]()
            train(module, callback, steps=100)
            kept.extend(module.losses)
        start, end = sum(plain[:10]) / 10, sum(plain[-10:]) / 10
        assert end < 0.7 * start
        assert sum(ours[-10:]) / 10 < end + 0.35 * (start - end), method


def test_statistics_of_the_copys_own_networks():
    torch.manual_seed(0)
    module = Byol(norm=True, way="lerp")
    train(module, made())
    module.eval()
    x = next(iter(images()))[0]
    with torch.no_grad():
        outputs = module.teacher(x)
        members = [one.eval()(x) for one in module.teacher.materialize(module.teacher.member_population())]
    assert torch.equal(module.teacher.members.latents.z, module.student.members.latents.z)
    assert torch.allclose(outputs, torch.stack(members).mean(0), atol=1e-5)
    assert module.teacher.members.statistics.tensors()["1.running_mean"].abs().sum() > 0


def test_checkpoints_hold_the_copy_as_well(tmp_path):
    torch.manual_seed(0)
    module = Byol()
    trainer, _ = train(module, made(), steps=4)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    x = next(iter(images()))[0]
    loaded = Hypernet.from_checkpoint(tmp_path / "one.ckpt", encoder(), name="teacher")
    assert torch.allclose(loaded(x), module.teacher.eval()(x), atol=1e-6)
    resumed = Byol()
    trainer = pl.Trainer(**QUIET, max_steps=8, max_epochs=-1, callbacks=[made()])
    trainer.fit(resumed, images(), ckpt_path=tmp_path / "one.ckpt")
    assert isinstance(resumed.teacher, Hypernet)
    assert torch.equal(resumed.seen[0][0], resumed.seen[0][1])


def test_copies_are_found_named_or_left_alone(caplog):
    module = Byol()
    with caplog.at_level(logging.INFO):
        train(module, made(), steps=1)
    assert "'teacher' of Byol is a copy of the target 'student'" in caplog.text
    caplog.clear()
    module = Byol()
    with caplog.at_level(logging.INFO):
        train(module, made(copies=("teacher",)), steps=1)
    assert "is a copy of the target" not in caplog.text
    assert isinstance(module.teacher, Hypernet)
    with pytest.raises(ValueError, match="'predictor' of Byol is no copy of the target 'student': its parameters have other"):
        train(Byol(), made(copies=("predictor",)), steps=1)
    with pytest.raises(ValueError, match="'tutor' of Byol is no copy .* there is no such module"):
        train(Byol(), made(copies=("tutor",)), steps=1)


def test_layers_that_were_copied_are_no_teachers():
    class Stack(Pair):
        def __init__(self):
            super().__init__()
            del self.teacher
            layer = nn.Linear(8, 8)
            self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(3)])

        def training_step(self, batch, batch_idx):
            x = batch[0]
            for layer in self.layers:
                x = layer(x)
            return x.square().mean()

        def on_train_batch_end(self, *_):
            pass

    module = Stack()
    train(module, HypernetCallback(target="layers.1", samples=2), steps=1)
    assert [isinstance(layer, Hypernet) for layer in module.layers] == [False, True, False]


def test_the_whole_module_with_a_copy_in_it_is_refused():
    with pytest.raises(ValueError, match="'teacher' of Byol is a copy of 'student', .* set target='student'"):
        train(Byol(), HypernetCallback(target=".", samples=2), steps=1)


def test_a_copy_of_the_hypernet_that_is_made_later_follows():
    class Late(Byol):
        def __init__(self):
            super().__init__()
            del self.teacher

        def on_fit_start(self):
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    torch.manual_seed(0)
    module = Late()
    _, average = train(module, made(), steps=6)
    for parameter, mean in zip(module.teacher.generator.parameters(), average.mean, strict=True):
        assert ((parameter - mean).abs() < 1e-6 * mean.abs().clamp(min=1)).all()
    assert torch.equal(module.seen[-1][0], module.seen[-1][1])


def test_manual_optimization():
    class Manual(Byol):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            with self.student.step():
                loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    torch.manual_seed(0)
    module = Manual()
    _, average = train(module, made(), steps=6)
    for parameter, mean in zip(module.teacher.generator.parameters(), average.mean, strict=True):
        assert ((parameter - mean).abs() < 1e-6 * mean.abs().clamp(min=1)).all()
    assert all(torch.equal(one, two) for one, two, *_ in module.seen)


class MovedWithin(Byol):
    """The step moves the teacher itself, as the examples of lightly do."""

    def training_step(self, batch, batch_idx):
        move(self.student, self.teacher, way=self.way)
        x, _ = batch
        return self.loss(x, x + 0.1)

    def on_train_batch_end(self, *_): ...


@pytest.mark.parametrize("way", ["data", "in_place", "lerp"])
@pytest.mark.parametrize(("deal", "told"), [("batch", 1), ("inputs", 0)])
def test_a_teacher_that_the_step_moves_is_told_where_the_step_runs_for_each_network(deal, told, way, recwarn):
    callback = HypernetCallback(target="student", samples=2, members=2, deal=deal)
    trainer = pl.Trainer(max_epochs=2, callbacks=[callback], **QUIET)
    trainer.fit(MovedWithin(way=way), images())
    assert [str(one.message).startswith("training_step moves teacher") for one in recwarn].count(True) == told


def test_a_teacher_that_moves_between_steps_is_not_told(recwarn):
    trainer = pl.Trainer(max_epochs=2, callbacks=[HypernetCallback(target="student", samples=2, deal="batch")], **QUIET)
    trainer.fit(Byol(), images())
    assert not [one for one in recwarn if "moves" in str(one.message)]
