"""Predictions with their uncertainty, how they are calibrated, and conformal sets."""

from __future__ import annotations

from lightning_hypernet.uncertainty.calibration import Calibration
from lightning_hypernet.uncertainty.conformal import Conformal
from lightning_hypernet.uncertainty.predicting import Predicting
from lightning_hypernet.uncertainty.prediction import ClassPrediction, NumberPrediction, Prediction

__all__ = ["Calibration", "ClassPrediction", "Conformal", "NumberPrediction", "Predicting", "Prediction"]
