"""What strangers do to a Hypernet and to parts of it as they would to a module: right, or refused with a remedy."""

import copy
import pickle
import warnings
from collections.abc import Collection, Iterable, Sized

import lightning.pytorch as lp
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn.utils import parametrizations

from lightning_hypernet import Hypernet, HypernetCallback


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.layers = nn.ModuleList([nn.Linear(3, 3)])
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(64, 3)
        self.tag = "one"

    def forward(self, x):
        return self.layers[0](self.fc(self.drop(self.features(x))))


IMAGES = torch.randn(8, 1, 6, 6)


def wrapped(**options):
    return Hypernet(Net(), samples=2, members=2, **options)


def each(kind, change):
    """A function for `apply` that changes the modules of one kind."""
    return lambda module: change(module) if isinstance(module, kind) else None


# Modes and what else all networks share


@pytest.mark.parametrize("whole", [True, False])
def test_apply_sets_modes_that_networks_follow(whole):
    hypernet = wrapped(execution="loop").train()
    hypernet(IMAGES)
    (hypernet if whole else hypernet.features).apply(each(nn.BatchNorm2d, lambda module: module.eval()))
    hypernet.apply(each(nn.Dropout, lambda module: setattr(module, "p", 0.0)))
    assert (hypernet.training, hypernet.target.training, hypernet.features[1].training) == (True, True, False)
    (network,) = hypernet.materialize(hypernet.sample(1))
    assert network.drop.p == 0 and network.training and not network.features[1].training
    with hypernet.step():
        assert torch.equal(hypernet(IMAGES), hypernet(IMAGES))


def test_apply_returns_what_it_was_called_on_and_sees_the_targets_modules_alone():
    hypernet, seen = wrapped(), []
    assert hypernet.apply(seen.append) is hypernet
    assert set(seen) == set(hypernet.target.modules()) and len(seen) == len(set(seen))
    assert hypernet.features.apply(fn=lambda _: None) == hypernet.features
    shapes = []
    hypernet.fc.apply(lambda module: shapes.extend(one.shape for one in module.parameters()))
    assert shapes == [(3, 64), (3,)]
    assert hypernet.target.fc.weight is None
    around = nn.Sequential(hypernet, nn.Linear(3, 3))
    around.apply(each(nn.BatchNorm2d, lambda module: module.eval()))
    assert not hypernet.features[1].training


def test_apply_of_modes_to_the_whole():
    hypernet = wrapped().train()
    hypernet.apply(lambda module: module.eval())
    assert not hypernet.training and not hypernet.generator.training
    hypernet.apply(each((Net, nn.Conv2d), lambda module: setattr(module, "training", True)))
    assert hypernet.training and hypernet.target.features[0].training and not hypernet.target.features[1].training


def test_apply_leaves_random_numbers_and_the_generator_alone():
    hypernet = wrapped()
    before, state = [one.clone() for one in hypernet.parameters()], torch.get_rng_state()
    hypernet.apply(lambda module: [one.sum() for one in module.parameters()])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, hypernet.parameters(), before))


# What would change generated parameters

INITIALIZATIONS = {
    "init": each(nn.Linear, lambda module: nn.init.xavier_uniform_(module.weight)),
    "guarded": lambda m: nn.init.constant_(m.weight, 0.1) if hasattr(m, "weight") and m.weight is not None else None,
    "getattr": lambda m: m.weight.data.normal_() if getattr(m, "weight", None) is not None else None,
    "data": each(nn.Linear, lambda module: module.bias.data.fill_(0.0)),
    "scaled": each(nn.Linear, lambda module: module.weight.data.mul_(0.5)),
    "new data": each(nn.Linear, lambda module: setattr(module.weight, "data", torch.zeros(3, 64))),
    "no_grad": each(nn.Linear, torch.no_grad()(lambda module: module.weight.zero_())),
    "reset": lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None,
    "new": each(nn.Linear, lambda module: setattr(module, "weight", nn.Parameter(torch.zeros(3, 64)))),
    "none": each(nn.Linear, lambda module: module.register_parameter("bias", None)),
    "moved": each(nn.Linear, lambda module: module.double()),
    "replaced": each(Net, lambda module: setattr(module, "fc", nn.Linear(64, 3))),
    "deleted": each(nn.Linear, lambda module: delattr(module, "weight")),
    "weight_norm": each(nn.Linear, parametrizations.weight_norm),
    "old weight_norm": each(nn.Linear, torch.nn.utils.weight_norm),
    "pruned": each(nn.Linear, lambda module: torch.nn.utils.prune.l1_unstructured(module, "weight", 0.5)),
}


