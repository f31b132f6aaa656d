"""Images per second and memory of a model on this device, on random pixels.

  vig benchmark --model vig_s --batch-size 256
  vig benchmark --model vig_t --image-size 224 512 1024 --batch-size 8 --train
  vig benchmark --model vig_h_t --flops

One row per image size: the median of synchronised steps after warm-up. Inference takes uint8
pixels to logits; --train is forward, backward and an AdamW update. --flops only counts: the
parameters, and the multiply-accumulates of one image's logits.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from vig_jax import list_models

    parser.add_argument("--model", default="vig_s", help=", ".join(list_models()))
    parser.add_argument("--image-size", type=int, nargs="+", default=[224], metavar="PIXELS")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--train", action="store_true", help="a training step, not inference")
    parser.add_argument("--flops", action="store_true", help="count, measure nothing")
    parser.add_argument("--gla", help="implementation of the GLA op (default: best here)")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps (default 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")


def run(args: argparse.Namespace) -> int:
    """Measures, or counts, and prints a table."""
    if args.flops:
        return _count(args)
    import jax

    from vig_jax.evaluation.throughput import measure

    device = jax.local_devices()[0]
    mode = "training step" if args.train else "inference"
    print(
        f"{args.model} {mode}, {args.dtype}, batch {args.batch_size}, "
        f"on {device.device_kind} ({device.platform}), JAX {jax.__version__}"
    )
    print(f"{'pixels':>6} {'img/s':>10} {'ms':>9} {'+-':>7} {'program MB':>11} {'peak MB':>8}")
    rows = []
    for size in args.image_size:
        step, make_arguments = _workload(args, size)
        result = measure(step, make_arguments, batch_size=args.batch_size, repeats=args.repeats)
        peak = f"{result.peak_bytes / 1e6:8.0f}" if result.peak_bytes is not None else "       -"
        print(
            f"{size:6d} {result.img_per_s:10.1f} {result.ms:9.2f} {result.ms_spread:7.2f} "
            f"{result.program_bytes / 1e6:11.0f} {peak}",
            flush=True,
        )
        rows.append({"image_size": size} | dataclasses.asdict(result))
    if args.json:
        facts = {"model": args.model, "mode": mode, "dtype": args.dtype}
        facts |= {"batch_size": args.batch_size, "device": device.device_kind}
        args.json.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    return 0


def _count(args: argparse.Namespace) -> int:
    """Prints parameters and multiply-accumulates per image size."""
    import jax
    import jax.numpy as jnp

    from vig_jax.evaluation.macs import count_macs

    print(f"{args.model}, multiply-accumulates of one image in millions")
    columns = ("pixels", "parameters", "linear", "conv", "GLA", "total")
    print(" ".join(f"{name:>11}" for name in columns))
    rows = []
    for size in args.image_size:
        model = _model(args, size)
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
        macs = count_macs(model, size, size)
        millions = (macs.linear, macs.conv, macs.gla, macs.total)
        print(f"{size:11d} {parameters:11,d} " + " ".join(f"{x / 1e6:11,.1f}" for x in millions))
        row = {"image_size": size, "parameters": parameters, "macs": macs.total}
        rows.append(row | {f"macs_{part}": n for part, n in dataclasses.asdict(macs).items()})
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, "rows": rows}, indent=1) + "\n")
    return 0


def _model(args: argparse.Namespace, size: int) -> Any:
    """The model, made for that image size if its family has one."""
    import jax.numpy as jnp

    from vig_jax import create_model
    from vig_jax.models import model_settings

    made_for = {"img_size": size} if "img_size" in model_settings(args.model) else {}
    return create_model(
        args.model, dtype=jnp.dtype(args.dtype), gla_implementation=args.gla, **made_for
    )


def _workload(args: argparse.Namespace, size: int) -> tuple[Any, Any]:
    """The step to time at one image size and a function that makes its arguments."""
    import jax
    import jax.numpy as jnp
    import optax

    model = _model(args, size)
    shape = (args.batch_size, size, size, 3)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    optimizer = optax.adamw(1e-3)
    opt_state = optimizer.init(params)

    def logits(params: Any, pixels: jax.Array, **kwargs: Any) -> Any:
        images = (pixels / 127.5 - 1).astype(args.dtype)
        return model.apply({"params": params}, images, **kwargs)

    def train(params: Any, opt_state: Any, pixels: jax.Array, labels: jax.Array, key: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            out = logits(params, pixels, train=True, rngs={"dropout": key})
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(out, labels))

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    def make_arguments(i: int) -> tuple[Any, ...]:
        key = jax.random.key(i + 1)
        pixels = jax.random.randint(key, shape, 0, 256, jnp.int32).astype(jnp.uint8)
        if not args.train:
            return params, pixels
        labels = jax.random.randint(key, shape[:1], 0, 1000)
        return params, opt_state, pixels, labels, key

    return (train if args.train else logits), make_arguments
