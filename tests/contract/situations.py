"""All situations, by name, and what is not right yet."""

from dataclasses import replace

from tests.contract.agreement import What
from tests.contract.keeping import KEEPING
from tests.contract.made_of import MADE_OF
from tests.contract.taking import TAKING
from tests.targets import KINDS

GAUGED = (
    *(name for name in KINDS if name not in ("lstm", "gru", "rnn", "embedding", "odd_layer", "tokens")
      and not name.startswith("attention")),
    "shared_norm", "remembers", "ema_norm", "ema_codebook", "weights_in_containers",
    "half_frozen", "hooks", "old_weight_norm", "old_spectral_norm", "nested_outputs",
    "siamese", "auxiliary_head", "prototypes_out", "lists_and_dictionaries",
    "adapted", "unet", "residual_stream", "dropout", "stochastic_depth", "lazy", "symmetric_weights",
    "batch_norm_cumulative", "batch_norm_without_scale", "batch_norm_without_statistics", "instance_norm_with_statistics",
    "layer_norm_over_two_axes", "evo_norm", "response_norm", "depthwise", "transposed", "shuffled_pixels", "gates", "timm_vit",
)  # fmt: skip
"""Where channels could be scaled, or seem so: the gauge must keep the function."""

CASES = {
    **{name: What(kind.make, kind.inputs, vmap=(kind.vmap, kind.vmap and kind.vmap_training),
                  tells=("are no averages over batches",) if name == "spectral_norm" else ())
       for name, kind in KINDS.items()},
    **KEEPING,
    **TAKING,
    **MADE_OF,
}  # fmt: skip
SITUATIONS = {name: replace(case, gauge=name in GAUGED) for name, case in CASES.items()}
assert len(SITUATIONS) == len(KINDS) + len(KEEPING) + len(TAKING) + len(MADE_OF), "a name is taken twice"
assert set(GAUGED) <= set(SITUATIONS), set(GAUGED) - set(SITUATIONS)
