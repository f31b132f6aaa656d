"""Weights on disk: names, layouts and file formats."""

from vig_jax.convert.errors import WeightsError
from vig_jax.convert.load import load_weights

__all__ = ["WeightsError", "load_weights"]