@pytest.mark.parametrize("name", INITIALIZATIONS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_apply_refuses_to_initialize(name):
    hypernet = wrapped().eval()
    hypernet.update_statistics([IMAGES])
    before = hypernet(IMAGES)
    message = r"changes the generated parameter '\S+' of Net.*: apply it before the target is wrapped, or .* exclude=\['\S+'\]"
    with pytest.raises(RuntimeError, match=message):
        hypernet.apply(INITIALIZATIONS[name])
    assert torch.equal(hypernet(IMAGES), before)
    assert type(hypernet.target.fc) is nn.Linear and not hypernet.target.fc._forward_pre_hooks
    hypernet.materialize(hypernet.sample(1))[0](IMAGES)
    if name not in ("replaced", "init"):
        with pytest.raises(RuntimeError, match="changes the generated parameter"):
            hypernet.layers.apply(INITIALIZATIONS[name] if name != "new data" else INITIALIZATIONS["data"])


@pytest.mark.parametrize(
    "freeze",
    [
        each(nn.Linear, lambda module: setattr(module.weight, "requires_grad", False)),
        each(nn.Linear, lambda module: module.requires_grad_(False)),
        lambda module: [one.requires_grad_(False) for one in module.parameters()],
    ],
)
def test_apply_refuses_to_freeze(freeze):
    hypernet = wrapped()
    with pytest.raises(RuntimeError, match="freezes the generated parameter '.*freeze it before .*hypernet.requires_grad_"):
        hypernet.apply(freeze)
    assert all(one.requires_grad for one in hypernet.parameters())


def test_apply_changes_what_is_not_generated():
    hypernet = wrapped(exclude=["fc.*"]).eval()
    hypernet.update_statistics([IMAGES])
    before = hypernet(IMAGES)
    hypernet.fc.apply(each(nn.Linear, lambda module: nn.init.zeros_(module.weight)))
    assert hypernet.target.fc.weight.abs().sum() == 0 and not torch.equal(hypernet(IMAGES), before)
    hypernet.fc.apply(lambda module: module.requires_grad_(False))
    assert not hypernet.target.fc.weight.requires_grad


def test_tied_and_recurrent_parameters_are_met_in_all_places():
    hypernet = Hypernet(nn.LSTM(3, 4, batch_first=True), samples=2)
    with pytest.raises(RuntimeError, match="changes the generated parameter 'weight_ih_l0'"):
        hypernet.apply(lambda module: [nn.init.zeros_(one) for one in module.all_weights[0]])
    assert hypernet(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


REFUSED = {
    "double": "generated, with the type and device of the whole: call hypernet.double",
    "half": "call hypernet.half",
    "to": "call hypernet.to",
    "cuda": "call hypernet.cuda",
    "cpu": "call hypernet.cpu",
    "type": "call hypernet.type",
    "to_empty": "call hypernet.to_empty",
    "share_memory": "call hypernet.share_memory",
    "requires_grad_": r"train or freeze hypernet.parameters\(\), or keep these as they are with exclude=\['features.\*'\]",
    "parameters": r"train or freeze hypernet.parameters\(\)",
    "named_parameters": r"train or freeze hypernet.parameters\(\)",
    "zero_grad": r"call hypernet.zero_grad\(\)",
    "state_dict": r"take hypernet.state_dict\(\), or one of hypernet.materialize",
    "load_state_dict": "load them before the target is wrapped",
    "register_parameter": "call register_parameter before the target is wrapped",
    "register_buffer": "call register_buffer before the target is wrapped",
    "register_module": "call register_module before the target is wrapped",
    "add_module": "call add_module before the target is wrapped",
    "append": "call append before the target is wrapped",
    "insert": "call insert before the target is wrapped",
    "modules": r"set modes by hypernet.features.apply\(function\), freeze hypernet.requires_grad_",
    "named_modules": r"set modes by hypernet.features.apply",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_part_with_generated_parameters_refuses(name):
    hypernet = wrapped()
    message = rf"{name} of 'features' was asked for, but the parameters of 'features' are .*{REFUSED[name]}"
    with pytest.raises(AttributeError, match=message):
        getattr(hypernet.features, name)
    assert not hasattr(hypernet.features, name)


def test_no_spelling_reaches_generated_parameters():
    hypernet = wrapped()
    reads = (
        lambda: hypernet.fc.weight.data,
        lambda: nn.init.xavier_uniform_(hypernet.fc.weight),
        lambda: hypernet.fc.get_parameter("weight"),
        lambda: hypernet.features.get_parameter("0.weight"),
        lambda: torch.nn.utils.weight_norm(hypernet.fc),
        lambda: parametrizations.weight_norm(hypernet.fc),
        lambda: torch.nn.utils.prune.l1_unstructured(hypernet.fc, "weight", 0.5),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for read in reads:
            with pytest.raises(AttributeError, match="weight is generated, so every network has its own"):
                read()
    for part in (hypernet.features.children, lambda: [one for _, one in hypernet.features.named_children()]):
        with pytest.raises(AttributeError, match=r"parameters of 'features.0' are generated.*exclude=\['features.0"):
            [one for child in part() for one in child.parameters()]
    with pytest.raises(AttributeError, match="parameters of 'features.0' are generated"):
        torch.nn.utils.clip_grad_norm_(hypernet.features.get_submodule("0").parameters(), 1.0)
    assert hypernet.target.fc.weight is None
    hypernet(IMAGES)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net, "fc", nn.Linear(64, 3)),
        lambda net: setattr(net, "fc", None),
        lambda net: setattr(net.fc, "weight", nn.Parameter(torch.zeros(3, 64))),
        lambda net: setattr(net.fc, "weight", torch.zeros(3, 64)),
        lambda net: setattr(net.fc, "bias", None),
        lambda net: delattr(net, "fc"),
        lambda net: delattr(net.fc, "weight"),
    ],
)
def test_parts_are_replaced_and_removed_before_wrapping(change):
    hypernet = wrapped()
    with pytest.raises(AttributeError, match="is a part of the target, which must be re.* before the target is wrapped"):
        change(hypernet)
    hypernet(IMAGES)


def test_attributes_are_deleted_on_the_target():
    hypernet = wrapped()
    hypernet.own = 1
    del hypernet.own, hypernet.tag
    assert not hasattr(hypernet, "own") and not hasattr(hypernet.target, "tag")
    del hypernet.drop.p
    assert not hasattr(hypernet.target.drop, "p")
    with pytest.raises(AttributeError):
        del hypernet.tag


# Parts in which nothing is generated


def test_a_part_that_is_not_generated_is_changed():
    hypernet = wrapped(exclude=["features.*", "fc.*"]).eval()
    hypernet.features.double()
    assert hypernet.target.features[1].running_mean.dtype == torch.float64
    hypernet.features.float()
    hypernet.update_statistics([IMAGES])
    before = hypernet(IMAGES)
    other = Net()
    hypernet.fc.load_state_dict(other.fc.state_dict())
    changed = hypernet(IMAGES)
    assert not torch.equal(changed, before)
    assert torch.equal(hypernet.fc.state_dict()["weight"], other.fc.weight)
    assert hypernet.fc.requires_grad_(False) == hypernet.fc
    assert not any(one.requires_grad for one in hypernet.fc.parameters())
    hypernet.fc.register_buffer("mask", torch.zeros(3))
    hypernet.fc.register_forward_hook(lambda module, _, output: output * module.mask)
    assert torch.equal(hypernet(IMAGES), hypernet(torch.zeros(8, 1, 6, 6))) and "target.fc.mask" in hypernet.state_dict()
    assert [type(one) for one in hypernet.features.modules()][1:] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Flatten]
    assert hypernet.features.get_submodule("0") is hypernet.target.features[0]


