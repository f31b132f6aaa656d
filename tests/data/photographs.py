"""Images for the tests: windows of the photographs in `photos/`."""

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image


@functools.cache
def _photographs() -> list[Image.Image]:
    files = sorted((Path(__file__).parent / "photos").glob("*.jpg"))
    return [Image.open(file).convert("RGB") for file in files]


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A window of a photograph, uint8 [height, width, 3]; each seed gives another one."""
    rng = np.random.default_rng(seed)
    whole = _photographs()[seed % len(_photographs())]
    largest = min(whole.width / width, whole.height / height)
    w, h = (rng.uniform(0.5, 1) * largest * side for side in (width, height))
    x, y = rng.uniform(0, whole.width - w), rng.uniform(0, whole.height - h)
    window = whole.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
    return np.asarray(window)


def encoded(image: Image.Image | np.ndarray, kind: str = "JPEG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
