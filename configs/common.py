"""Every setting of a run, with the values of the ImageNet recipe. Other pages start from it.

The settings, with their units and meaning, are in `vig_jax/config/recipes.py`.
"""

from ml_collections import ConfigDict

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    return recipes.imagenet()
