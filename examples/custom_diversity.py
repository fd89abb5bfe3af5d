"""A diversity loss of one's own, as a plug-in: the class, its name, and the callback that chooses it."""

import pytorch_lightning as pl
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import Tensor

from lightning_hypernet import DiversityLoss, HypernetCallback, Population, hookimpl


class Cosine(DiversityLoss):
    """Mean cosine between the weight vectors of two networks."""

    default_weight = 1.0

    def forward(self, population: Population) -> Tensor:
        """Map a population to a scalar; low = diverse."""
        directions = population.gauged / population.gauged.norm(dim=1, keepdim=True)
        n = len(population)
        return ((directions @ directions.T).sum() - n) / (n * (n - 1))


class Plugin:
    """What a package would name in its entry points, group ``lightning_hypernet``."""

    @hookimpl
    def hypernet_register_diversity(self, register):
        """Make ``diversity="cosine"`` work."""
        register("cosine", Cosine)


def main() -> None:
    pl.seed_everything(0)
    callback = HypernetCallback(target="layer", diversity="cosine", plugins=[Plugin()])
    trainer = pl.Trainer(max_epochs=5, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(BoringModel())
    print(f"mean cosine between sampled networks: {Cosine()(callback.hypernet.sample(100)):.3f}")


if __name__ == "__main__":
    main()
