"""Compares images of mixed sizes in packed rows, in padded canvases and in buckets of canvases.

  python -m benchmarks.packing
  python -m benchmarks.packing --model vig_b --largest 512 --json packing.json

The images have areas and aspect ratios that are drawn evenly, and sides in multiples of the patch.
"padded" puts all of them into the canvas of the largest height and width, "bucketed" sorts them by
orientation and area and gives each bucket its canvas, both by `features(sizes=...)`, which is exact
for any canvas. "packed" is `model.apply(..., method="packed")`. All three return the mean of the
last map of each image, and the difference to the images in canvases is printed.

The pixels are on the device, the programs are timed alternately, and images/s are those of all
images. "tokens" counts what a program computes for one token of an image, padding included.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vig_jax
from benchmarks.table import facts
from kernels_pallas.core.timing import candidate, interleaved
from vig_jax.bench.throughput import spread
from vig_jax.inference.packing import pack
from vig_jax.inference.predictor import narrow_kernels
from vig_jax.layers.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise
from vig_jax.models import ViG


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to compute all images.

    Attributes:
        call: returns the pooled features of all images, in parts.
        order: for each image its position in the concatenated parts.
        tokens: tokens that are computed.
    """

    call: Callable[[], list[jax.Array]]
    order: np.ndarray
    tokens: int


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="vig_s", help="a plain model (default vig_s)")
    parser.add_argument("--depth", type=int, help="blocks (default: those of the model)")
    parser.add_argument("--images", type=int, default=512, help="(default 512)")
    parser.add_argument("--batch-size", type=int, default=64, help="of canvases (default 64)")
    parser.add_argument("--tokens", type=int, default=16384, help="of a row (default 16384)")
    parser.add_argument("--buckets", type=int, default=4, help="(default 4)")
    parser.add_argument("--smallest", type=int, default=96, help="root of the area (default 96)")
    parser.add_argument("--largest", type=int, default=320, help="likewise (default 320)")
    parser.add_argument("--repeats", type=int, default=5, help="samples (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    options = parser.parse_args(argv)
    if options.images % (options.buckets * options.batch_size):
        parser.error(
            f"--images {options.images} must be a multiple of --buckets * --batch-size, "
            f"{options.buckets * options.batch_size}"
        )
    settings = {} if options.depth is None else {"depth": options.depth}
    model = vig_jax.create_model(options.model, 0, dtype=jnp.bfloat16, **settings)
    if not isinstance(model, ViG):
        parser.error(
            f"--model {options.model} cannot take packed images: use vig_t, vig_s or vig_b"
        )
    grids = draw_grids(options, model.patch_size)
    rows = measure(model, grids, options)
    print(f"{options.model}, {options.images} images, {dict(facts())}")
    print(f"{'':10} {'img/s':>9} {'ms':>9} {'+-':>7} {'tokens':>7} {'calls':>6} {'difference':>11}")
    for row in rows:
        print(
            f"{row['name']:10} {row['img_per_s']:9.1f} {row['ms']:9.2f} {row['ms_spread']:7.2f} "
            f"{row['tokens']:7.2f} {row['calls']:6} {row['difference']:11.1e}"
        )
    if options.json:
        options.json.write_text(json.dumps({"facts": facts(), "rows": rows}, indent=1))
    return 0


def draw_grids(options: argparse.Namespace, patch_size: int) -> np.ndarray:
    """Returns rows and columns of patches of each image [images, 2], aspect ratios 1/2 to 2."""
    generator = np.random.default_rng(0)
    area = generator.uniform(options.smallest**2, options.largest**2, options.images)
    aspect = np.exp2(generator.uniform(-1, 1, options.images))
    sides = np.sqrt(np.stack([area * aspect, area / aspect], axis=1))
    return np.maximum(1, np.rint(sides / patch_size)).astype(np.int32)


def measure(model: ViG, grids: np.ndarray, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each way."""
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 256, (*grid * model.patch_size, 3), np.uint8) for grid in grids]
    side = model.smallest_size
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, side, side, 3)))
    variables = jax.device_put(narrow_kernels(variables, model))
    one = np.arange(len(images))[None]
    with ThreadPoolExecutor() as pool:
        made = {
            "packed": pool.submit(packed, model, variables, images, options.tokens),
            "padded": pool.submit(padded, model, variables, images, one, options.batch_size),
            "bucketed": pool.submit(
                padded, model, variables, images, buckets(grids, options), options.batch_size
            ),
        }
        ways = {name: future.result() for name, future in made.items()}
    outs = {
        name: np.concatenate([np.asarray(x, np.float32) for x in way.call()])[way.order]
        for name, way in ways.items()
    }
    seconds = interleaved(
        {name: candidate(way.call) for name, way in ways.items()},
        repeats=options.repeats,
        sample_seconds=0.5,
    )
    right = outs["padded"]
    return [
        {
            "name": name,
            "img_per_s": len(images) / statistics.median(samples),
            "ms": 1e3 * statistics.median(samples),
            "ms_spread": 1e3 * spread(samples),
            "tokens": ways[name].tokens / int(grids.prod(axis=1).sum()),
            "calls": len(ways[name].call()),
            "difference": float(np.sqrt(np.mean((outs[name] - right) ** 2) / np.mean(right**2))),
        }
        for name, samples in seconds.items()
    ]


def buckets(grids: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """Returns the images of each bucket [buckets, images / buckets], by orientation and area."""
    order = np.lexsort((grids.prod(axis=1), grids[:, 0] > grids[:, 1]))
    return order.reshape(options.buckets, -1)


def packed(model: ViG, variables: Any, images: Sequence[np.ndarray], tokens: int) -> Way:
    """Returns the way by rows of tokens, one row per call."""
    most = max(1, tokens // 64)
    rows = pack(images, model.patch_size, tokens=tokens, most_images=most)
    calls = [
        jax.device_put((rows.patches[i : i + 1], rows.sizes[i : i + 1]))
        for i in range(len(rows.patches))
    ]

    def pooled(variables: Any, patches: jax.Array, sizes: jax.Array) -> Any:
        pixels = normalise(patches[0], IMAGENET_MEAN, IMAGENET_STD)[None]
        return model.apply(variables, pixels, sizes, method="packed")[0]

    compiled = jax.jit(pooled).lower(variables, *calls[0]).compile()
    order = rows.places[:, 0] * most + rows.places[:, 1]
    run = functools.partial(_run, [functools.partial(compiled, variables, *call) for call in calls])
    return Way(run, order, len(calls) * tokens)


def padded(
    model: ViG,
    variables: Any,
    images: Sequence[np.ndarray],
    groups: np.ndarray,
    batch_size: int,
) -> Way:
    """Returns the way by canvases, each as large as the images of its group need."""

    @jax.jit
    def pooled(variables: Any, canvases: jax.Array, sizes: jax.Array) -> Any:
        pixels = normalise(canvases, IMAGENET_MEAN, IMAGENET_STD)
        maps = model.apply(variables, pixels, method="features", sizes=sizes)[0]
        cells = jnp.prod(sizes // model.patch_size, axis=1)
        return jnp.sum(maps, axis=(1, 2), dtype=jnp.float32) / cells[:, None]

    calls: list[Callable[[], Any]] = []
    tokens = 0
    for group in groups:
        sizes = np.array([images[i].shape[:2] for i in group], np.int32)
        canvases = np.zeros((len(group), *sizes.max(axis=0), 3), np.uint8)
        for canvas, number, (height, width) in zip(canvases, group, sizes, strict=True):
            canvas[:height, :width] = images[number]
        tokens += canvases[..., 0].size // model.patch_size**2
        batches = [
            jax.device_put((canvases[i : i + batch_size], sizes[i : i + batch_size]))
            for i in range(0, len(group), batch_size)
        ]
        compiled = pooled.lower(variables, *batches[0]).compile()
        calls += [functools.partial(compiled, variables, *batch) for batch in batches]
    return Way(functools.partial(_run, calls), np.argsort(groups.ravel()), tokens)


def _run(calls: Sequence[Callable[[], jax.Array]]) -> list[jax.Array]:
    return [call() for call in calls]


if __name__ == "__main__":
    sys.exit(main())
