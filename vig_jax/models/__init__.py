"""Blocks stacked into models."""

from vig_jax.models.variants import create_model, list_models
from vig_jax.models.vig import FeatureInfo, ViG

__all__ = ["FeatureInfo", "ViG", "create_model", "list_models"]
