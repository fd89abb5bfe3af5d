"""Exported ensembles run in onnxruntime and as programs of `torch.export`, with the numbers they had."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch.*"),
]
TARGETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3)), (6,)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                              nn.Linear(16, 3)),
        (1, 8, 8),
    ),
}  # fmt: skip


def ensemble_of(kind, reduce):
    make, shape = TARGETS[kind]
    hypernet = Hypernet(make(), samples=2, members=2, reduce=reduce).eval()
    return hypernet.ensemble(3, loader=[torch.randn(32, *shape) + 1]), torch.randn(4, *shape), torch.randn(9, *shape)


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("reduce", ["mean", "log_mean_prob", "majority"])
@pytest.mark.parametrize("kind", TARGETS)
def test_onnxruntime(kind, reduce, plain):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ensemble, x, more = ensemble_of(kind, reduce)
    file = io.BytesIO()
    program = torch.onnx.export(
        ensemble.to_module() if plain else ensemble, (x,), dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=2)},),
    )  # fmt: skip
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for inputs in (x, more):
        (output,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        np.testing.assert_allclose(output, ensemble(inputs).detach().numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reduce", ["mean", "log_mean_prob"])
@pytest.mark.parametrize("kind", TARGETS)
def test_torch_export(kind, reduce):
    ensemble, x, more = ensemble_of(kind, reduce)
    program = torch.export.export(ensemble, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for inputs in (x, more):
        torch.testing.assert_close(loaded(inputs), ensemble(inputs), atol=1e-5, rtol=1e-5)
