"""Times exported ONNX models on the CPU beside JAX and beside timm's models as ONNX.

  python -m benchmarks.onnx_latency
  python -m benchmarks.onnx_latency --models vig_t=deit_tiny_patch16_224 vig_h_t --threads 4 \
      --batch-size 1 8 32 --json rows.json

An entry of --models is OURS[=PEER,...]. Weights are random. Ours is written by `vig_jax.export`,
with a batch of any size, and compared with the model before it is timed. A peer is written by
`torch.onnx`, likewise with the normalisation of uint8 pixels in the file. Both run in onnxruntime.
"JAX" is `vig_jax.predictor` with the same weights. All compute in float32.

Calls are timed from pixels to logits, both on the host, one call after the other. The samples of
all candidates of a batch size alternate. The table has the median and half the distance between the
16th and 84th percentile. The process runs on --threads cores, of which onnxruntime and XLA each use
all. It needs `pip install 'vig-jax[onnx]'`, and torch, timm and onnxscript for peers.
"""

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_SETTINGS = {"dtype": "float32", "num_classes": 1000}
_HEAD = f"{'model':26} {'as':9} {'batch':>5} {'threads':>7} {'ms':>9} {'+-':>7} {'img/s':>8}"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that is ready to be called.

    Attributes:
        model: its name.
        variant: "ONNX" or "JAX".
        call: returns the logits of a batch of pixels, uint8 [b, H, W, 3].
    """

    model: str
    variant: str
    call: Callable[[np.ndarray], np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _options(argv)
    _use_cores(options.threads)  # before JAX makes its threads
    from vig_jax.errors import REPORTED_ERRORS

    try:
        rows = measure(options)
    except REPORTED_ERRORS as error:
        print(f"onnx_latency: {error}", file=sys.stderr)
        return 1
    if options.json:
        facts = _facts() | {"threads": options.threads}
        options.json.write_text(json.dumps(facts | {"rows": rows}, indent=1))
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.onnx_latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["vig_s=deit_small_patch16_224"],
        metavar="OURS[=PEER,...]",
        help="(default: vig_s=deit_small_patch16_224)",
    )
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8], help="(default 1 8)")
    parser.add_argument("--image-size", type=int, default=224, help="(default 224)")
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="cores to use (default: all)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="samples (default 10)")
    parser.add_argument("--sample-seconds", type=float, default=0.5, help="(default 0.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write facts and rows here")
    options = parser.parse_args(argv)
    for name in ("threads", "repeats", "image_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if min(options.batch_size) < 1:
        parser.error("--batch-size must be at least 1")
    return options


def _use_cores(count: int) -> None:
    """Pins the process, and the threads that it will start, to the first cores that it may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Times all models, prints a table, and returns its rows.

    Args:
        options: of the command line.

    Raises:
        ConfigError: a model is unknown, or a package is missing.
        ExportError: a model cannot be exported, or its results differ.
    """
    from kernels_pallas.core.timing import interleaved

    print(", ".join(f"{name} {value}" for name, value in _facts().items()))
    print(_HEAD, flush=True)
    rows = []
    for entry in options.models:
        name, _, peers = entry.partition("=")
        with tempfile.TemporaryDirectory(prefix="vig-onnx-") as folder:
            found = list(
                candidates(
                    name,
                    [peer for peer in peers.split(",") if peer],
                    image_size=options.image_size,
                    batch_sizes=options.batch_size,
                    threads=options.threads,
                    folder=Path(folder),
                )
            )
        for batch_size in options.batch_size:
            shape = (batch_size, options.image_size, options.image_size, 3)
            images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            seconds = interleaved(
                {f"{c.model}, {c.variant}": _repeated(c.call, images) for c in found},
                repeats=options.repeats,
                sample_seconds=options.sample_seconds,
            )
            for candidate, samples in zip(found, seconds.values(), strict=True):
                rows.append(_row(candidate, batch_size, options.threads, samples))
    return rows


def _repeated(
    call: Callable[[np.ndarray], np.ndarray], images: np.ndarray
) -> Callable[[int], None]:
    """Returns a function that makes a number of calls."""

    def run(calls: int) -> None:
        for _ in range(calls):
            call(images)

    return run


def _row(
    candidate: Candidate, batch_size: int, threads: int, samples: Sequence[float]
) -> dict[str, Any]:
    """Prints and returns the row of a candidate."""
    low, median, high = 1e3 * np.percentile(samples, (16, 50, 84))
    row = {
        "model": candidate.model,
        "variant": candidate.variant,
        "batch_size": batch_size,
        "threads": threads,
        "ms": float(median),
        "ms_spread": float(high - low) / 2,
        "img_per_s": float(1e3 * batch_size / median),
    }
    print(
        f"{row['model']:26} {row['variant']:9} {batch_size:5} {threads:7} {row['ms']:9.2f} "
        f"{row['ms_spread']:7.2f} {row['img_per_s']:8.1f}",
        flush=True,
    )
    return row


def candidates(
    name: str,
    peers: Sequence[str],
    *,
    image_size: int,
    batch_sizes: Sequence[int],
    threads: int,
    folder: Path,
) -> Iterator[Candidate]:
    """Yields our model as ONNX and in JAX, and peers as ONNX.

    Args:
        name: of our model.
        peers: timm's names.
        image_size: side in pixels.
        batch_sizes: of the calls to come; JAX compiles a program for each.
        threads: of onnxruntime.
        folder: for the files, which onnxruntime reads once.
    """
    import jax
    import jax.numpy as jnp

    from benchmarks.candidates import import_peers
    from vig_jax import export
    from vig_jax.inference.loaded_model import LoadedModel
    from vig_jax.inference.predictor import predictor
    from vig_jax.weights.published import published_config

    torch_onnx = import_peers("torch_onnx") if peers else None
    config = published_config(name, settings=_SETTINGS, image_size=image_size)
    loaded = LoadedModel(config, {}, 0, {}, None, "random weights")
    model: Any = loaded.model
    shape = (1, image_size, image_size, 3)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape))
    loaded = dataclasses.replace(loaded, variables=dict(variables))
    export(loaded, folder / f"{name}.onnx", image_size=image_size, verify=True)
    yield Candidate(name, "ONNX", session(folder / f"{name}.onnx", threads))
    data = config.data
    programs = {
        size: predictor(model, variables, size, image_size, mean=data.mean, std=data.std)
        for size in batch_sizes
    }
    yield Candidate(name, "JAX", lambda images: np.asarray(programs[len(images)](images)))
    for peer in peers:
        assert torch_onnx
        file = folder / f"{peer}.onnx"
        torch_onnx.write(peer, image_size, file)
        yield Candidate(peer, "ONNX", session(file, threads))


def session(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function of a batch of pixels that an ONNX file holds."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # Threads that wait for work must not disturb the candidate that is timed next.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    made = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def call(images: np.ndarray) -> np.ndarray:
        (logits,) = made.run(["logits"], {"images": images})
        return np.asarray(logits)

    return call


def _facts() -> dict[str, str]:
    """Returns the processor and the versions."""
    from importlib.metadata import PackageNotFoundError, version

    facts = {"processor": _processor(), "python": platform.python_version()}
    for package in ("jax", "onnxruntime", "jax2onnx", "torch", "timm"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    """Returns the name of the processor, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
