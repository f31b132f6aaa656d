"""Files of results: named arrays, written in one step and checked when they are read."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vig_jax.errors import ReportError
from vig_jax.files import write_atomically

Result = TypeVar("Result")


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays, and texts or sequences of texts, to an .npz file in one step."""
    with write_atomically(path) as draft:
        np.savez_compressed(draft, **arrays)


def load_arrays(path: Path, make: Callable[[dict[str, np.ndarray]], Result]) -> Result:
    """Returns what `make` makes of the arrays of a file.

    Raises:
        FileNotFoundError: there is none.
        ReportError: the file is damaged.
    """
    contents = io.BytesIO(path.read_bytes())
    try:
        with np.load(contents) as stored:
            return make(dict(stored))
    except Exception as error:  # zipfile, zlib, NumPy: each has its own
        raise ReportError(f"{path} is damaged ({error}): remove it") from error


def texts(stored: np.ndarray) -> tuple[str, ...]:
    """Returns a stored sequence of texts."""
    return tuple(str(text) for text in stored)
