r"""Times our models against timm's, in turns, in one process on one GPU, in bfloat16.

  python benchmarks/peers.py                                  # each size against its like
  python benchmarks/peers.py --train --batch-size 128
  python benchmarks/peers.py --models vig_t=deit_tiny_patch16_224 --image-size 224 512 1024 \
      --batch-size 8 --plot sizes.png

Ours are `vig_jax.predictor`, or with --train the training step of `train.py`. Peers run as PyTorch
runs them best: bfloat16 weights and inference mode, or autocast, fused AdamW and averaged weights;
attention through the flash kernel, convolutions channels-last; eager and compiled, of which the
faster makes the row. All take uint8 pixels and normalise them on the device; in training all have
drop path and labels, and no augmentation.

The samples of a model and its peers alternate. One is as many calls as fill --sample-seconds, back
to back, with a wait at the end; printed are the median, half the distance between the 16th and 84th
percentile, and the memory: of our compiled program, or the most that PyTorch held. Our logits are
compared with those of float32 first, and a result that is wrong is not timed.
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_PAIRS = (
    "vig_t=deit_tiny_patch16_224",
    "vig_s=deit_small_patch16_224",
    "vig_b=deit_base_patch16_224",
    "vig_h_t=swin_tiny_patch4_window7_224,convnext_tiny",
    "vig_h_s=swin_small_patch4_window7_224,convnext_small",
    "vig_h_b=swin_base_patch4_window7_224,convnext_base",
)
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _options(argv)
    # Else JAX takes most of the memory at once, and PyTorch has none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.path.insert(0, str(_ROOT))  # so that a checkout runs without being installed
    try:
        return _compare(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"peers.py: {error}", file=sys.stderr)
        return 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="peers.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models",
        nargs="+",
        type=_pair,
        default=[_pair(text) for text in _PAIRS],
        metavar="OURS=PEER,...",
        help=f"who runs against whom; OURS alone runs alone (default: {' '.join(_PAIRS)})",
    )
    parser.add_argument("--image-size", type=int, nargs="+", default=[224], metavar="PIXELS")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--train", action="store_true", help="a training step, not inference")
    parser.add_argument("--repeats", type=int, default=10, help="samples (default 10)")
    parser.add_argument("--sample-seconds", type=float, default=0.2, help="(default 0.2)")
    parser.add_argument("--skip-compile", action="store_true", help="peers only eager")
    parser.add_argument(
        "--compile-mode",
        choices=_MODES,
        help="of torch.compile (default: reduce-overhead, with CUDA graphs; to train, default)",
    )
    parser.add_argument(
        "--attention",
        choices=("flash", "cudnn"),
        default="flash",
        help="kernel of scaled_dot_product_attention for deit and vit (default flash)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write facts and rows here")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them against the image size")
    options = parser.parse_args(argv)
    for name in ("batch_size", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.skip_compile and options.compile_mode:
        parser.error("--skip-compile and --compile-mode exclude each other")
    mode = options.compile_mode or ("default" if options.train else "reduce-overhead")
    options.compile_mode = None if options.skip_compile else mode
    return options


def _pair(text: str) -> tuple[str, tuple[str, ...]]:
    """Our model's name and those of its peers."""
    name, _, peers = text.partition("=")
    return name, tuple(peer for peer in peers.split(",") if peer)


