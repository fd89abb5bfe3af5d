"""All situations, by name, and what is not right yet."""

from tests.contract.agreement import What
from tests.contract.keeping import KEEPING
from tests.contract.made_of import MADE_OF
from tests.contract.taking import TAKING
from tests.targets import KINDS

SITUATIONS = {
    **{name: What(kind.make, kind.inputs, vmap=(kind.vmap, kind.vmap and kind.vmap_training),
                  tells=("are no averages over batches",) if name == "spectral_norm" else ())
       for name, kind in KINDS.items()},
    **KEEPING,
    **TAKING,
    **MADE_OF,
}  # fmt: skip
assert len(SITUATIONS) == len(KINDS) + len(KEEPING) + len(TAKING) + len(MADE_OF), "a name is taken twice"

FAULTS = {
    "shared_norm": "the statistics of a norm layer that is called twice are those of its last call",
    "hooks": "vmap does not call full backward hooks",
    "old_spectral_norm": "Ensemble.load drops the versions of the target's state",
    "own_copy": "a Hypernet is copied by the target's own way, without its weights",
    "instance_norm_with_statistics": "the batches of an instance norm are counted, which torch does not",
    "scripted_and_generated": "a target that is scripted as a whole stops with torch's own error",
}
