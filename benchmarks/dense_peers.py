r"""Times models of dense tasks alternately, in one process on one GPU, in bfloat16.

  python -m benchmarks.dense_peers --task segmentation --peers swin_tiny convnext_tiny \
      --train
  python -m benchmarks.dense_peers --task segmentation --peers swin_tiny convnext_tiny \
      --batch-size 4 --image-size 512 2048 --json rows.json
  python -m benchmarks.dense_peers --task detection --peers swin_tiny convnext_tiny \
      --batch-size 2 --image-size 800 1344 --train

Ours are `vig_jax.create_segmenter` and `create_detector` models, as `vig benchmark --task` runs
them. Peers are timm's backbones. All have random weights, take uint8 pixels and normalise them on
the device. Weights of inference are bfloat16. A training step is forward in bfloat16 (autocast),
the losses in float32, backward, and fused AdamW; there is drop path and no augmentation.

Models of segmentation have a UPerHead of 512 channels and, in training, an FCNHead of 256, for the
150 classes of ADE20K. Inference computes the logits at a quarter of the image's size, resizes them
to the image's size and takes the largest: a label map. The loss is the cross entropy of both heads
at full size, with ignored pixels.

Models of detection are Mask R-CNN for the 80 classes of COCO, the peers torchvision's. Inference
ends with 100 boxes of an image and their masks of 28 pixels a side. Ours compares 5000 pairs of a
region and a class of an image, a peer about 1000. In training each image has 8 objects. The mask
head of ours gets 128 regions of an image, that of a peer the positive ones alone, and a new model
has few besides the objects. Operations of a training step count as three times those of inference.

Peers run eager and compiled (of detectors, backbone and pyramid), with channels-last convolutions,
and the table has the faster variant of each. "to 1st" is the speed relative to the first model. By
default inference is compiled with CUDA graphs (reduce-overhead) and training without.
--compile-mode takes several modes to try; max-autotune takes minutes.

The samples of all models alternate. A sample is a series of calls, queued back to back, that fills
--sample-seconds, with one wait at the end. The table has the median, half the distance between the
16th and 84th percentile, and the most memory that PyTorch held. A model that cannot be measured is
reported, and the exit status is 1.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_PEERS = ("swin_tiny", "convnext_tiny")
_SIZES = {"segmentation": (512, 512), "detection": (800, 1344)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _options(argv)
    # By default JAX allocates most of the memory at once, and PyTorch would have none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from vig_jax.errors import REPORTED_ERRORS
    from vig_jax.text import escape_output

    escape_output()
    try:
        return _compare(options)
    except REPORTED_ERRORS as error:
        print(f"dense_peers.py: {error}", file=sys.stderr)
        return 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dense_peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", choices=tuple(_SIZES), default="segmentation")
    parser.add_argument("--ours", nargs="*", default=["vig_h_t"], help="(default vig_h_t)")
    parser.add_argument(
        "--peers",
        nargs="+",
        default=list(_PEERS),
        metavar="PEER",
        help=f"models in PyTorch (default: {' '.join(_PEERS)})",
    )
    parser.add_argument("--train", action="store_true", help="a training step, not inference")
    parser.add_argument("--batch-size", type=_positive, default=16, metavar="IMAGES")
    parser.add_argument(
        "--image-size",
        type=_positive,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="in pixels (default 512 512; detection: 800 1344)",
    )
    parser.add_argument("--repeats", type=_positive, default=10, help="samples (default 10)")
    parser.add_argument("--sample-seconds", type=float, default=1.0, help="(default 1)")
    parser.add_argument(
        "--compile-mode",
        nargs="*",
        choices=_MODES,
        help="modes of torch.compile to try; none: eager only (default: reduce-overhead, and in "
        "training: default)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write facts and rows here")
    options = parser.parse_args(argv)
    options.image_size = options.image_size or _SIZES[options.task]
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def _compare(options: argparse.Namespace) -> int:
    from benchmarks import table
    from benchmarks.candidates import import_peers
    from vig_jax.bench.throughput import write_tables

    facts = table.facts()  # before PyTorch loads its cuDNN: JAX needs its own
    peers, torch_peers = import_peers(f"torch_{options.task}"), import_peers("torch_peers")
    _check(options, peers.BACKBONES)
    torch_peers.check([peers.BACKBONES[name] for name in options.peers])
    facts |= torch_peers.versions() | {"task": options.task}
    rows: list[dict[str, Any]] = []
    write_tables(facts, rows, json_file=options.json, csv_file=None)  # fail now if it cannot be
    table.print_head(facts)
    group, failed = _ours(options), False
    for name in options.peers:
        measurable = False
        for found in peers.candidates(
            name,
            image_size=tuple(options.image_size),
            batch_size=options.batch_size,
            train=options.train,
            compile_modes=_compile_modes(options),
        ):
            if isinstance(found, str):
                print(found, file=sys.stderr, flush=True)
            else:
                group.append(found)
                measurable = True
        failed = failed or not measurable
    if group:
        rows = table.fastest_rows(
            group,
            pass_="train" if options.train else "inference",
            image_size="x".join(map(str, options.image_size)),
            batch_size=options.batch_size,
            repeats=options.repeats,
            sample_seconds=options.sample_seconds,
        )
        for row in rows:
            table.print_row(row)
        write_tables(facts, rows, json_file=options.json, csv_file=None)
    return int(failed)


def _ours(options: argparse.Namespace) -> list[Any]:
    """Prepares our models; one that computes wrong results ends the comparison."""
    from benchmarks.candidates import ours
    from vig_jax.errors import ConfigError

    height, width = options.image_size
    square = options.train and options.task != "detection"
    if square and height != width and options.ours:
        raise ConfigError(f"--image-size {height} {width}: our training images are square")
    size = height if height == width else (height, width)
    settings = {"batch_size": options.batch_size, "train": options.train, "task": options.task}
    return [ours(name, image_size=size, **settings) for name in options.ours]


def _compile_modes(options: argparse.Namespace) -> list[str]:
    if options.compile_mode is None:
        return ["default" if options.train else "reduce-overhead"]
    return options.compile_mode


def _check(options: argparse.Namespace, backbones: Mapping[str, str]) -> None:
    """Refuses peers that are unknown.

    Raises:
        ConfigError: a name is none of the backbones.
    """
    from vig_jax.errors import ConfigError

    if unknown := [name for name in options.peers if name not in backbones]:
        known = ", ".join(backbones)
        raise ConfigError(f"--peers: {', '.join(unknown)} is none of the backbones ({known})")


if __name__ == "__main__":
    sys.exit(main())
