"""Blocks stacked into models."""

from vig_jax.models.backbone import FeatureInfo
from vig_jax.models.variants import create_model, list_models, model_settings
from vig_jax.models.vig import ViG
from vig_jax.models.vig_h import ViGH

__all__ = [
    "FeatureInfo",
    "ViG",
    "ViGH",
    "create_model",
    "list_models",
    "model_settings",
]
