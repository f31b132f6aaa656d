"""ELPV: 2,624 electroluminescence images of solar cells, functional or defective.

The images (300 x 300 pixels, 8-bit gray) come with the optional package `elpv-dataset`. Their
licence is CC-BY-NC-SA 4.0: not for commercial use. Source: Buerhop-Lutz et al., "A Benchmark for
Visual Identification of Defective Solar Cells in Electroluminescence Imagery", EU PVSEC 2018;
Deitsch et al., "Automatic classification of defective photovoltaic module cells in
electroluminescence images", Solar Energy 2019; https://github.com/zae-bayern/elpv-dataset.

An expert gave each cell a probability of being defective: 0, 1/3, 2/3 or 1. Here a cell is
defective from 1/2 on. As in the paper, a quarter is held out (656 cells), stratified by probability
and kind of cell (mono- or polycrystalline). The choice of cells is our own, so results compare only
roughly with published ones.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np

from vig_jax.data.dataset import ClassificationBase, Example
from vig_jax.files import read_regular_file

PIP_COMMAND = "pip install elpv-dataset"
CLASS_NAMES = ("functional", "defective")
DEFECTIVE_FROM = 0.5  # probability
SPLIT_SEED = 2019
_HELD_OUT = 4  # one cell in four

_LABELS = "labels.csv"


class ElpvDataset(ClassificationBase):
    """A split of the cells, as bytes of PNG files.

    Args:
        folder: from `find_folder`.
        split: "train" or "eval".
    """

    def __init__(self, folder: Path, split: Literal["train", "eval"]):
        super().__init__(f"elpv {split}", CLASS_NAMES)
        rows = [line.split() for line in (folder / _LABELS).read_text().splitlines() if line]
        strata = [" ".join(row[1:]) for row in rows]
        train, held_out = split_positions(strata)
        self._folder, self._split = folder, split
        positions = train if split == "train" else held_out
        self._rows = [" ".join(rows[i]) for i in positions]
        self._names = [rows[i][0] for i in positions]
        probabilities = np.array([float(rows[i][1]) for i in positions])
        self._labels = (probabilities >= DEFECTIVE_FROM).astype(np.int32)

    def __getitem__(self, index: int) -> Example:
        image = read_regular_file(self._folder / self._names[index])
        return {"image": image, "label": int(self._labels[index])}

    def name_of(self, index: int) -> str:
        """Returns the path in the package's data, e.g. "images/cell0001.png"."""
        return self._names[index]

    def digest(self) -> str:
        """Hashes names, probabilities, kinds and sizes of the files."""
        digest = hashlib.sha256(f"elpv {self._split}".encode())
        for row, name in zip(self._rows, self._names, strict=True):
            digest.update(f"\n{row} {(self._folder / name).stat().st_size}".encode())
        return digest.hexdigest()


def find_folder() -> Path | None:
    """Returns the installed package's folder of labels and images, or None if it is not installed.

    The package is only located, not imported: its reader would decode all images at once.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "data"
    return folder if (folder / _LABELS).is_file() else None


def split_positions(strata: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the training cells and of the held-out cells, always the same.

    Args:
        strata: the group of every cell; both parts get the same fraction of each group.

    Returns:
        Two ascending int64 arrays that partition `range(n)`. The second has a quarter of all cells,
        rounded up, and a quarter of every stratum, plus or minus one.
    """
    rng = np.random.RandomState(SPLIT_SEED)  # a numpy stream that is frozen (NEP 19)
    mixed = rng.permutation(len(strata))
    by_stratum = mixed[np.argsort(np.array(strata)[mixed], kind="stable")]
    held_out = np.sort(by_stratum[::_HELD_OUT])
    return np.setdiff1d(by_stratum, held_out), held_out
