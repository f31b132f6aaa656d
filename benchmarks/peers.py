r"""Times our models and timm's alternately, in one process on one GPU, in bfloat16.

  python benchmarks/peers.py                                  # each size against its peer
  python benchmarks/peers.py --passes train --batch-size 128
  python benchmarks/peers.py --models vig_t=deit_tiny_patch16_224 --image-size 224 512 1024 \
      --batch-size 64 16 4 --plot sizes.png
  python benchmarks/peers.py --passes inference train --json rows.json --models \
      vig_t@224x256,512x32,1024x8,2048x2=deit_tiny_patch16_224 vig_s=deit_small_patch16_224

An entry of --models is OURS[@PIXELSxBATCH,...][=PEER,...]: our model, its image and batch sizes (by
default those of --image-size and --batch-size), and its peers.

Ours are `vig_jax.predictor` and the training step of `train.py`. Peers run in PyTorch's fastest
way: bfloat16 weights and inference mode, or autocast, fused AdamW and EMA weights; attention in the
flash kernel; convolutions in channels-last layout; eager and compiled, with the faster of both in
the table. All take uint8 pixels and normalise them on the device. In training all have drop path
and labels, and no augmentation.

The samples of a model and its peers alternate. A sample is a series of calls, queued back to back,
that fills --sample-seconds, with one wait at the end. The table has the median, half the distance
between the 16th and 84th percentile, and the memory: of our compiled program, or the most that
PyTorch held. "waited" are the milliseconds of a call that the host waits for, with pixels and
results on the device, and "answer" those from pixels on the host to logits on the host, of the
faster variant. `python -m benchmarks.market` times all models that a user may choose from.

Our models are not timed if their results are wrong. Before timing, the program is compared with one
in float32: the logits of a few images, or loss and gradient norm of the first training step (on the
whole batch, with `remat` to save memory). A model that fails is reported, the others continue, and
the exit status is 1 if one of ours failed. Tables are written after each model, plots at the end.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
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
_PASSES = ("inference", "train")
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _options(argv)
    # By default JAX allocates most of the memory at once, and PyTorch would have none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.path.insert(0, str(_ROOT))  # so that a checkout runs without being installed
    from vig_jax.errors import REPORTED_ERRORS
    from vig_jax.text import escape_output

    escape_output()
    try:
        return _compare(options)
    except REPORTED_ERRORS as error:
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
        type=_entry,
        default=[_entry(text) for text in _PAIRS],
        metavar="OURS[@PIXELSxBATCH,...][=PEER,...]",
        help=f"models and their peers; OURS without peers runs alone (default: {' '.join(_PAIRS)})",
    )
    parser.add_argument("--image-size", type=int, nargs="+", default=[224], metavar="PIXELS")
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=[256],
        metavar="IMAGES",
        help="one for all, or one for each --image-size (default 256)",
    )
    parser.add_argument(
        "--passes",
        nargs="+",
        choices=_PASSES,
        default=["inference"],
        help="logits, a training step, or both (default inference)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="samples (default 10)")
    parser.add_argument("--sample-seconds", type=float, default=0.2, help="(default 0.2)")
    parser.add_argument("--skip-compile", action="store_true", help="run peers in eager mode only")
    parser.add_argument(
        "--compile-mode",
        choices=_MODES,
        help="of torch.compile (default: reduce-overhead, with CUDA graphs; in training: default)",
    )
    parser.add_argument(
        "--attention",
        choices=("flash", "cudnn"),
        default="flash",
        help="kernel of scaled_dot_product_attention for deit and vit (default flash)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write facts and rows here")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="PNG",
        help="draw them against the image size; the pass is added to the name",
    )
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if options.skip_compile and options.compile_mode:
        parser.error("--skip-compile and --compile-mode exclude each other")
    return options


def _entry(text: str) -> tuple[str, list[tuple[int, int]], list[str]]:
    """Parses an entry into our model's name, its image and batch sizes, and its peers' names."""
    left, _, peers = text.partition("=")
    name, at, shapes = left.partition("@")
    own = []
    for shape in shapes.split(",") if at else ():
        size, _, batch = shape.partition("x")
        if not (size.isdecimal() and batch.isdecimal() and int(size) and int(batch)):
            raise argparse.ArgumentTypeError(
                f"{text!r}: {shape!r} is not PIXELSxBATCH, as in vig_t@224x256,1024x8"
            )
        own.append((int(size), int(batch)))
    return name, own, [peer for peer in peers.split(",") if peer]


def _compare(options: argparse.Namespace) -> int:
    from benchmarks import table
    from vig_jax import list_models
    from vig_jax.bench.programs import image_and_batch_sizes
    from vig_jax.bench.throughput import write_tables
    from vig_jax.errors import ConfigError

    shapes = image_and_batch_sizes(options.image_size, options.batch_size)
    if unknown := [name for name, *_ in options.models if name not in list_models()]:
        known = ", ".join(list_models())
        raise ConfigError(f"--models: {', '.join(unknown)} is none of our models ({known})")
    facts = table.facts()  # before PyTorch loads its cuDNN: JAX needs its own
    peers = [peer for _, _, names in options.models for peer in names]
    torch_peers = _torch_peers() if peers else None
    if torch_peers:
        torch_peers.check(peers)
        facts |= torch_peers.versions() | {"attention": options.attention}
    rows: list[dict[str, Any]] = []
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        write_tables(facts, rows, json_file=options.json, csv_file=options.csv)

    write()  # fail now, not after an hour, if a file cannot be written
    table.print_head(facts)
    status = 0
    for (name, own, names), pass_ in itertools.product(options.models, options.passes):
        for size, batch in own or shapes:
            try:
                group = _rows(options, name, names, size, batch, pass_, torch_peers)
            except (RuntimeError, ValueError) as error:  # out of memory, wrong results, ...
                reason = f"{name}, {pass_} at {size} pixels, batch {batch}: not measured: {error}"
                print(f"peers.py: {reason}", file=sys.stderr, flush=True)
                status = 1
                continue
            finally:
                if torch_peers:
                    torch_peers.free()
            for row in group:
                table.print_row(row)
            rows += group
            write()
    if options.plot:
        _draw(options, facts, rows)
    return status


def _draw(
    options: argparse.Namespace, facts: Mapping[str, Any], rows: Sequence[dict[str, Any]]
) -> None:
    """Writes a figure for each pass that has rows."""
    from benchmarks.table import title
    from vig_jax.bench.throughput import by_model, draw

    for pass_ in options.passes:
        drawn = [row for row in rows if row["pass"] == pass_]
        if drawn:
            figure = options.plot.with_stem(f"{options.plot.stem}_{pass_}")
            draw(by_model(drawn), f"{pass_}, {title(facts)}", figure, memory="memory_bytes")
            print(f"figure: {figure}")


def _torch_peers() -> Any:
    from benchmarks.candidates import import_peers

    return import_peers("torch_peers", without=". Or run our models alone: --models vig_t")


def _rows(
    options: argparse.Namespace,
    name: str,
    peers: Sequence[str],
    size: int,
    batch: int,
    pass_: str,
    torch_peers: Any,
) -> list[dict[str, Any]]:
    """Returns our row for one size and pass, and a row per peer in its faster variant."""
    from benchmarks.candidates import ours
    from benchmarks.table import fastest_rows

    train = pass_ == "train"
    mode = options.compile_mode or ("default" if train else "reduce-overhead")
    given: Any = {"image_size": size, "batch_size": batch, "train": train}
    group = [ours(name, **given)]
    for peer in peers:
        for found in torch_peers.candidates(
            peer,
            **given,
            compile_mode=None if options.skip_compile else mode,
            attention=options.attention,
        ):
            if isinstance(found, str):
                print(found, file=sys.stderr)
            else:
                group.append(found)
    return fastest_rows(
        group,
        pass_=pass_,
        image_size=size,
        batch_size=batch,
        repeats=options.repeats,
        sample_seconds=options.sample_seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
