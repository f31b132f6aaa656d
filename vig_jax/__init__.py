"""ViG: gated linear attention for images, in JAX and Flax."""

from vig_jax.convert import load_weights
from vig_jax.models import create_model, list_models, predictor

__all__ = ["create_model", "list_models", "load_weights", "predictor"]
