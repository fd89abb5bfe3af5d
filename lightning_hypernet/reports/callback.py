"""HypernetReport: what the networks are worth, told while they train and written down at the end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lightning_hypernet.callback import HypernetCallback
from lightning_hypernet.reports.feeding import Fed, validating
from lightning_hypernet.reports.findings import Findings, measure
from lightning_hypernet.reports.loggers import figures, send
from lightning_hypernet.reports.page import write_report
from lightning_hypernet.sharding import shards
from lightning_hypernet.trees import BaseCallback
from lightning_hypernet.values import switch, whole


class HypernetReport(BaseCallback):
    """Report on the networks of a `HypernetCallback`: figures at every validation, a page at the end of `fit`.

    After each validation the members are run once more over the first validation loader, whose batches pass the module's
    transfer hooks as in validation. Their metrics are logged as ``report/<name>`` through whatever logger the trainer has, so
    that checkpoints and early stopping may follow them; loggers that take pictures get some. Under several ranks each measures
    its part of the data and the means are logged; the page is of the first rank's part.

    Training goes on as without the report, also where something can't be measured or written: that is a warning.

    Args:
        path: Where the page is written; None: ``report.html`` in the trainer's log folder.
        target: The `target` of the `HypernetCallback`, if there are several; None: the only one.
        title: Title of the page; None: the class of the target.
        every: Validations from one report to the next, from the first on; in between the last figures are logged again.
        batches: Batches that are read; None: as many as validation reads.
        pictures: Whether loggers get pictures.
        targets: Gives the targets of a batch, where they are not its last part, nor named as targets or labels.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a number is out of range.

    Example:
        >>> HypernetReport(every=5).every
        5
    """

    def __init__(
        self,
        path: str | Path | None = None,
        target: str | None = None,
        title: str | None = None,
        every: int = 1,
        batches: int | None = None,
        pictures: bool = True,
        targets: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.path = None if path is None else Path(path)
        self.target, self.title = target, title
        self.every = whole("every", every)
        self.batches = None if batches is None else whole("batches", batches)
        self.pictures = switch("pictures", pictures)
        if targets is not None and not callable(targets):
            raise TypeError(f"targets must be a function that gives the targets of a batch, not {targets!r}")
        self.targets = targets
        self.history: list[tuple[float, Mapping[str, float]]] = []
        self.written: Path | None = None
        self._validations = count()
        self._last: dict[str, float] = {}
        self._told: set[str] = set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """See that there is a `HypernetCallback` to report on.

        Raises:
            ValueError: If there is none, or several and no `target`, or the strategy shards what generates the networks.
        """
        self._reported(trainer)
        if shards(trainer):
            raise ValueError(
                f"HypernetReport draws networks on one rank, and {type(trainer.strategy).__name__} gathers their generator on "
                "all at once: leave it out and call write_report on the checkpoint, or use DDP"
            )

    def state_dict(self) -> dict[str, Any]:
        """The figures of the validations so far."""
        return {"history": [[at, dict(found)] for at, found in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the figures of the validations."""
        self.history = [(at, found) for at, found in state_dict["history"]]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the members and log what was found."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn != "fit" or next(self._validations) % self.every == 0:
            self._last = {}
            with self._sparing("nothing was reported"):
                self._measure(trainer, pl_module)
        ranks, known = trainer.world_size > 1, bool(self._last)
        if ranks:  # which must log the same names, or wait for each other for ever
            names = trainer.strategy.broadcast(sorted(self._last))
            known = trainer.strategy.reduce_boolean_decision(known and sorted(self._last) == names)
        if known:
            pl_module.log_dict({f"report/{name}": value for name, value in self._last.items()}, sync_dist=ranks)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page."""
        folder = trainer.log_dir or trainer.default_root_dir  # all ranks ask for it together
        if not trainer.is_global_zero:
            return
        with self._sparing("the report was not written"), validating(trainer, pl_module):
            path = self.path or Path(folder) / "report.html"
            loader, batches = self._loader(trainer, pl_module)
            best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
            hypernet = self._reported(trainer).hypernet
            self.written = write_report(hypernet, loader, path, self.title, best, self.history, batches, self.targets)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pictured = self.pictures and trainer.is_global_zero and bool(trainer.loggers)
        loader, batches = self._loader(trainer, pl_module)
        hypernet = self._reported(trainer).hypernet
        found = measure(hypernet, loader, batches, deep=pictured, targets=self.targets)
        self._last = _logged(found)
        if trainer.state.fn == "fit":
            self.history.append((float(trainer.current_epoch + 1), found.figures))
        for name, figure in figures(found) if pictured else ():
            for logger in trainer.loggers:
                send(logger, f"report/{name}", figure, trainer.global_step)

    @contextmanager
    def _sparing(self, what: str) -> Iterator[None]:
        """Within, an error is a warning, told once: what is trained is worth more than a report."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if reason not in self._told:
                self._told.add(reason)
                warnings.warn(f"{what}, and training goes on: {reason}", stacklevel=4)

    def _reported(self, trainer: pl.Trainer) -> HypernetCallback:
        found = [one for one in trainer.callbacks if isinstance(one, HypernetCallback)]  # type: ignore[attr-defined]
        chosen = [one for one in found if self.target in (None, one.target)]
        if len(chosen) == 1:
            return chosen[0]
        if not found:
            raise ValueError("HypernetReport tells of a HypernetCallback, and the trainer has none: add one to its callbacks")
        names = ", ".join(repr(one.target) for one in found)
        raise ValueError(f"HypernetReport tells of one HypernetCallback: give target=, one of {names}, not {self.target!r}")

    def _loader(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Fed | None, int | None]:
        """The first validation loader, and how many of its batches are read."""
        loader = trainer.val_dataloaders
        while isinstance(loader, (list, tuple, Mapping)) and loader:
            loader = next(iter(loader.values())) if isinstance(loader, Mapping) else loader[0]
        counts = trainer.num_val_batches
        most = counts[0] if isinstance(counts, list) and counts else counts
        limits = [int(one) for one in (most, self.batches) if isinstance(one, (int, float)) and one < float("inf")]
        if not isinstance(loader, (list, tuple, Mapping)) and loader is not None and min(limits, default=1) > 0:
            return Fed(trainer, pl_module, loader), min(limits, default=None)
        return None, None


def _logged(found: Findings) -> dict[str, float]:
    """The figures, and the spread of every bank."""
    return {**found.figures, **{f"spread/{layer.name}": layer.spread for layer in found.layers}}
