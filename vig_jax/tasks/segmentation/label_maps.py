"""Label maps of whole images from a model of windows, by few programs.

A pass over images of different sizes would compile the model for each size. Here the model is one
program and sees windows of one shape. Small programs cut the windows out of the images, and make
label maps of their logits: image by image, in strips of rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped, UInt8

from vig_jax.data.preprocess.masks import IGNORED, MAX_CLASSES
from vig_jax.errors import ConfigError
from vig_jax.sharding.kernels import ROWS, WHOLE
from vig_jax.sharding.mesh import batch_sharded, present
from vig_jax.sharding.rules import with_whole_variables
from vig_jax.tasks.protocol import Batch, Variables
from vig_jax.tasks.segmentation.windows import Axis, Grid, resample, sampling, take_window

LogitsOf = Callable[[Variables, Any], Any]
"""(variables, windows [B, S, S, C]) -> logits [B, h, w, K]; h and w are any fraction of S."""
Finish = Callable[[UInt8[Array, "H W"], Mapping[str, Any]], Any]
"""(label map of an image, the image's row of the batch) -> outputs."""
_STRIP_ELEMENTS = 2**24  # logits of a strip; 64 MB in float32


class View(NamedTuple):
    """One scaled and perhaps flipped copy of the images of a batch.

    Attributes:
        image: name of the array of the canvases [B, H, W, C].
        size: name of the array of the sizes of the images on them, int32 [B, 2].
        flipped: take the mirror image.
    """

    image: str
    size: str
    flipped: bool


@dataclasses.dataclass(frozen=True)
class Inference:
    """The way from images to windows.

    Attributes:
        crop: height and width of sliding windows in pixels; None: each canvas is one window.
        stride: pixels between windows, down and along.
        scales: number of copies of different scale in a batch: `image` and `size`, or if there are
            several `image_0` and `size_0`, `image_1` and `size_1`, and so on.
        flip: use the mirror image of each as well.
    """

    crop: tuple[int, int] | None
    stride: tuple[int, int] = (1, 1)
    scales: int = 1
    flip: bool = False

    @property
    def views(self) -> list[View]:
        """The copies whose logits, or if there are several probabilities, are averaged."""
        ends = [""] if self.scales == 1 else [f"_{i}" for i in range(self.scales)]
        flips = (False, True) if self.flip else (False,)
        return [View(f"image{end}", f"size{end}", flipped) for end in ends for flipped in flips]

    def grid(self, canvas: Shaped[Array, "B H W C"]) -> Grid:
        """Returns the windows of a canvas."""
        height, width = canvas.shape[1:3]
        crop = self.crop or (height, width)
        return Grid(Axis(height, crop[0], self.stride[0]), Axis(width, crop[1], self.stride[1]))


@dataclasses.dataclass(frozen=True)
class LabelMaps:
    """A function `(variables, batch, shape) -> outputs` for images of different sizes.

    The batch has the arrays of `Inference.views`, `original` int32 [B, 2] with height and width of
    the original images, and those of `reads`. `shape` is the height and width of the label maps:
    at least those of the largest original, whose pixels are at the top left.

    Attributes:
        logits_of: the model, with the normalisation of its images; at most 254 classes.
        inference: how images become windows.
        finish: makes the outputs for one image.
        reads: the arrays of the batch that `finish` takes.
    """

    logits_of: LogitsOf
    inference: Inference
    finish: Finish = lambda labels, row: labels
    reads: tuple[str, ...] = ()

    def __call__(self, variables: Variables, batch: Batch, shape: tuple[int, int]) -> Any:
        """Returns the outputs as one program."""
        return self._run(self.logits_of, _take, self._finish_images, variables, batch, shape)

    def compiled(self, mesh: Mesh) -> Callable[[Variables, Batch, tuple[int, int]], Any]:
        """Returns the same function as several programs, for batches that are split over a mesh."""
        rows, model = batch_sharded(mesh), with_whole_variables(self.logits_of, mesh)
        return functools.partial(
            self._run,
            jax.jit(model, in_shardings=(None, rows), out_shardings=rows),
            _on_each_device(_take, mesh, (ROWS, ROWS, WHOLE)),
            _on_each_device(self._finish_images, mesh, (ROWS, ROWS)),
        )

    def _run(
        self,
        model: LogitsOf,
        take: Callable[..., Any],
        finish: Callable[..., Any],
        variables: Variables,
        batch: Batch,
        shape: tuple[int, int],
    ) -> Any:
        views = self.inference.views
        grids = tuple(self.inference.grid(batch[view.image]) for view in views)
        windows = []
        for view, grid in zip(views, grids, strict=True):
            image, size = batch[view.image], batch[view.size]
            cut = functools.partial(take, image, size, grid=grid, flipped=view.flipped)
            numbers = np.array(grid.numbers, np.int32)  # of no process: all may call with them
            windows.append(tuple(model(variables, cut(number)) for number in numbers))
        names = {view.size for view in views} | {"original", *self.reads}
        row = {name: batch[name] for name in names}
        return finish(tuple(windows), row, grids=grids, shape=shape)

    def _finish_images(
        self,
        windows: tuple[tuple[Float[Array, "B _ _ K"], ...], ...],
        rows: Mapping[str, Array],
        *,
        grids: tuple[Grid, ...],
        shape: tuple[int, int],
    ) -> Any:
        """Returns the outputs from the logits of each window of each view, image by image."""
        views = self.inference.views

        def one(image: tuple[Any, Mapping[str, Array]]) -> Any:
            windows, row = image
            samplers = [
                Sampler.of(logits, grid, row[view.size], row["original"], shape[1], view.flipped)
                for logits, grid, view in zip(windows, grids, views, strict=True)
            ]
            return self.finish(label_map(samplers, shape), row)

        return jax.lax.map(one, (windows, rows))


class Sampler(NamedTuple):
    """The logits of one view of an image, to be read at rows of the original image.

    Attributes:
        windows: logits of the grid's windows.
        columns: the weights for all columns.
        axis: the rows of windows.
        size: height of the image on the canvas.
        original: height of the original image.
    """

    windows: Float[Array, "m n h w K"]
    columns: Float[Array, "C n w"]
    axis: Axis
    size: Int[Array, ""]
    original: Int[Array, ""]

    @classmethod
    def of(
        cls,
        logits: Sequence[Float[Array, "h w K"]],
        grid: Grid,
        size: Int[Array, "2"],
        original: Int[Array, "2"],
        width: int,
        flipped: bool,
    ) -> "Sampler":
        """Returns the sampler for one image.

        Args:
            logits: of the windows in the order of `Grid.numbers`.
            grid: the windows.
            size: height and width of the image on the canvas.
            original: height and width of the original image.
            width: number of columns; those beyond the original repeat its last one.
            flipped: the windows are those of the mirror image.
        """
        size, original = jnp.maximum(size, 1), jnp.maximum(original, 1)  # rows that fill a batch
        shape = (grid.rows.count, grid.columns.count)
        windows = jnp.stack(logits).reshape(*shape, *logits[0].shape)
        columns = jnp.arange(width)
        if flipped:
            columns = original[1] - 1 - columns
        weights = sampling(grid.columns, windows.shape[3], size[1], original[1], columns)
        return cls(windows, weights, grid.rows, size[0], original[0])

    def __call__(self, rows: Int[Array, "R"]) -> Float[Array, "R C K"]:
        """Returns the logits at rows of the original image."""
        cells = self.windows.shape[2]
        weights = sampling(self.axis, cells, self.size, self.original, rows)
        return resample(self.windows, weights, self.columns)


def scores(samplers: Sequence[Sampler], rows: Int[Array, "R"]) -> Float[Array, "R C K"]:
    """Returns the logits of the only view, or the mean probabilities of several, at some rows."""
    if len(samplers) == 1:
        return samplers[0](rows)
    total = functools.reduce(jnp.add, (jax.nn.softmax(sampler(rows)) for sampler in samplers))
    return total / len(samplers)


def label_map(samplers: Sequence[Sampler], shape: tuple[int, int]) -> UInt8[Array, "H W"]:
    """Returns the class with the highest score at each pixel of an image.

    A pixel with a score that is not finite is `IGNORED`.

    Args:
        samplers: of the views.
        shape: height and width of the result.

    Raises:
        ConfigError: more than 254 classes.
    """
    height, width = shape
    classes = samplers[0].windows.shape[-1]
    if classes > MAX_CLASSES:
        raise ConfigError(
            f"the model has {classes} classes: label maps of 8 bits have at most {MAX_CLASSES}"
        )
    most = max(1, _STRIP_ELEMENTS // (width * classes))
    strip = min(height, 1 << (most.bit_length() - 1))
    count = -(-height // strip)

    def labels(rows: Int[Array, "R"]) -> UInt8[Array, "R W"]:
        found = scores(samplers, rows)
        finite = jnp.isfinite(jnp.sum(found, axis=-1))
        return jnp.where(finite, jnp.argmax(found, axis=-1), IGNORED).astype(jnp.uint8)

    strips = jax.lax.map(labels, jnp.arange(count * strip).reshape(count, strip))
    return strips.reshape(count * strip, width)[:height]


def confusion_counts(
    labels: UInt8[Array, "H W"], mask: UInt8[Array, "H W"], classes: int
) -> Int[Array, "K K"]:
    """Returns the number of pixels by true class (row) and predicted class, int32.

    Args:
        labels: predicted classes.
        mask: true classes. Pixels that are 255 in one of the two are left out.
        classes: their number K.
    """
    pairs = mask.astype(jnp.int32) * classes + labels.astype(jnp.int32)
    left_out = (mask == IGNORED) | (labels == IGNORED)
    pairs = jnp.where(left_out, classes * classes, pairs)
    counts = jnp.zeros(classes * classes, jnp.int32).at[pairs.ravel()].add(1, mode="drop")
    return counts.reshape(classes, classes)


def _take(
    images: Shaped[Array, "B H W C"],
    sizes: Int[Array, "B 2"],
    number: Int[Array | np.ndarray, "2"],
    *,
    grid: Grid,
    flipped: bool,
) -> Shaped[Array, "B h w C"]:
    """Returns one window of each image."""
    take = functools.partial(take_window, grid=grid, flipped=flipped)
    return jax.vmap(take, in_axes=(0, 0, None))(images, sizes, number)


def _on_each_device(
    function: Callable[..., Any], mesh: Mesh, in_specs: tuple[PartitionSpec, ...]
) -> Callable[..., Any]:
    """Compiles a function that each device calls with its rows; keyword arguments are static."""

    @functools.cache
    def program(**static: Any) -> Callable[..., Any]:
        run = functools.partial(function, **static)
        specs = tuple(present(spec, mesh) for spec in in_specs)
        return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=present(ROWS, mesh)))

    return lambda *arrays, **static: program(**static)(*arrays)
