"""Golden values of Mask R-CNN: numbers that mmdet, torchvision, detectron2, pycocotools computed.

`tests/golden_det/README.md` says how they were made. Tests take sizes, cases and settings from the
folder alone, so `pytest --golden-det DIR` runs them on another folder of this structure.
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden_seg import Golden

DEFAULT = Path(__file__).parent / "golden_det"
_folder = DEFAULT


def use(folder: Path) -> None:
    """Sets the folder that `load` reads; `tests/conftest.py` calls it before collection."""
    global _folder
    _folder = folder


@functools.cache
def _facts(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


@functools.cache
def _load(folder: Path, name: str) -> Golden:
    with np.load(folder / f"{name}.npz") as arrays:
        return Golden(_facts(folder, name), dict(arrays))


def facts(name: str) -> Any:
    """Returns the content of NAME.json, for parametrising tests."""
    return _facts(_folder, name)


def load(name: str) -> Golden:
    """Returns what NAME.json and NAME.npz hold. The same objects at each call: do not write."""
    return _load(_folder, name)


def unpack(bits: np.ndarray, width: int) -> np.ndarray:
    """Returns packed masks [..., rows, bytes] as booleans [..., rows, width]."""
    return np.unpackbits(bits, axis=-1)[..., :width].astype(bool)