def _compare(options: argparse.Namespace) -> int:
    import jax

    from kernels_pallas.benchmarks.timing import commit, driver
    from vig_jax import list_models
    from vig_jax.evaluation.throughput import draw, peak_flops, write_tables

    if unknown := [name for name, _ in options.models if name not in list_models()]:
        known = ", ".join(list_models())
        raise ValueError(f"--models: {', '.join(unknown)} is none of ours ({known})")
    device = jax.local_devices()[0]  # before PyTorch loads its cuDNN: JAX needs the one it has
    facts: dict[str, Any] = {
        "mode": "training step" if options.train else "inference",
        "device": f"{device.device_kind} ({device.platform})",
        "driver": driver(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "commit": commit(),
    }
    peers = [peer for _, names in options.models for peer in names]
    torch_peers = _torch_peers() if peers else None
    if torch_peers:
        torch_peers.check(peers)
        facts |= torch_peers.versions()
        facts |= {"compile_mode": options.compile_mode, "attention": options.attention}
    title = f"{facts['mode']}, bfloat16, batch {options.batch_size}, on {facts['device']}"
    print(title)
    print(", ".join(f"{name} {value}" for name, value in list(facts.items())[2:]))
    print(
        f"{'model':30} {'as':27} {'params':>11} {'pixels':>6} {'batch':>5} {'img/s':>9} {'ms':>9} "
        f"{'+-':>7} {'MB':>7} {'MFU':>6} {'to ours':>7}"
    )
    rows = []
    for name, names in options.models:
        for size in options.image_size:
            group = _rows(options, name, names, size, torch_peers, peak_flops(device.device_kind))
            for row in group:
                _print(row)
            rows += group
            if torch_peers:
                torch_peers.free()
    write_tables(facts, rows, json_file=options.json, csv_file=options.csv)
    if options.plot:
        series = {row["model"]: [r for r in rows if r["model"] == row["model"]] for row in rows}
        draw(series, title, options.plot, memory="memory_bytes")
        print(f"picture: {options.plot}")
    return 0


def _torch_peers() -> Any:
    try:
        from benchmarks import torch_peers
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "timm"):
            raise
        raise ValueError(
            f"the peers need PyTorch and timm, and {error.name} is not there: pip install torch "
            "timm; or run ours alone, for example --models vig_t"
        ) from error
    return torch_peers


def _rows(
    options: argparse.Namespace,
    name: str,
    peers: Sequence[str],
    size: int,
    torch_peers: Any,
    peak: float | None,
) -> list[dict[str, Any]]:
    """Our row at one image size, and one of each peer in its faster variant."""
    from benchmarks.contestants import ours
    from kernels_pallas.benchmarks.timing import interleaved
    from vig_jax.evaluation.throughput import spread

    given = {"image_size": size, "batch_size": options.batch_size, "train": options.train}
    group = [ours(name, **given)]
    for peer in peers:
        for found in torch_peers.contestants(
            peer, **given, compile_mode=options.compile_mode, attention=options.attention
        ):
            if isinstance(found, str):
                print(found, file=sys.stderr)
            else:
                group.append(found)
    seconds = interleaved(
        {f"{one.name} {one.variant}": one.run for one in group},
        repeats=options.repeats,
        sample_seconds=options.sample_seconds,
    )
    best: dict[str, dict[str, Any]] = {}
    for one in group:
        samples = seconds[f"{one.name} {one.variant}"]
        median = statistics.median(samples)
        img_per_s = options.batch_size / median
        row = {
            "model": one.name,
            "variant": one.variant,
            "parameters": one.parameters,
            "image_size": size,
            "batch_size": options.batch_size,
            "img_per_s": img_per_s,
            "ms": 1e3 * median,
            "ms_spread": 1e3 * spread(samples),
            "memory_bytes": one.memory_bytes,
            "mfu": img_per_s * one.flops / peak if peak else None,
        }
        row["relative"] = img_per_s / best[name]["img_per_s"] if best else 1.0
        if one.name not in best or img_per_s > best[one.name]["img_per_s"]:
            best[one.name] = row
    return list(best.values())


def _print(row: dict[str, Any]) -> None:
    mfu = f"{'-':>6}" if row["mfu"] is None else f"{row['mfu']:6.1%}"
    print(
        f"{row['model']:30} {row['variant']:27} {row['parameters']:11,} {row['image_size']:6} "
        f"{row['batch_size']:5} {row['img_per_s']:9.1f} {row['ms']:9.3f} {row['ms_spread']:7.3f} "
        f"{row['memory_bytes'] / 1e6:7.0f} {mfu} {row['relative']:7.3f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
