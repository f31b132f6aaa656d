"""Images per second, latency and memory of models on this device, on random pixels.

  vig benchmark --model vig_s --batch-size 256
  vig benchmark --model vig_t vig_h_t --image-size 224 512 1024 --batch-size 8 --plot sizes.png
  vig benchmark --model vig_t --train
  vig benchmark --model vig_h_t --flops

One row per model and image size: the median of synchronised calls after warm-up. Inference is
`vig_jax.predictor`, uint8 pixels to logits; --train is forward, backward, an AdamW update and an
update of the averaged weights, with drop path. MFU is the multiply-accumulates
of --flops (three times as many for training) over the device's bfloat16 peak. --flops only counts:
the parameters, and the multiply-accumulates of one image's logits.
"""

import argparse
import csv
import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

_DROP_PATH = 0.2  # of training; what it costs does not depend on the rate
_INPUTS = 4  # distinct batches to go through
_TRAIN_MACS = 3  # of the forward pass: it, and the gradients by inputs and by parameters


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from vig_jax import list_models

    parser.add_argument("--model", nargs="+", default=["vig_s"], help=", ".join(list_models()))
    parser.add_argument("--image-size", type=int, nargs="+", default=[224], metavar="PIXELS")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--train", action="store_true", help="a training step, not inference")
    parser.add_argument("--flops", action="store_true", help="count, measure nothing")
    parser.add_argument("--gla", help="implementation of the GLA op (default: best here)")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls (default 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write facts and rows here")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them against the image size")


def run(args: argparse.Namespace) -> int:
    """Measures, or counts, and prints a table."""
    if args.flops:
        rows = [_count(args, name, size) for name in args.model for size in args.image_size]
        facts: dict[str, Any] = {"mode": "count"}
    else:
        facts, rows = _measure(args)
    if args.json:
        args.json.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return 0


def _measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import jax

    from vig_jax.evaluation.macs import count_macs
    from vig_jax.evaluation.throughput import draw, measure, peak_flops

    device = jax.local_devices()[0]
    peak = peak_flops(device.device_kind)
    facts = {
        "mode": "training step" if args.train else "inference",
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "device": f"{device.device_kind} ({device.platform})",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    title = (
        f"{facts['mode']}, {args.dtype}, batch {args.batch_size}, on {facts['device']}, "
        f"JAX {facts['jax']}"
    )
    print(title)
    print(
        f"{'model':8} {'pixels':>6} {'img/s':>10} {'ms':>9} {'+-':>7} {'MFU':>6} "
        f"{'program MB':>11} {'peak MB':>8}"
    )
    rows = []
    for name in args.model:
        for size in args.image_size:
            model = _model(args, name, size)
            program = _training(args, model, size) if args.train else _inference(args, model, size)
            result = measure(**program, batch_size=args.batch_size, repeats=args.repeats)
            flops = 2 * count_macs(model, size, size).total * (_TRAIN_MACS if args.train else 1)
            mfu = result.img_per_s * flops / peak if peak and args.dtype == "bfloat16" else None
            shown = (
                f"{mfu:6.1%}" if mfu is not None else f"{'-':>6}",
                f"{result.program_bytes / 1e6:11.0f}",
                f"{'-':>8}" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:8.0f}",
            )
            print(
                f"{name:8} {size:6d} {result.img_per_s:10.1f} {result.ms:9.2f} "
                f"{result.ms_spread:7.2f} {' '.join(shown)}",
                flush=True,
            )
            row = {"model": name, "image_size": size, "mfu": mfu}
            rows.append(row | dataclasses.asdict(result))
    if args.plot:
        series = {name: [row for row in rows if row["model"] == name] for name in args.model}
        draw(series, title, args.plot)
        print(f"picture: {args.plot}")
    return facts, rows


def _count(args: argparse.Namespace, name: str, size: int) -> dict[str, Any]:
    """Prints parameters and multiply-accumulates of one model at one image size."""
    import jax
    import jax.numpy as jnp

    from vig_jax.evaluation.macs import count_macs

    model = _model(args, name, size)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    macs = count_macs(model, size, size)
    parts = {"linear": macs.linear, "conv": macs.conv, "GLA": macs.gla, "total": macs.total}
    millions = ", ".join(f"{part} {count / 1e6:,.1f}" for part, count in parts.items())
    print(f"{name} at {size} pixels: {parameters:,} parameters; million MACs: {millions}")
    row = {"model": name, "image_size": size, "parameters": parameters, "macs": macs.total}
    return row | {f"macs_{part}": count for part, count in dataclasses.asdict(macs).items()}


def _model(args: argparse.Namespace, name: str, size: int) -> Any:
    """The model, made for that image size if its family has one."""
    import jax.numpy as jnp

    from vig_jax import create_model
    from vig_jax.models import model_settings

    settings = {"img_size": size} if "img_size" in model_settings(name) else {}
    return create_model(
        name,
        dtype=jnp.dtype(args.dtype),
        gla_implementation=args.gla,
        drop_path_rate=_DROP_PATH,
        **settings,
    )


def _pixels(args: argparse.Namespace, size: int, seed: int) -> Any:
    import jax
    import jax.numpy as jnp

    shape = (args.batch_size, size, size, 3)
    return jax.random.randint(jax.random.key(seed), shape, 0, 256, jnp.int32).astype(jnp.uint8)


def _inference(args: argparse.Namespace, model: Any, size: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from vig_jax import predictor

    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    run = predictor(model, variables, args.batch_size, size)
    inputs = [(run.variables, _pixels(args, size, seed)) for seed in range(_INPUTS)]
    return {"compiled": run.compiled, "inputs": inputs}


def _training(args: argparse.Namespace, model: Any, size: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import optax

    from vig_jax.layers.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise

    optimizer = optax.adamw(1e-3)

    def init() -> Any:
        params = model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
        return params, jax.tree.map(jnp.copy, params), optimizer.init(params)

    def step(state: Any, pixels: Any, labels: Any, key: Any) -> Any:
        params, average, opt_state = state

        def loss(params: Any) -> jax.Array:
            images = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)
            out = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(out, labels))

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 1e-4)
        return (params, average, opt_state), value

    def arguments(seed: int) -> tuple[Any, ...]:
        key = jax.random.key(seed)
        labels = jax.random.randint(key, (args.batch_size,), 0, model.num_classes)
        return _pixels(args, size, seed), labels, key

    state = jax.jit(init)()
    inputs = [arguments(seed) for seed in range(_INPUTS)]
    compiled = jax.jit(step, donate_argnums=0).lower(state, *inputs[0]).compile()
    return {"compiled": compiled, "inputs": inputs, "state": state}
