"""Foreign weights."""

from vig_jax.convert.load import load_weights

__all__ = ["load_weights"]
