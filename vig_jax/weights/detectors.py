"""Recognises the state dicts of detectors."""

from collections.abc import Collection

from vig_jax.weights import mmdet, torchvision
from vig_jax.weights.detector_names import DetectorNames


def names_of(names: Collection[str]) -> DetectorNames | None:
    """Returns whose names a detector's state dict has; None if it is not that of a detector."""
    for project in (mmdet.NAMES, torchvision.NAMES):
        if any(name.startswith(project.heads) for name in names):
            return project
    return None


def is_detector(names: Collection[str]) -> bool:
    """Returns whether a state dict with these names is that of a detector."""
    return names_of(names) is not None
