"""ViG: gated linear attention for images, in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vig_jax.inference.export import export
    from vig_jax.inference.hub import from_pretrained, save_pretrained
    from vig_jax.inference.packing import packed_predictor
    from vig_jax.inference.predictor import predictor
    from vig_jax.inference.transform import create_transform, data_config
    from vig_jax.models import create_detector, create_model, create_segmenter, list_models
    from vig_jax.weights import load_weights

__all__ = [
    "create_detector",
    "create_model",
    "create_segmenter",
    "create_transform",
    "data_config",
    "export",
    "from_pretrained",
    "list_models",
    "load_weights",
    "packed_predictor",
    "predictor",
    "save_pretrained",
]

_HOMES = {
    "create_detector": "vig_jax.models",
    "create_model": "vig_jax.models",
    "create_segmenter": "vig_jax.models",
    "create_transform": "vig_jax.inference.transform",
    "data_config": "vig_jax.inference.transform",
    "export": "vig_jax.inference.export",
    "from_pretrained": "vig_jax.inference.hub",
    "list_models": "vig_jax.models",
    "load_weights": "vig_jax.weights",
    "packed_predictor": "vig_jax.inference.packing",
    "predictor": "vig_jax.inference.predictor",
    "save_pretrained": "vig_jax.inference.hub",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: processes that only make batches need no models and no JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vig_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
