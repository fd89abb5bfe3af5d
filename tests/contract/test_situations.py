"""The contract in every situation."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_hypernet import Hypernet
from tests.contract.agreement import agrees
from tests.contract.situations import SITUATIONS

LONG = {
    "timm_convnext", "timm_vit", "timm_vit_with_drops", "old_spectral_norm", "old_weight_norm", "attention_separate", "decoder",
    "unet", "evo_norm", "encoder_time_first", "ema_debiased", "ema_watched", "experts", "stochastic_depth", "conv1d", "gru",
    "solver", "language", "transposed_conv", "lists_and_dictionaries", "pre_norm", "ema_codebook", "shared_norm", "structured",
    "keyword_arguments", "response_norm", "orthogonal", "auxiliary_head", "lazy", "ema_queue", "rnn",
}  # fmt: skip
"""Situations that take longest, each beside one of its kind that is always run."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in SITUATIONS])
def test_a_hypernet_agrees_with_its_plain_networks(name):
    agrees(**vars(SITUATIONS[name]))


@pytest.mark.filterwarnings("ignore:.*are no averages over batches")
@pytest.mark.parametrize("way", ["population", "ensemble"])
def test_statistics_are_estimated_before_any_training_run(way):
    hypernet = Hypernet(parametrizations.spectral_norm(nn.Linear(4, 3)))
    batches = [torch.randn(5, 4)]
    if way == "population":
        population = hypernet.sample(2)
        hypernet.update_statistics(batches, population)
        found = population.buffers
    else:
        found = hypernet.ensemble(2, loader=batches).statistics.tensors()
    assert set(found) == {"parametrizations.weight.0._u", "parametrizations.weight.0._v"}
