"""Weights on disk: names, layouts and file formats."""

from vig_jax.weights.load import load_weights

__all__ = ["load_weights"]
