"""Golden values of semantic segmentation: numbers that mmsegmentation computed.

`tests/golden_seg/README.md` says how they were made. Tests take sizes, cases and draws from the
folder's index alone, so `pytest --golden-seg DIR` runs them on another folder of this structure.
"""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DEFAULT = Path(__file__).parent / "golden_seg"
_folder = DEFAULT


class Golden(NamedTuple):
    """One file of the folder.

    Attributes:
        facts: its entry in the index: sizes, cases and draws.
        arrays: its arrays by name, in torch's layout.
    """

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """Returns the arrays whose names begin with `prefix`, without it."""
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}


def use(folder: Path) -> None:
    """Sets the folder that `load` reads; `tests/conftest.py` calls it before collection."""
    global _folder
    _folder = folder


@functools.cache
def _index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "index.json").read_text())["files"]


@functools.cache
def _load(folder: Path, name: str) -> Golden:
    with np.load(folder / f"{name}.npz") as arrays:
        return Golden(_index(folder)[f"{name}.npz"], dict(arrays))


def facts(name: str) -> dict[str, Any]:
    """Returns the index's entry of NAME.npz, for parametrising tests."""
    return _index(_folder)[f"{name}.npz"]


def load(name: str) -> Golden:
    """Returns what NAME.npz holds. The same objects at each call: do not write to them."""
    return _load(_folder, name)


def load_json(name: str) -> Any:
    """Returns the content of NAME.json."""
    return json.loads((_folder / f"{name}.json").read_text())


def last(x: np.ndarray) -> np.ndarray:
    """Returns maps [B, C, h, w] or [C, h, w] with the channels last."""
    return np.moveaxis(x, -3, -1)


def hwio(kernel: np.ndarray) -> np.ndarray:
    """Returns the kernel of a convolution, torch's [out, in, kh, kw], as [kh, kw, in, out]."""
    return np.transpose(kernel, (2, 3, 1, 0))


def tree(arrays: dict[str, np.ndarray], dtype: Any) -> dict[str, Any]:
    """Returns parameters, gradients or statistics as nested dictionaries of this project's names.

    Args:
        arrays: by mmsegmentation's names, such as those of `Golden.below("param/")`.
        dtype: dtype of the result.
    """
    result: dict[str, Any] = {}
    for name, x in arrays.items():
        name = re.sub(r"(psp_modules\.\d+)\.1\.", r"\1.", name)
        *path, kind = re.sub(r"\.(\d+)", r"_\1", name).split(".")
        if kind == "weight":
            kind = "kernel" if x.ndim > 1 else "scale"
        if kind == "kernel":
            deconv = path[-1].startswith("upsample")
            x = np.transpose(x, (0, 2, 3, 1)) if deconv else hwio(x)
            x = x[0, 0] if path[-1] == "conv_seg" else x
        at = result
        for part in path:
            at = at.setdefault(part, {})
        at[kind.removeprefix("running_")] = x.astype(dtype)
    return result


def variables(golden: Golden, dtype: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the variables whose arrays are called param/PREFIX* and buffer/PREFIX*."""
    return {
        "params": tree(golden.below(f"param/{prefix}"), dtype),
        "batch_stats": tree(golden.below(f"buffer/{prefix}"), dtype),
    }


def relative_error(actual: Any, expected: np.ndarray, floor: float = 0.0) -> float:
    """Returns the largest difference over the largest expected magnitude; NaN is infinite.

    Args:
        actual: an array of the shape of `expected`.
        expected: the golden values.
        floor: the least magnitude to divide by, for values that are zero except for rounding.
    """
    actual = np.asarray(actual, np.float64)
    assert actual.shape == np.shape(expected), (actual.shape, np.shape(expected))
    difference = float(np.max(np.abs(actual - expected), initial=0.0))
    scale = float(np.max(np.abs(expected), initial=floor))
    if difference == 0.0:
        return 0.0
    return difference / scale if scale and not np.isnan(difference) else float("inf")


def numbered(arrays: dict[str, np.ndarray], prefix: str) -> Iterator[np.ndarray]:
    """Yields the arrays called PREFIX0, PREFIX1, and so on."""
    i = 0
    while f"{prefix}{i}" in arrays:
        yield arrays[f"{prefix}{i}"]
        i += 1
