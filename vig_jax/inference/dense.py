"""Results and reading of image files, for the predictors of segmentation and detection."""

import abc
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from vig_jax.config import DataConfig
from vig_jax.data.preprocess.decode import load_checked
from vig_jax.files import read_regular_file
from vig_jax.text import printable


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DensePrediction(abc.ABC):
    """The prediction for one file.

    Attributes:
        path: the file.
        damage: why the file is damaged, although it could be read, or None.
        error: the reason why the file could not be read, or None.
        top: number of classes or objects for the console.
    """

    nothing: ClassVar[str] = ""  # for the console, if nothing was found

    path: Path
    damage: str | None = None
    error: str | None = None
    top: int = 5

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """Returns what was found, as JSON values."""

    @abc.abstractmethod
    def phrases(self) -> list[str]:
        """Returns a phrase for each thing that was found, the most important first."""

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary of JSON values."""
        if self.error:
            return {"image": str(self.path), "error": self.error}
        damage = {"damage": self.damage} if self.damage else {}
        return {"image": str(self.path)} | self.facts() | damage

    def __str__(self) -> str:
        """Returns a line for the console."""
        if self.error:
            return printable(f"{self.path}: skipped, {self.error}")
        phrases = self.phrases()
        rest = len(phrases) - self.top
        more = f"  and {rest} more" if rest > 0 else ""
        note = f" ({self.damage})" if self.damage else ""
        text = "  ".join(phrases[: self.top]) or self.nothing
        return printable(f"{self.path}: {text}{more}{note}")


def read_image(file: Path, data: DataConfig) -> tuple[UInt8[np.ndarray, "H W 3"], str | None]:
    """Returns the pixels of a file, and why it is damaged, or None.

    Raises:
        OSError: the file cannot be read.
        UndecodableImageError: it is not an image, or a damaged one that is to be left out.
    """
    image, damage = load_checked(read_regular_file(file), data)
    return np.asarray(image), damage
