"""The model families, the published variants by name, and the contract of a backbone."""

from vig_jax.models.backbone import Backbone, FeatureInfo, ParameterGroups
from vig_jax.models.detector import Detections, Detector, create_detector
from vig_jax.models.segmenter import Segmenter, create_segmenter
from vig_jax.models.variants import (
    create_model,
    is_published,
    list_models,
    model_settings,
    register_model,
)
from vig_jax.models.vig import ViG
from vig_jax.models.vig_h import ViGH

__all__ = [
    "Backbone",
    "Detections",
    "Detector",
    "FeatureInfo",
    "ParameterGroups",
    "Segmenter",
    "ViG",
    "ViGH",
    "create_detector",
    "create_model",
    "create_segmenter",
    "is_published",
    "list_models",
    "model_settings",
    "register_model",
]
