"""Scenes composed of the products of Fashion-MNIST, for segmentation and detection.

The scenes are made up, and only their products are photographs: two to six products of the embedded
data set (`vig_jax.data.datasets.fashion_mnist`), tinted, flipped, scaled and overlapping, lie on a
background of color gradients, stripes, bars, blobs and crops of products. Training scenes contain
only training images, and evaluation scenes only held-out ones.

A scene is a function of the split and its index. It is the same on every machine and with every
version of NumPy: the random numbers are the raw output of Philox, and all arithmetic is exact.
"""

import dataclasses
import functools
import hashlib

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from vig_jax.data.dataset import DatasetInfo, Example, GroundTruth, Split
from vig_jax.data.datasets import fashion_mnist
from vig_jax.data.datasets.instances import ground_truth, instance_metadata, instances

CLASS_NAMES = ("background", *fashion_mnist.CLASS_NAMES)
# Black, and the ten colors of Paul Tol's scheme "muted", made for color-blind readers
# (https://personal.sron.nl/~pault/).
PALETTE = (
    *((0, 0, 0), (51, 34, 136), (136, 204, 238), (68, 170, 153), (17, 119, 51), (153, 153, 51)),
    *((221, 204, 119), (204, 102, 119), (136, 34, 85), (170, 68, 153), (221, 221, 221)),
)
LENGTHS = {"train": 4000, "eval": 500}
SIDE = 64
RECIPE = 1
"""Number of the recipe that composes the scenes, part of the fingerprint."""

PRODUCTS = (2, 6)
PRODUCT_SIDES = (0.6 * 28 / 64, 1.6 * 28 / 64)  # of the photograph, relative to the scene
DARKEST = 2  # gray value; the empty ground around a product has values up to here
SILHOUETTE = 0.4  # a pixel is of the product if so much of it is covered
SMALLEST_VISIBLE = 12  # pixels of an instance
LEAST_VISIBLE = 0.15  # of its silhouette
_DISTRACTORS = (4, 9)
_DRAWS = 512
_UNIT = 256  # sum of the weights of a resize along one axis


class FashionScenesDataset:
    """A split of the scenes.

    `example["mask"]` has 0 for the background and 1 to 10 for the products. An object with few
    visible pixels is in the mask, but not among the instances: see `SMALLEST_VISIBLE` and
    `LEAST_VISIBLE`. The labels of instances count from 0 and have no background.

    Args:
        split: "train" or "eval".
        side: of the square scenes, pixels. All parts are scaled with it.
        length: number of scenes; None: that of `LENGTHS`.
    """

    def __init__(self, split: Split, side: int = SIDE, length: int | None = None):
        self._split: Split = split
        self._side = side
        self._length = LENGTHS[split] if length is None else length

    @functools.cached_property
    def info(self) -> DatasetInfo:
        """Name, fingerprint, `class_names` and `palette`, the colors of the classes."""
        digest = hashlib.sha256(
            f"fashion_scenes {RECIPE} {self._split} {self._side} {self._length}".encode()
        )
        digest.update(_photographs(self._split).images.tobytes())
        metadata = {"class_names": CLASS_NAMES, "palette": [list(color) for color in PALETTE]}
        metadata |= instance_metadata(CLASS_NAMES[1:], PALETTE[1:], range(1, len(CLASS_NAMES)))
        return DatasetInfo(f"fashion_scenes {self._split}", digest.hexdigest(), metadata)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return {
            **_compose(self._split, index, self._side),
            "size": (self._side,) * 2,
            "image_id": index,
        }

    def name_of(self, index: int) -> str:
        """Returns an invented path."""
        return f"fashion_scenes/{self._split}/{index}"

    def sizes(self) -> Int32[np.ndarray, "n 2"]:
        """Returns width and height of every scene, pixels."""
        return np.full((len(self), 2), self._side, np.int32)

    def ground_truth(self, index: int) -> GroundTruth:
        """Returns the instances of example `index`."""
        return ground_truth(self[index])


@dataclasses.dataclass(frozen=True)
class _Photographs:
    """The photographs that the scenes of a split may contain."""

    images: UInt8[np.ndarray, "n 28 28"]
    silhouettes: UInt8[np.ndarray, "n 28 28"]  # 1 at the product
    labels: Int32[np.ndarray, "n"]


@functools.cache
def _photographs(split: Split) -> _Photographs:
    images, labels = fashion_mnist.read_files()
    train, held_out = fashion_mnist.split_positions(labels)
    positions = train if split == "train" else held_out
    images = images[positions]
    return _Photographs(images, _silhouettes(images), labels[positions])


