"""Golden values of the upstream PyTorch models and the deterministic weights they were made with.

The arrays in `tests/**/golden` come from float64 CPU runs of the unchanged upstream model files
(hustvl/ViG @ dfb9d32, torch 2.13, timm 0.4.12). Weights and images are not stored: every array is
drawn from NumPy's PCG64, seeded by the array's name, scaled by its kind.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np

SEED = 20240617


def noise(name: str, shape: tuple[int, ...], seed: int = SEED) -> np.ndarray:
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.standard_normal(tuple(shape))


def weights(
    keys: list[tuple[str, list[int]]], multipliers: dict[str, float], seed: int = SEED
) -> dict[str, np.ndarray]:
    """The float32 state dict, upstream names."""
    state_dict = {}
    for key, shape in keys:
        base, scale = _base_and_scale(key, shape)
        for suffix, factor in multipliers.items():
            scale *= factor if key.endswith(suffix) else 1.0
        state_dict[key] = (base + scale * noise(key, shape, seed)).astype(np.float32)
    return state_dict


def images(model: str, tag: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 images, NHWC; `shape` is upstream's NCHW."""
    return np.moveaxis(noise(f"input/{model}/{tag}", shape).astype(np.float32), 1, -1)


def digest(state_dict: dict[str, np.ndarray]) -> str:
    """sha256 of names and little-endian bytes, keys sorted."""
    sha = hashlib.sha256()
    for key in sorted(state_dict):
        sha.update(key.encode() + np.ascontiguousarray(state_dict[key], "<f4").tobytes())
    return sha.hexdigest()


def load(folder: Path, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The JSON description and the arrays of one golden case."""
    with np.load(folder / f"{name}.npz") as arrays:
        return json.loads((folder / f"{name}.json").read_text()), dict(arrays)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected magnitude; NaN counts as infinite."""
    error = np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))
    return float(error) if np.isfinite(error) else float("inf")


def _base_and_scale(key: str, shape: list[int]) -> tuple[float, float]:
    if key == "pos_embed":
        return 0.0, 0.2
    if len(shape) == 1:
        if key.endswith("gk_proj.1.bias"):
            return 0.0, 1.0
        return (0.0, 0.1) if key.endswith(".bias") else (1.0, 0.1)
    if key.endswith("in_proj.0.weight"):
        return 0.0, 0.3
    return 0.0, float(np.prod(shape[1:]) ** -0.5)