def test_a_container_that_is_not_generated_grows():
    hypernet = wrapped(exclude=["features.*"])
    hypernet.features.append(nn.Tanh())
    assert len(hypernet.features) == 5
    assert hypernet.features(IMAGES).abs().max() <= 1


def test_buffers_are_the_targets():
    hypernet = wrapped()
    assert next(iter(hypernet.features[1].buffers())) is hypernet.target.features[1].running_mean


def test_the_whole_moves():
    hypernet = wrapped().half().eval()
    hypernet.members.estimated.fill_(1.0)
    assert hypernet(IMAGES.half()).dtype == torch.float16
    hypernet.double()
    assert hypernet(IMAGES.double()).dtype == torch.float64


def test_a_targets_own_methods_of_such_names_run():
    class Queue(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def append(self, x):
            return self.layer(x)

        forward = append

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.queue = Queue()

        def forward(self, x):
            return self.queue(x)

    hypernet = Hypernet(Outer(), samples=2, execution="loop").train()
    x = torch.randn(4, 3)
    with hypernet.step():
        assert torch.equal(hypernet.queue.append(x), hypernet(x))


@pytest.mark.parametrize("training", [True, False])
def test_modules_that_methods_return_are_parts(training):
    class Model(Net):
        def get_classifier(self):
            return self.fc

        def blocks(self):
            return [self.features, self.fc]

        def fluent(self):
            return self

    hypernet = Hypernet(Model(), samples=2, members=2).train(training)
    hypernet.members.estimated.fill_(1.0)
    assert hypernet.get_classifier() == hypernet.fc and hypernet.blocks() == [hypernet.features, hypernet.fc]
    with pytest.raises(AttributeError, match="weight is generated"):
        nn.init.zeros_(hypernet.get_classifier().weight)
    with hypernet.step():
        assert torch.equal(hypernet.get_classifier()(torch.ones(4, 64)), hypernet.fc(torch.ones(4, 64)))
    if not training:
        assert torch.equal(hypernet.fluent()(IMAGES), hypernet(IMAGES))


# Containers


def test_only_a_container_is_one():
    hypernet, container = wrapped(), Hypernet(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    table = Hypernet(nn.ModuleDict({"a": nn.Linear(3, 3)}))
    for one, kinds in ((hypernet, []), (container, [Iterable, Sized]), (table, [Iterable, Sized, Collection])):
        for kind in (Iterable, Sized, Collection):
            assert isinstance(one, kind) == (kind in kinds)
        assert isinstance(one, Hypernet) and type(one).__name__ == "Hypernet" and bool(one)
        assert hasattr(one, "__getitem__") == bool(kinds)
    assert not isinstance(hypernet.fc, Iterable) and not hasattr(hypernet.fc, "__getitem__")
    assert isinstance(hypernet.features, Sized) and isinstance(container[0], type(hypernet.fc))
    assert container[0] in container and hypernet.fc not in container and "a" in table and "b" not in table
    assert list(reversed(container)) == [container[1], container[0]]
    for wrong in (lambda: len(hypernet), lambda: hypernet[0], lambda: list(hypernet), lambda: hypernet.fc[0]):
        with pytest.raises(TypeError):
            wrong()


class Mine(Hypernet):
    """A subclass that makes its target itself."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(3, 3)), samples=2, execution="loop")


@pytest.mark.parametrize("make", [lambda: Hypernet(nn.Sequential(nn.Linear(3, 3)), execution="loop"), Mine])
def test_containers_are_copied_and_pickled(make):
    hypernet = make().eval()
    x = torch.randn(4, 3)
    for other in (copy.deepcopy(hypernet), copy.copy(hypernet), pickle.loads(pickle.dumps(hypernet))):
        assert type(other) is type(hypernet) and isinstance(other, Mine) == isinstance(hypernet, Mine)
        assert torch.equal(other(x), hypernet(x)) and len(other) == 1
        assert torch.equal(other[0](x), hypernet[0](x))
    assert pickle.loads(pickle.dumps(hypernet[0]))(x).shape == (4, 3)


def module_of(tree, net):
    class Model(tree.LightningModule):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Flatten(), nn.Linear(36, 36))
            self.net = net

        def training_step(self, batch, batch_idx):
            return self.net(self.stem(batch).reshape(-1, 1, 6, 6)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=0.1)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.randn(16, 1, 6, 6), batch_size=8)

    return Model()


@pytest.mark.parametrize("part", ["stem", "net"])
@pytest.mark.parametrize("tree", [pl, lp])
@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_finetuning_in_a_fit(tree, part):
    seen = []

    class Finetuning(tree.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(getattr(pl_module, part), train_bn=False)

        def finetune_function(self, pl_module, epoch, optimizer):
            of = pl_module.net.generator if part == "net" else pl_module.stem
            seen.append({one.requires_grad for one in of.parameters()})
            if epoch == 1:
                self.unfreeze_and_add_param_group(getattr(pl_module, part), optimizer)
                seen.append({one.requires_grad for one in of.parameters()})

    callback = HypernetCallback(target="net", samples=2, members=2)
    trainer = tree.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[callback, Finetuning()],
    )  # fmt: skip
    module = module_of(tree, Net())
    trainer.fit(module)
    assert seen == [{False}, {False}, {True}]
    assert len(trainer.optimizers[0].param_groups) == 2


def test_freezing_the_parts_of_a_container_is_refused():
    hypernet = Hypernet(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), exclude=["2.*"])
    with pytest.raises(AttributeError, match="freeze hypernet.requires_grad_"):
        pl.callbacks.BaseFinetuning.freeze(hypernet)
    pl.callbacks.BaseFinetuning.freeze(hypernet[2])
    assert not any(one.requires_grad for one in hypernet[2].parameters())