def _silhouettes(images: UInt8[np.ndarray, "n 28 28"]) -> UInt8[np.ndarray, "n 28 28"]:
    """Returns 1 where a photograph shows the product, without stray pixels and tiny holes."""
    lit = (images > DARKEST).astype(np.uint8)
    padded = np.pad(lit, ((0, 0), (1, 1), (1, 1)))
    around = sum((padded[:, y : y + 28, x : x + 28] for y in range(3) for x in range(3)), -lit)
    return np.where(lit, around >= 3, around >= 7).astype(np.uint8)


class _Draws:
    """Random numbers of one scene, in the order in which they are asked for."""

    def __init__(self, split: Split, index: int, noise_bytes: int):
        key = np.array([index, split == "eval"], np.uint64)
        words = np.random.Philox(key=key).random_raw(_DRAWS + -(-noise_bytes // 8))
        self._uniform = iter(((words[:_DRAWS] >> np.uint64(11)) * 2.0**-53).tolist())
        self.noise = words[_DRAWS:].astype("<u8").view(np.uint8)[:noise_bytes]

    def uniform(self, low: float | int = 0, high: float | int = 1) -> float:
        return low + (high - low) * next(self._uniform)

    def integer(self, low: int, high: int) -> int:
        """Draws from low to high, both included."""
        return low + int((high - low + 1) * next(self._uniform))

    def color(self) -> tuple[int, int, int]:
        """Draws red, green and blue, from gray to vivid."""
        bright, vivid = self.uniform(130, 256), self.uniform(0, 0.7)
        red, green, blue = (int(bright * (1 - vivid * self.uniform())) for _ in range(3))
        return red, green, blue


def _compose(split: Split, index: int, side: int) -> Example:
    draws = _Draws(split, index, 3 * side * side)
    photographs = _photographs(split)
    canvas = _background(draws, side)
    for _ in range(draws.integer(*_DISTRACTORS)):
        _paint_distractor(canvas, photographs, draws)
    count = draws.integer(*PRODUCTS)
    object_map = np.zeros((side, side), np.uint8)
    labels, areas = np.zeros(count, np.int32), np.zeros(count, np.int64)
    for i in range(count):
        labels[i], areas[i] = _paint_product(canvas, object_map, i + 1, photographs, draws)
    _add_noise(canvas, draws)
    visible = np.bincount(object_map.ravel(), minlength=count + 1)[1:]
    kept = np.flatnonzero((visible >= SMALLEST_VISIBLE) & (visible >= LEAST_VISIBLE * areas))
    return {
        "image": np.ascontiguousarray(canvas.transpose(1, 2, 0)),
        "mask": np.concatenate([[0], labels + 1]).astype(np.uint8)[object_map],
        **instances(object_map, kept + 1, labels[kept]),
    }


def _background(draws: _Draws, side: int) -> UInt8[np.ndarray, "3 s s"]:
    """Draws a smooth gradient of colors with stripes over it."""
    knots, span = draws.integer(2, 5), draws.uniform(20, 200)
    base = [draws.uniform(0, 256 - span) for _ in range(3)]
    grid = [[int(c + span * draws.uniform()) for _ in range(knots * knots)] for c in base]
    colors = _resize(np.array(grid, np.float32).reshape(3, knots, knots), side, side) / _UNIT**2
    strength = draws.uniform(0, 50) * draws.integer(0, 1)
    along, across = (int(draws.uniform(-80, 80) * SIDE / side) for _ in range(2))
    steps = np.arange(side, dtype=np.int32)
    stripes = ((steps[:, None] * along + steps * across) >> 8) & 1
    return np.minimum(colors + np.float32(int(strength)) * stripes, 255).astype(np.uint8)


def _paint_distractor(
    canvas: UInt8[np.ndarray, "3 s s"], photographs: _Photographs, draws: _Draws
) -> None:
    """Paints a bar or a blob of one color, or filled with a crop from within a photograph."""
    side = canvas.shape[1]
    height, width = (int(draws.uniform(0.08, 0.5) * side) + 2 for _ in range(2))
    top, left = (int(draws.uniform(-0.2, 0.95) * side) for _ in range(2))
    rows = np.arange(1 - height, height, 2, dtype=np.int64)[:, None]  # twice, from the center
    columns = np.arange(1 - width, width, 2, dtype=np.int64)
    if draws.integer(0, 1):
        shape = (rows * width) ** 2 + (columns * height) ** 2 <= (height * width) ** 2
    else:
        slope, thickness = draws.uniform(-1, 1), draws.uniform(0.1, 0.5) * width
        shape = np.abs(columns + int(256 * slope) * rows // 256) <= thickness
    if draws.integer(0, 2):
        crop_side = draws.integer(8, 14)
        y, x = (draws.integer(5, 23 - crop_side) for _ in range(2))
        photograph = photographs.images[draws.integer(0, len(photographs.images) - 1)]
        crop = photograph[y : y + crop_side, x : x + crop_side].astype(np.float32)
        gray = (_resize(crop, height, width) / _UNIT**2).astype(np.uint8)
        pixels = _tints(draws).take(gray, axis=1)
    else:
        pixels = np.broadcast_to(
            np.array(draws.color(), np.uint8)[:, None, None], (3, *shape.shape)
        )
    _paste(canvas, pixels, shape, top, left)


def _paint_product(
    canvas: UInt8[np.ndarray, "3 s s"],
    object_map: UInt8[np.ndarray, "s s"],
    number: int,
    photographs: _Photographs,
    draws: _Draws,
) -> tuple[int, int]:
    """Paints a product over all that is there; returns its label and the pixels it has in all."""
    side = canvas.shape[1]
    chosen = draws.integer(0, len(photographs.images) - 1)
    size = max(2, round(draws.uniform(*PRODUCT_SIDES) * side))
    top, left = (int(draws.uniform(0.1, 0.9) * side - size / 2) for _ in range(2))
    silhouette = photographs.silhouettes[chosen]
    pair = np.stack([photographs.images[chosen] * silhouette, silhouette])
    if draws.integer(0, 1):
        pair = pair[:, :, ::-1]
    # The color of a pixel at the border is that of the part that the product covers.
    color, covered = _resize(pair.astype(np.float32), size, size)
    silhouette = covered >= SILHOUETTE * _UNIT**2
    gray = (color / np.maximum(covered, 1)).astype(np.uint8)
    _paste(canvas, _tints(draws).take(gray, axis=1), silhouette, top, left)
    _paste(object_map, np.broadcast_to(np.uint8(number), gray.shape), silhouette, top, left)
    return int(photographs.labels[chosen]), int(silhouette.sum())


def _tints(draws: _Draws) -> UInt8[np.ndarray, "3 256"]:
    """Draws a table from gray to colors, with random darkest and brightest colors."""
    dark = draws.uniform(0, 0.4)
    high = np.array(draws.color(), np.int32)[:, None]
    low = (high * int(256 * dark)) >> 8
    return ((low * 255 + (high - low) * np.arange(256, dtype=np.int32)) // 255).astype(np.uint8)


def _paste(
    target: UInt8[np.ndarray, "*c s s"],
    pixels: UInt8[np.ndarray, "*c h w"],
    shape: np.ndarray,
    top: int,
    left: int,
) -> None:
    """Copies the pixels of a shape into the target, where they are inside of it."""
    side = target.shape[-1]
    y, x = max(0, -top), max(0, -left)
    here = (slice(y, max(y, side - top)), slice(x, max(x, side - left)))
    part = shape[here]
    there = (..., slice(top + y, top + y + len(part)), slice(left + x, left + x + part.shape[1]))
    np.copyto(target[there], pixels[(..., *here)], where=part)


def _add_noise(canvas: UInt8[np.ndarray, "3 s s"], draws: _Draws) -> None:
    """Adds noise to every pixel, products included, of a strength that is drawn."""
    noise = draws.noise.reshape(canvas.shape).astype(np.int16) - 128
    noise *= draws.integer(0, 20)
    noise >>= 7
    np.clip(canvas + noise, 0, 255, out=canvas, casting="unsafe")


def _resize(
    images: Float32[np.ndarray, "*c h w"], height: int, width: int
) -> Float32[np.ndarray, "*c height width"]:
    """Resizes bilinearly, with the triangle widened where it shrinks; returns _UNIT**2 times.

    Weights and pixels are whole numbers, and no sum exceeds 2**24, so float32 is exact: the result
    does not depend on the order in which a machine adds.
    """
    return _weights(images.shape[-2], height) @ images @ _weights(images.shape[-1], width).T


@functools.cache
def _weights(old: int, new: int) -> Float32[np.ndarray, "new old"]:
    """Returns the weights of a resize along one axis, whole numbers of sum _UNIT."""
    scale = old / new
    centers = (np.arange(new) + 0.5) * scale - 0.5
    distances = np.abs(centers[:, None] - np.arange(old)) / max(1.0, scale)
    weights = np.maximum(0, 1 - distances)
    weights = np.floor(_UNIT * weights / weights.sum(axis=1, keepdims=True))
    weights[np.arange(new), weights.argmax(axis=1)] += _UNIT - weights.sum(axis=1)
    return weights.astype(np.float32)
