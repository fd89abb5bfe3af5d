import json

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import Ensemble, Hypernet
from lightning_hypernet.target.execution import Executor
from tests.targets import Tied
from tests.test_hypernet import convnet, mlp


def loader():
    torch.manual_seed(1)
    return [(torch.randn(16, 1, 8, 8) + 1, torch.zeros(16)) for _ in range(3)]


def ensemble(n=4, **options):
    torch.manual_seed(0)
    hypernet = Hypernet(convnet(), **options)
    for x, _ in loader():
        hypernet.train()(x)
    return hypernet.eval().ensemble(n)


def test_predictions():
    networks = ensemble()
    x = torch.randn(5, 1, 8, 8)
    outputs = networks.members(x)
    assert torch.allclose(networks(x), outputs.mean(0))
    networks.reduce = "log_mean_prob"
    assert torch.allclose(networks(x).exp(), outputs.softmax(-1).mean(0), atol=1e-6)
    networks.reduce = "majority"
    assert torch.allclose(networks(x), F.one_hot(outputs.argmax(-1), 3).float().mean(0))
    networks.reduce = "log_probs"
    with pytest.raises(ValueError, match=r"reduce must be one of \('mean', .*, not 'log_probs'"):
        networks(x)


def test_a_part_is_independent_of_the_whole():
    networks = ensemble(exclude=("*.bias",), execution="loop")
    x = torch.randn(5, 1, 8, 8)
    before = networks(x)
    part = networks[1:3]
    assert len(part) == 2
    assert torch.equal(part.members(x), networks.members(x)[1:3])
    part.train().double()
    assert torch.equal(networks(x), before)
    with pytest.raises(TypeError, match="an ensemble is indexed by a slice, not by int"):
        networks[0]


def test_an_ensemble_is_fixed_and_independent_of_its_hypernet():
    torch.manual_seed(0)
    hypernet = Hypernet(mlp())
    networks = hypernet.ensemble(3)
    x = torch.randn(5, 4)
    before = networks(x)
    with torch.no_grad():
        for parameter in hypernet.parameters():
            parameter.zero_()
    assert torch.equal(networks(x), before)
    assert list(networks.parameters()) == []


def test_calibration_equals_update_bn():
    torch.manual_seed(0)
    target = timm.create_model("resnet18", num_classes=10)
    hypernet = Hypernet(target, samples=2)
    batches = [torch.randn(6, 3, 32, 32) + 0.5 for _ in range(3)]
    hypernet.train()(batches[0])
    networks = hypernet.eval().ensemble(2)
    networks.update_statistics(batches)
    for index, module in enumerate(networks.materialize()):
        other = hypernet.executor.materialize({name: value[index] for name, value in networks.weights.tensors().items()})
        torch.optim.swa_utils.update_bn(batches, other)
        pairs = zip(other.state_dict().items(), module.state_dict().values(), strict=True)
        assert all(torch.allclose(one, two, atol=1e-5, rtol=1e-5) for (name, one), two in pairs)
        assert module.bn1.num_batches_tracked == 3
    networks.update_statistics(batches, batches=1)
    assert networks.materialize()[0].bn1.num_batches_tracked == 1


def test_average():
    networks = ensemble(6)
    with pytest.raises(ValueError, match="pass a loader of training data"):
        networks.average()
    averaged = networks.average(loader())
    weights = networks.weights.tensors()
    assert torch.allclose(averaged[0].weight, weights["0.weight"].mean(0), atol=1e-7)
    expected = Executor(convnet(), {name: (name,) for name in weights}).materialize(
        {name: value.mean(0) for name, value in weights.items()}
    )
    expected[3].p = 0.0
    torch.optim.swa_utils.update_bn(loader(), expected)
    assert torch.allclose(averaged[1].running_var, expected[1].running_var, atol=1e-5)
    convnet().load_state_dict(averaged.state_dict())


def test_average_over_components_warns():
    with pytest.warns(UserWarning, match="several components.*component=0"):
        Hypernet(mlp(), components=2).ensemble(4).average()
    Hypernet(mlp(), components=2).ensemble(4, component=1).average()


def test_save_and_load(tmp_path):
    networks = ensemble(reduce="log_mean_prob", exclude=("6.bias",))
    x = torch.randn(5, 1, 8, 8)
    expected = networks(x)
    networks.save(tmp_path / "members")
    assert sorted(path.name for path in (tmp_path / "members").iterdir()) == ["ensemble.json", "ensemble.safetensors"]
    assert len({path.stat().st_mode for path in (tmp_path / "members").iterdir()}) == 1
    loaded = Ensemble.load(tmp_path / "members", convnet())
    assert torch.equal(loaded(x), expected)
    assert torch.equal(loaded.latents.z, networks.latents.z)
    with pytest.raises(ValueError, match="holds no recipe of the target: pass target"):
        Ensemble.load(tmp_path / "members")
    with pytest.raises(
        ValueError, match=r"another model .*: 0 of 67 parameters fit; 1.bias is none of 4 networks of Sequential"
    ):
        Ensemble.load(tmp_path / "members", mlp())


def test_load_from_a_recipe(tmp_path):
    torch.manual_seed(0)
    options = {"model_name": "resnet10t", "num_classes": 3}
    hypernet = Hypernet(timm.create_model(**options), samples=2, execution="loop")
    x = torch.randn(4, 3, 32, 32)
    hypernet(x)
    networks = hypernet.eval().ensemble(2)
    networks.save(tmp_path, {"class_path": "timm.create_model", "init_args": options})
    assert torch.equal(Ensemble.load(tmp_path)(x), networks(x))
    recipe = json.loads((tmp_path / "ensemble.json").read_text())
    recipe["target"] = {"class_path": "os.system", "init_args": {"command": "true"}}
    (tmp_path / "ensemble.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="a recipe names timm.create_model or a class of modules, not os.system"):
        Ensemble.load(tmp_path)


def test_tied_parameters_survive(tmp_path):
    networks = Hypernet(Tied(), execution="loop").ensemble(2)
    networks.save(tmp_path)
    loaded = Ensemble.load(tmp_path, Tied())
    x = torch.randn(3, 8)
    assert torch.equal(loaded(x), networks(x))
    module = loaded.materialize()[0]
    assert module.encoder.weight is module.back.weight


def test_devices_and_dtypes_follow():
    networks = Hypernet(nn.Linear(3, 2)).ensemble(3).double()
    assert networks(torch.randn(4, 3, dtype=torch.float64)).dtype == torch.float64
