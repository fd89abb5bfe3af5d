"""Analyses of a trained Hypernet: each returns data, which draws itself."""

from __future__ import annotations

from lightning_hypernet.analysis.adversarial import Adversarial, adversarial, fgsm, pgd, targeted_sign
from lightning_hypernet.analysis.amortization import AmortizationGap, amortization_gap
from lightning_hypernet.analysis.averaging import Averaging, averaging
from lightning_hypernet.analysis.dependence import LayerDependence, layer_dependence
from lightning_hypernet.analysis.evaluation import accuracies
from lightning_hypernet.analysis.evidence import Evidence, evidence
from lightning_hypernet.analysis.gaps import BestResponseGap, GeneratorGap, best_response_gap, generator_gap
from lightning_hypernet.analysis.images import FilterImages, filter_images
from lightning_hypernet.analysis.inference import Posterior, infer
from lightning_hypernet.analysis.information_gap import InformationGap, mutual_information_gap
from lightning_hypernet.analysis.latent_information import LatentInformation, latent_information
from lightning_hypernet.analysis.ood import Detection, ood
from lightning_hypernet.analysis.paths import Paths, paths
from lightning_hypernet.analysis.reweighting import Reweighting, reweight
from lightning_hypernet.analysis.scatter import Scatter, scatter

__all__ = [
    "Adversarial",
    "AmortizationGap",
    "Averaging",
    "BestResponseGap",
    "Detection",
    "Evidence",
    "FilterImages",
    "GeneratorGap",
    "InformationGap",
    "LatentInformation",
    "LayerDependence",
    "Paths",
    "Posterior",
    "Reweighting",
    "Scatter",
    "accuracies",
    "adversarial",
    "amortization_gap",
    "averaging",
    "best_response_gap",
    "evidence",
    "fgsm",
    "filter_images",
    "generator_gap",
    "infer",
    "latent_information",
    "layer_dependence",
    "mutual_information_gap",
    "ood",
    "paths",
    "pgd",
    "reweight",
    "scatter",
    "targeted_sign",
]
