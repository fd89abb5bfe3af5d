"""Predicting: what an ensemble says with its uncertainty, and how it is calibrated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_hypernet.population import StoredLatents
from lightning_hypernet.target.execution import Executor
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.target.networks import Networks
from lightning_hypernet.target.reduction import Reduction, check_reduction
from lightning_hypernet.uncertainty.calibration import Calibration
from lightning_hypernet.uncertainty.conformal import CLASS_SCORES, NUMBER_SCORES, Conformal, class_scores, number_scores
from lightning_hypernet.uncertainty.prediction import ClassPrediction, NumberPrediction, Prediction
from lightning_hypernet.uncertainty.reading import Reading, clear, read
from lightning_hypernet.uncertainty.targets import batches as batches_of
from lightning_hypernet.uncertainty.targets import labels_of, numbers_of
from lightning_hypernet.uncertainty.temperature import fit_classes, fit_numbers, log_mean
from lightning_hypernet.values import choice, switch, whole

TargetsOf = Callable[[Any], Any]
"""Gives the targets of a batch."""


class Predicting(nn.Module):
    """A fixed set of members that predicts with its uncertainty.

    Attributes:
        executor: Runs the members.
        stored: What they were generated from.
        networks: The members.
        reduce: How their outputs are joined.
        calibration: What was fitted on data that they were not trained on.
    """

    executor: Executor
    stored: StoredLatents
    reduce: Reduction

    def __init__(self) -> None:
        super().__init__()
        self.calibration = Calibration()

    @property
    def networks(self) -> Networks:
        """The members' networks."""
        raise NotImplementedError

    def members(self, *args: Any, chunk_size: int | None = None, **kwargs: Any) -> Any:
        """The outputs of all members, every tensor ``(members, ...)``."""
        raise NotImplementedError

    def predict(
        self,
        *args: Any,
        task: str | None = None,
        variance: str | float | None = None,
        dim: int | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Prediction:
        """What the members say together, with its uncertainty, calibrated if `calibrate` was called.

        However the ensemble joins outputs, what is read is what its members say one by one, in evaluation mode, and with
        gradients where an input asks for them.

        Args:
            args: The inputs of the target.
            task: ``"classification"``: outputs are logits, or probabilities that sum to 1; ``"regression"``: numbers. None: as
                in `calibrate` or `conform`; classification if neither was called.
            variance: Of a regression: what the second half of the outputs is, ``"log_variance"``, ``"variance"``,
                ``"log_std"``, ``"std"`` or ``"softplus"`` (of which the variance is the softplus); a number: the variance of
                the noise; None: outputs are means alone. Outputs may also be a pair, or a mapping with the ``mean``.
            dim: The axis of the classes, or of the two halves, in ``(batch, ...)``; None: that of `reduce`, or 1, which is
                refused for classes of outputs with three axes.
            chunk_size: Members that vmap runs at once; all by default.
            kwargs: The inputs of the target, by name.

        Returns:
            A `ClassPrediction` or a `NumberPrediction`.

        Raises:
            TypeError: If the outputs are no real numbers.
            ValueError: If outputs can't be read so, may mean something else, or were read otherwise when calibrated.

        Example:
            >>> from lightning_hypernet import Hypernet
            >>> prediction = Hypernet(nn.Linear(4, 3)).ensemble(5).predict(torch.randn(8, 4))
            >>> prediction.mean.shape, prediction.epistemic.shape
            (torch.Size([8, 3]), torch.Size([8]))
        """
        said = self._said(task, variance, dim)
        reading = self._reading(task, variance, dim)
        self._refuse_own({"task": task, "variance": variance, "dim": dim})
        asked = any(isinstance(one, Tensor) and one.requires_grad for one in tree_leaves((args, kwargs)))
        mode = evaluating(self) if self.training else nullcontext()
        with mode, torch.set_grad_enabled(asked and torch.is_grad_enabled()):
            outputs = self.members(*args, chunk_size=chunk_size, **kwargs)
            clear(reading, outputs, *said)
            return self._prediction(reading, outputs)

    def _refuse_own(self, given: Mapping[str, Any]) -> None:
        """Refuse words that the target's forward has too: nobody could tell whose they are."""
        try:
            own = inspect.signature(self.executor.target.forward).parameters
        except (TypeError, ValueError):  # it has none to read
            return
        both = [name for name, value in given.items() if value is not None and name in own]
        if both:
            raise ValueError(
                f"{both[0]}= is an argument of {type(self.executor.target).__name__} too: pass it by position, and say how "
                "outputs are read by calibrate() or by reduce"
            )

    def calibrate(
        self,
        loader: Iterable[Any],
        members: bool = False,
        batches: int | None = None,
        inputs: Callable[[Any], Any] | None = None,
        targets: TargetsOf | None = None,
        task: str | None = None,
        variance: str | float | None = None,
        dim: int | None = None,
    ) -> Calibration:
        r"""Fit one temperature of the mean prediction, after averaging, by L-BFGS on its negative log-likelihood.

        Of classes the mean probability becomes :math:`\bar p^{1/T}`, made to sum to 1; of numbers the variance T times itself.
        `predict` uses it, files and copies keep it; the outputs of the ensemble itself, its weights and its norm statistics
        stay as they are. Scores of conformal sets are gone: call `conform` afterwards, with other data.

        References:
            | On Calibration of Modern Neural Networks (Guo et al., 2017)
            | https://arxiv.org/abs/1706.04599
            | Uncertainty Quantification and Deep Ensembles (Rahaman and Thiery, 2021), why after averaging
            | https://arxiv.org/abs/2007.08792

        Args:
            loader: Batches that end with their targets, of data that nobody was trained on; labels of -100 count for nothing.
            members: Fit a temperature of every member first, by its own likelihood.
            batches: Stop after that many; None: read all.
            inputs: Gives what the target is called with of a batch, as in `update_statistics`.
            targets: Gives the targets of a batch; None: its last entry.
            task: As in `predict`.
            variance: As in `predict`.
            dim: As in `predict`.

        Returns:
            The calibration, which the ensemble keeps.

        Raises:
            TypeError: If the loader gives no batches, or targets of another type.
            ValueError: If it is empty, shapes do not fit, or means alone, which have no likelihood, are to be calibrated.
        """
        own = switch("members", members)
        said, reading = self._named(task, variance, dim), self._reading(task, variance, dim, anew=True)
        if reading.task == "regression" and reading.variance is None:
            raise ValueError(
                "means alone have no likelihood: name variance=, what the second half of the outputs is or a number, the "
                "variance of the noise; conform(loader) gives intervals without one"
            )
        with evaluating(self), torch.no_grad():
            read_batches = self._outputs(loader, batches, inputs, targets, reading, said)
            found = [_examples(reading, outputs, wanted, own) for outputs, wanted in read_batches]
        first, second, wanted = (torch.cat(column, -1 if reading.task == "regression" else axis) for column, axis in
                                 zip(zip(*found, strict=True), (1, 1, 0), strict=True))  # fmt: skip
        if not wanted.numel():
            raise ValueError("the loader has no labels but -100, which count for nothing")
        temperature, each = _fitted(reading, first, second, wanted, own)
        self.calibration.keep(reading, temperature, each)
        return self.calibration

    def conform(
        self,
        loader: Iterable[Any],
        score: str | None = None,
        batches: int | None = None,
        inputs: Callable[[Any], Any] | None = None,
        targets: TargetsOf | None = None,
        task: str | None = None,
        variance: str | float | None = None,
        dim: int | None = None,
    ) -> Calibration:
        """Score the examples of a loader, so that ``predict(x).sets(level)`` gives conformal sets (split conformal prediction).

        Sets hold the truth as often as promised, whatever the members are worth, for examples like those of the loader, which
        neither training nor `calibrate` saw. Pixels of maps count as examples each, though those of one map are alike: there
        the promise holds for many maps alone.

        References:
            | A Gentle Introduction to Conformal Prediction and Distribution-Free Uncertainty Quantification (Angelopoulos and
              Bates, 2021)
            | https://arxiv.org/abs/2107.07511

        Args:
            loader: Batches that end with their targets; labels of -100 count for nothing.
            score: Of classes ``"least"`` (default), with the smallest sets, or ``"adaptive"``, with larger ones for hard
                examples; of numbers ``"scaled"``, in units of the predicted standard deviation (default), or ``"absolute"``
                (default for means alone).
            batches: As in `calibrate`.
            inputs: As in `calibrate`.
            targets: As in `calibrate`.
            task: As in `predict`.
            variance: As in `predict`.
            dim: As in `predict`.

        Returns:
            The calibration, which the ensemble keeps.

        Raises:
            TypeError: If the loader gives no batches, or targets of another type.
            ValueError: If it is empty, shapes do not fit, or the score is none.
        """
        said, reading = self._said(task, variance, dim), self._reading(task, variance, dim)
        kinds = CLASS_SCORES if reading.task == "classification" else NUMBER_SCORES
        alone = reading.task == "regression" and reading.variance is None
        kind = choice("score", kinds[alone] if score is None else score, kinds)
        with evaluating(self), torch.no_grad():
            read_batches = self._outputs(loader, batches, inputs, targets, reading, said)
            found = [_scores(self._prediction(reading, one), wanted, kind).double().cpu() for one, wanted in read_batches]
        scores = torch.cat(found).sort(0).values
        if not scores.numel():
            raise ValueError("the loader has no labels but -100, which count for nothing")
        if not scores.isfinite().all():
            raise ValueError("a predicted standard deviation is 0, which scales no distance: pass score='absolute'")
        self.calibration.keep_scores(reading, Conformal(kind, scores))
        return self.calibration

    def _named(self, task: Any, variance: Any, dim: Any) -> tuple[bool, bool]:
        """Whether a user says what outputs are, and where the classes lie in them."""
        name, axis = check_reduction(self.reduce)
        probable = name in ("log_mean_prob", "majority")
        return task is not None or variance is not None or probable, dim is not None or axis is not None

    def _said(self, task: Any, variance: Any, dim: Any) -> tuple[bool, bool]:
        return (True, True) if self.calibration.fitted else self._named(task, variance, dim)

    def _reading(self, task: Any, variance: Any, dim: Any, anew: bool = False) -> Reading:
        known = None if anew else self.calibration.reading
        if known is not None and task is None and variance is None and dim is None:
            return known
        reading = read("classification" if task is None else task, variance, dim, self.reduce)
        if known is not None and reading != known:
            raise ValueError(f"the ensemble was calibrated for {known}, not {reading}: leave task=, variance= and dim= out")
        return reading

    def _prediction(self, reading: Reading, outputs: Any) -> Prediction:
        held = self.calibration
        own = held.own
        if reading.task == "classification":
            logs = reading.log_members(outputs)
            if own is not None:
                logs = (logs / _shaped(own, logs)).log_softmax(-1)
            dim = 1 if logs.ndim == 3 else reading.dim
            return ClassPrediction(logs, dim, held.temperature, held.conformal)
        means, variances = reading.numbers(outputs)
        if own is not None:
            variances = variances * _shaped(own, variances)
        return NumberPrediction(means, variances, held.temperature, held.conformal)

    def _outputs(
        self,
        loader: Iterable[Any],
        most: int | None,
        inputs: Callable[[Any], Any] | None,
        targets: TargetsOf | None,
        reading: Reading,
        said: tuple[bool, bool],
    ) -> Iterator[tuple[Any, Tensor]]:
        """The members' outputs for every batch, and the targets."""
        count = None if most is None else whole("batches", most)
        for batch, wanted in batches_of(loader, targets, count):
            (arguments,) = self.executor.read([batch], self.stored.z.device, inputs)
            outputs = self.executor.stacked(self.networks, arguments)
            clear(reading, outputs, *said)
            yield outputs, wanted


def _shaped(own: Tensor, like: Tensor) -> Tensor:
    return own.to(like).reshape(-1, *[1] * (like.ndim - 1))


def _examples(reading: Reading, outputs: Any, wanted: Tensor, own: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What the members say of examples, and the targets of these, flat and on the CPU."""
    if reading.task == "classification":
        logs, labels = labels_of(wanted, reading.log_members(outputs))
        logs = logs if own else log_mean(logs)[None]
        return logs.cpu(), logs[:, :0].cpu(), labels.cpu()
    means, variances = reading.numbers(outputs)
    values = numbers_of(wanted, means)
    return means.flatten(1).cpu(), variances.flatten(1).cpu(), values.flatten().cpu()


def _fitted(reading: Reading, first: Tensor, second: Tensor, wanted: Tensor, own: bool) -> tuple[float, Tensor | None]:
    each = None
    names = [f"member {index}" for index in range(len(first))]
    if reading.task == "classification":
        if own:
            each = torch.tensor([fit_classes(one, wanted, name) for one, name in zip(first, names, strict=True)])
            first = (first / _shaped(each, first)).log_softmax(-1)
        return fit_classes(log_mean(first), wanted), each
    if own:
        pairs = zip(first, second, names, strict=True)
        each = torch.tensor([fit_numbers(mean[None], var[None], wanted, name) for mean, var, name in pairs])
        second = second * _shaped(each, second)
    return fit_numbers(first, second, wanted), each


def _scores(prediction: Prediction, wanted: Tensor, kind: str) -> Tensor:
    """The scores of the targets, ``(examples, outputs)``."""
    if isinstance(prediction, ClassPrediction):
        logs, labels = labels_of(wanted, prediction.log_mean[None])
        return class_scores(logs[0].exp(), kind).gather(1, labels[:, None])
    assert isinstance(prediction, NumberPrediction)
    values = numbers_of(wanted, prediction.means)
    scores = number_scores(values, prediction.mean, prediction.std, kind)
    return scores.movedim(1, -1).flatten(0, -2) if scores.ndim > 1 else scores[:, None]
