"""Augmentation on the device, inside the training step."""

from vig_jax.augment.registry import register_augmentation

__all__ = ["register_augmentation"]
