"""RoIAlign: features of boxes, sampled bilinearly from a pyramid of maps."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vig_jax.ops.boxes import area, wide

# What each library adds to the side of a box over 56 pixels, and multiplies it by.
_LEVEL_RULES = {"mm": (1e-6, 1.0), "d2": (4e-8, 1.0), "tv": (0.0, 2.0**1e-6)}


def box_levels(boxes: Float[Array, "*N 4"], levels: int = 4, rule: str = "mm") -> Int[Array, "*N"]:
    """Returns the level that a box is pooled from: 0 below 112 pixels, 1 below 224, and so on.

    Args:
        boxes: their side is the root of their area.
        levels: number of levels.
        rule: which boxes just below a limit belong to the next level: those of mmdet ("mm"),
            detectron2 ("d2") or torchvision ("tv").
    """
    summand, factor = _LEVEL_RULES[rule]
    side = jnp.sqrt(jnp.maximum(area(wide(boxes)), 0)) / 56 * factor + summand
    limits = jnp.asarray([2.0**k for k in range(1, levels)], side.dtype)
    return jnp.sum(side[..., None] >= limits, -1, dtype=jnp.int32)


class Maps(NamedTuple):
    """The map of each RoI, in a table of the positions of all maps.

    Attributes:
        start: row of the table with its first position.
        height: rows of the map.
        width: columns of the map.
        level: its number, for `backward="dense"`.
        step: positions of the table from one row of the map to the next; None: `width`.
    """

    start: Int[Array, " R"]
    height: Int[Array, " R"]
    width: Int[Array, " R"]
    level: Int[Array, " R"]
    step: Int[Array, " R"] | None = None


class Grid(NamedTuple):
    """The samples of RoIs: two neighbours per sample and axis, S of them per bin.

    Attributes:
        rows: rows of the map.
        row_weights: their weights; the sum over a bin is 1, or less outside of the map.
        columns: columns of the map.
        column_weights: their weights.
        maps: the map of each RoI.
    """

    rows: Int[Array, "R h S"]
    row_weights: Float[Array, "R h S"]
    columns: Int[Array, "R w S"]
    column_weights: Float[Array, "R w S"]
    maps: Maps

    def positions(self) -> Int[Array, "R h S w S"]:
        """Returns the rows of the table that are read."""
        step = self.maps.width if self.maps.step is None else self.maps.step
        first = self.maps.start[:, None, None] + self.rows * step[:, None, None]
        return first[..., None, None] + self.columns[:, None, None]


@dataclasses.dataclass(frozen=True)
class RoIAlign:
    """Pools boxes to a fixed number of bins.

    Every bin is the mean over samples at bilinear positions. Source: "Mask R-CNN" (ICCV 2017);
    torchvision's and mmcv's `roi_align`. The samples form a separable grid, so a RoI is one gather
    from the positions of all maps and two small products. Boxes get no gradient.

    Attributes:
        size: rows and columns of bins.
        samples: samples per side of a bin. 0: the number of positions of the map that a bin spans,
            rounded up (mmdet's default), at most `most_samples`. A RoI without extent then has no
            samples and gives zeros.
        most_samples: limit for `samples=0`. The work grows with its square.
        aligned: whether positions are centres of pixels (mmdet, detectron2). False: they are
            shifted by half a pixel, and RoIs are at least one position wide (torchvision).
        rois_at_once: RoIs per image that are pooled at a time, which bounds the memory.
        backward: how the gradient of the maps is added up. "scatter": a scatter-add, the fastest on
            a CPU, where its order is fixed. On a GPU its additions are atomic and not
            deterministic. "dense": products of matrices over whole maps, deterministic everywhere;
            needs (bins x columns of the map x channels) numbers per RoI. "auto": "scatter" on a
            CPU, else "dense".
    """

    size: tuple[int, int] = (7, 7)
    samples: int = 2
    most_samples: int = 4
    aligned: bool = True
    rois_at_once: int = 64
    backward: str = "auto"

    def __post_init__(self) -> None:
        if self.backward not in ("auto", "scatter", "dense"):
            raise ValueError(f"backward={self.backward!r} must be 'auto', 'scatter' or 'dense'")

    def __call__(
        self,
        maps: Sequence[Float[Array, "B _ _ C"]],
        rois: Float[Array, "B R 4"],
        levels: Int[Array, "B R"],
        strides: Sequence[int | float],
        sizes: Int[Array, "B 2"] | None = None,
    ) -> Float[Array, "B R h w C"]:
        """Returns the pooled features, in the dtype of the maps.

        Args:
            maps: the pyramid, fine to coarse.
            rois: boxes in pixels.
            levels: the map of each RoI; see `box_levels`.
            strides: pixels per position of each map.
            sizes: height and width in pixels of the valid part of each image, the top-left one;
                each map ends there. None: nothing is padded.
        """
        shapes = [(x.shape[1], x.shape[2]) for x in maps]
        counts = [height * width for height, width in shapes]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        table = jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], 1)
        facts = jnp.asarray(list(zip(starts, *zip(*shapes, strict=True), strict=True)), jnp.int32)
        rois = wide(rois)
        rois = rois * jnp.asarray([1 / s for s in strides], rois.dtype)[levels][..., None]

        if sizes is None:
            ends = jnp.broadcast_to(facts[:, 1:], (len(rois), len(maps), 2))
        else:
            cells = [jnp.ceil(sizes / stride) for stride in strides]
            ends = jnp.maximum(jnp.stack(cells, 1), 1).astype(jnp.int32)

        def pool(
            table: jax.Array, rois: jax.Array, levels: jax.Array, ends: jax.Array
        ) -> jax.Array:
            start, _, step = facts[levels].T
            height, width = ends[levels].T
            return self.from_table(table, rois, Maps(start, height, width, levels, step), shapes)

        return jax.vmap(pool)(table, rois, levels, ends)

    def from_table(
        self,
        table: Float[Array, "P C"],
        rois: Float[Array, "R 4"],
        maps: Maps,
        shapes: Sequence[tuple[int, int]],
    ) -> Float[Array, "R h w C"]:
        """Returns the pooled features of RoIs of one image.

        Args:
            table: the positions of all maps.
            rois: boxes in positions of their maps.
            maps: the map of each RoI.
            shapes: rows and columns of the maps; `table` holds them one after the other.
        """
        grid = self._grid(jax.lax.stop_gradient(rois), maps)
        return _pool(table, grid, tuple(shapes), self)

    def _grid(self, rois: jax.Array, maps: Maps) -> Grid:
        x, x_weights = self._axis(rois[:, 0], rois[:, 2], self.size[1], maps.width)
        y, y_weights = self._axis(rois[:, 1], rois[:, 3], self.size[0], maps.height)
        return Grid(y, y_weights, x, x_weights, maps)

    def _axis(
        self, low: jax.Array, high: jax.Array, bins: int, length: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the neighbours and weights of the samples along one axis, [R, bins, 2 S]."""
        extent = high - low
        if self.aligned:
            low = low - 0.5
        else:
            extent = jnp.maximum(extent, 1)
        cell = (extent / bins)[:, None, None]
        samples = self.samples or self.most_samples
        counts = jnp.full_like(cell, samples)
        if not self.samples:
            # An extent of a whole number of positions must not become one more by rounding.
            counts = jnp.clip(jnp.ceil(cell * (1 - 1e-5)), 0, samples)
        per_sample = 1 / jnp.maximum(counts, 1)
        offset = (jnp.arange(samples) + 0.5) * per_sample  # [R, 1, S], in cells
        position = low[:, None, None] + (jnp.arange(bins)[:, None] + offset) * cell
        rounded, length = _rounded(position), length[:, None, None]
        used = (jnp.arange(samples) < counts) & (rounded >= -1) & (rounded <= length)
        first = jnp.floor(jnp.clip(rounded, 0, length - 1))
        fraction = jnp.clip(jnp.clip(position, 0, length - 1) - first, 0, 1)
        weights = jnp.stack([1 - fraction, fraction], -1) * (used * per_sample)[..., None]
        neighbour = first.astype(jnp.int32)
        neighbours = jnp.stack([neighbour, jnp.minimum(neighbour + 1, length - 1)], -1)
        shape = (len(low), bins, 2 * samples)
        return neighbours.reshape(shape), weights.reshape(shape)


def _rounded(position: jax.Array) -> jax.Array:
    """Rounds positions to fewer bits than they have.

    The compiler may compute a position twice, for the index and for the weight, with different
    rounding. At a whole number `floor` would then give two results, and the wrong pixel the whole
    weight. Fewer bits make both results the same; weights keep the bits of the position itself.
    """
    exponent, mantissa = (11, 49) if position.dtype == jnp.float64 else (8, 21)
    return jax.lax.reduce_precision(position, exponent, mantissa)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pool(table: jax.Array, grid: Grid, shapes: Any, settings: RoIAlign) -> jax.Array:
    """Pools RoIs from a table [positions, C]; returns [R, h, w, C]."""
    wide_dtype = wide(table[:0]).dtype

    def chunk(part: Grid) -> jax.Array:
        rois, height, rows = part.rows.shape
        width, columns = part.columns.shape[1:]
        values = table[part.positions()].astype(wide_dtype)
        # With seven axes, XLA's library for sums on a CPU (YNNPACK, in JAX 0.10.2) crashes.
        values = values.reshape(rois, height * rows, width, columns, -1)
        values = jnp.sum(values * part.column_weights[:, None, :, :, None], 3)
        values = values.reshape(rois, height, rows, -1)
        values = jnp.sum(values * part.row_weights[..., None], 2)
        return values.reshape(rois, height, width, -1).astype(table.dtype)

    count = len(grid.rows)
    pooled = jax.lax.map(chunk, _chunks(grid, settings.rois_at_once))
    return pooled.reshape(-1, *pooled.shape[2:])[:count]


def _pool_forward(
    table: jax.Array, grid: Grid, shapes: Any, settings: RoIAlign
) -> tuple[jax.Array, Any]:
    return _pool(table, grid, shapes, settings), (grid, table[:0])


def _pool_backward(
    shapes: Any, settings: RoIAlign, residuals: Any, cotangent: jax.Array
) -> tuple[jax.Array, None]:
    grid, empty = residuals
    parts = _chunks((grid, cotangent), settings.rois_at_once)
    adders: dict[str, Callable[..., jax.Array]] = {"scatter": _scatter, "dense": _dense}
    if settings.backward == "auto":
        gradient = jax.lax.platform_dependent(
            parts,
            cpu=lambda x: _scatter(x, shapes),
            default=lambda x: _dense(x, shapes),
        )
    else:
        gradient = adders[settings.backward](parts, shapes)
    return gradient.astype(empty.dtype), None


def _scatter(parts: tuple[Grid, jax.Array], shapes: Any) -> jax.Array:
    """Adds the gradients of all samples to their positions; returns [positions, C]."""

    @jax.named_scope("roi_align_scatter")
    def add(total: jax.Array, part: tuple[Grid, jax.Array]) -> tuple[jax.Array, None]:
        grid, cotangent = part
        spread = wide(cotangent)[:, :, None, :, None] * grid.row_weights[..., None, None, None]
        spread = spread * grid.column_weights[:, None, None, :, :, None]
        return total.at[grid.positions()].add(spread), None

    channels = parts[1].shape[-1]
    zeros = jnp.zeros((sum(h * w for h, w in shapes), channels), wide(parts[1]).dtype)
    return jax.lax.scan(add, zeros, parts)[0]


def _dense(parts: tuple[Grid, jax.Array], shapes: Any) -> jax.Array:
    """Adds the gradients by products with the sampling matrices; returns [positions, C].

    The products have operands of the gradients' dtype, and sums in float32 or wider.
    """
    operand, dtype = parts[1].dtype, wide(parts[1]).dtype
    precision = "highest" if operand == dtype else None

    def matrix(index: jax.Array, weights: jax.Array, length: int) -> jax.Array:
        hits = index[..., None] == jnp.arange(length)
        values = jnp.sum(jnp.where(hits, weights[..., None], 0), -2)  # [R, bins, length]
        return values.astype(operand)

    @jax.named_scope("roi_align_dense")
    def add(total: list[jax.Array], part: tuple[Grid, jax.Array]) -> tuple[list[jax.Array], None]:
        grid, cotangent = part
        for level, (height, width) in enumerate(shapes):
            here = (grid.maps.level == level)[:, None, None]
            rows = matrix(grid.rows, grid.row_weights * here, height)
            columns = matrix(grid.columns, grid.column_weights * here, width)
            spread = jnp.einsum("rpw,ropc->rowc", columns, cotangent, precision=precision)
            total[level] += jnp.einsum(
                "roh,rowc->hwc", rows, spread, precision=precision, preferred_element_type=dtype
            )
        return total, None

    channels = parts[1].shape[-1]
    zeros = [jnp.zeros((*shape, channels), dtype) for shape in shapes]
    total, _ = jax.lax.scan(add, zeros, parts)
    return jnp.concatenate([x.reshape(-1, channels) for x in total])


def _chunks(tree: Any, size: int) -> Any:
    """Splits the RoIs of all arrays, [R, ...] to [chunks, rois, ...]; zeros fill the last chunk."""

    def split(x: jax.Array) -> jax.Array:
        chunks = max(1, -(-len(x) // size))
        rois = -(-len(x) // chunks)
        padding = [(0, chunks * rois - len(x))] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(chunks, rois, *x.shape[1:])

    return jax.tree.map(split, tree)


_pool.defvjp(_pool_forward, _pool_backward)
