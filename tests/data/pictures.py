"""Pictures that the tests make up."""

import io

import numpy as np
from PIL import Image


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colour with some grain, uint8 [height, width, 3]; every seed another picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = rng.uniform(5, 40, (3, 2))
    phases = rng.uniform(0, 6, (3, 2))
    channels = [
        np.sin(x / waves[c, 0] + phases[c, 0]) + np.cos(y / waves[c, 1] + phases[c, 1])
        for c in range(3)
    ]
    image = 127 + 55 * np.stack(channels, axis=2) + rng.normal(0, 4, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "JPEG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
