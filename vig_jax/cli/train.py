"""Trains a model: the same flags as `train.py`."""

from vig_jax.train.launch import main

__all__ = ["main"]
