"""Augmentations of pixels by name, for `config.data.augmentations`."""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, PRNGKeyArray, UInt8

from vig_jax.errors import ConfigError
from vig_jax.text import did_you_mean

Augmentation = Callable[[PRNGKeyArray, UInt8[Array, "B H W 3"]], UInt8[Array, "B H W 3"]]

_AUGMENTATIONS: dict[str, Augmentation] = {}
_STREAM = 1 << 16  # separates the draws from those of the task, which splits the same key


def register_augmentation(name: str, augmentation: Augmentation) -> None:
    """Makes an augmentation available in `config.data.augmentations`.

    Args:
        name: not in use yet.
        augmentation: changes the pixels of training images, but neither their size nor where things
            are. Takes a key that drives all draws, and uint8 images [B, H, W, 3]; returns images of
            the same shape and dtype. It is jitted.

    Raises:
        ConfigError: the name is in use.
    """
    if name in _AUGMENTATIONS:
        raise ConfigError(f"{name!r} is the name of an augmentation already: choose another one")
    _AUGMENTATIONS[name] = augmentation


def check_augmentations(names: Sequence[str]) -> None:
    """Checks that all names of `config.data.augmentations` are registered.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if name not in _AUGMENTATIONS:
            hint = did_you_mean(name, _AUGMENTATIONS)
            raise ConfigError(
                f"config.data.augmentations: {name!r} is not registered by a plugin; {hint}"
            )


def apply_augmentations(
    key: PRNGKeyArray, images: UInt8[Array, "B H W 3"], names: Sequence[str]
) -> UInt8[Array, "B H W 3"]:
    """Applies registered augmentations one after the other.

    Args:
        key: drives all draws.
        images: any size.
        names: in their order.

    Raises:
        ConfigError: a name is not registered, or an augmentation returns another shape or dtype.
    """
    check_augmentations(names)
    for position, name in enumerate(names):
        changed = _AUGMENTATIONS[name](jax.random.fold_in(key, _STREAM + position), images)
        if (changed.shape, changed.dtype) != (images.shape, images.dtype):
            raise ConfigError(
                f"the augmentation {name!r} returns {changed.dtype}{list(changed.shape)}; it must "
                f"keep {images.dtype}{list(images.shape)}"
            )
        images = changed
    return images
