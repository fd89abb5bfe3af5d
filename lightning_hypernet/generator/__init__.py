"""Generator: latents to weights."""

from __future__ import annotations

from lightning_hypernet.generator.config import GeneratorConfig
from lightning_hypernet.generator.extractors import Extractor, MatrixExtractor, MLPExtractor
from lightning_hypernet.generator.generator import Generator
from lightning_hypernet.generator.latents import Prior
from lightning_hypernet.generator.weight_generators import WeightGenerator

__all__ = ["Extractor", "Generator", "GeneratorConfig", "MLPExtractor", "MatrixExtractor", "Prior", "WeightGenerator"]
