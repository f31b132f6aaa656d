"""The options by which a command takes weights: a run of ours, or a file with its model's name."""

import argparse
import ast
from pathlib import Path
from typing import Any

from vig_jax.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares --weights, --raw and what describes the model of a file."""
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="instead of a run: .pth or .safetensors with the names of hustvl/ViG; needs --model",
    )
    describe_model(parser)
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="with --weights: not the model's usual"
    )
    parser.add_argument("--raw", action="store_true", help="the weights, not their average (EMA)")


def describe_model(parser: argparse.ArgumentParser) -> None:
    """Declares --model and --set."""
    from vig_jax import list_models

    parser.add_argument("--model", metavar="NAME", help=", ".join(list_models()))
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the model that is not the published one, as in config.model, e.g. "
        "img_size=384; may be given several times",
    )


def settings(pairs: list[str]) -> dict[str, Any]:
    """The values of --set.

    Raises:
        ConfigError: one is not KEY=VALUE.
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set {pair}: KEY=VALUE is wanted")
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    return values


def restore(args: argparse.Namespace, run: Path | None) -> Any:
    """The model that the options name, as a `vig_jax.train.checkpoint.Restored`.

    Args:
        args: with the options of `configure`.
        run: the run that was named, if any.

    Raises:
        ConfigError: options that do not go together.
    """
    if not args.weights:
        for option, value in (
            ("--model", args.model),
            ("--set", args.set),
            ("--image-size", args.image_size),
        ):
            if value:
                raise ConfigError(f"{option} goes with --weights; a run knows its own model")
        if run is None:
            raise ConfigError("which weights? Name a run, or --weights FILE --model NAME")
        from vig_jax.train.checkpoint import load_for_inference

        return load_for_inference(run, ema=False if args.raw else None)
    from vig_jax import list_models
    from vig_jax.train.imported import restore_weights

    if run is not None:
        raise ConfigError(f"either a run ({run}) or --weights {args.weights}, not both")
    if not args.model:
        raise ConfigError(
            f"--weights {args.weights} needs --model NAME, one of {', '.join(list_models())}"
        )
    return restore_weights(
        args.weights,
        args.model,
        ema=False if args.raw else None,
        image_size=args.image_size,
        settings=settings(args.set),
    )
