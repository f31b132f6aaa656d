"""Settings of a run: their types (`schema`), values (`recipes`) and parsing (`parse`)."""

from vig_jax.config.parse import parse, to_dict, unknown_settings
from vig_jax.config.plugins import import_plugins
from vig_jax.config.schema import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)
from vig_jax.config.tasks import DetectionConfig, SegmentationConfig

__all__ = [
    "DataConfig",
    "DetectionConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "SegmentationConfig",
    "TaskConfig",
    "TrainConfig",
    "import_plugins",
    "parse",
    "to_dict",
    "unknown_settings",
]
