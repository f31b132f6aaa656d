"""Options that select weights: one of our runs, or a weight file and its model."""

import argparse
import ast
import sys
from pathlib import Path
from typing import Any

from vig_jax.cli import options
from vig_jax.errors import ConfigError
from vig_jax.text import printable


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares --weights, --raw, --image-size and the options of a file's model."""
    parser.add_argument(
        "--weights",
        type=options.path,
        metavar="FILE",
        help="instead of a run: .pth or .safetensors with the names of hustvl/ViG, or of "
        "mmsegmentation for a segmenter; with --model, unless the file names its model",
    )
    describe_model(parser, "; with a run, one of its evaluation, e.g. eval_mode=whole")
    parser.add_argument(
        "--image-size",
        type=options.image_size,
        metavar="PIXELS",
        help="side of the images, or HEIGHTxWIDTH as 320x224; default: that of training",
    )
    parser.add_argument("--raw", action="store_true", help="the raw weights, not the EMA weights")


def describe_model(parser: argparse.ArgumentParser, of_a_run: str = "") -> None:
    """Declares --plugin, --model and --set; `of_a_run` says what --set does with a run."""
    options.add_plugins(parser)
    parser.add_argument("--model", metavar="NAME", help=", ".join(options.MODELS))
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of config.model that differs from the published model, e.g. img_size=384, or "
        f"of config.task for a segmenter{of_a_run}; can be repeated",
    )


def settings(pairs: list[str]) -> dict[str, Any]:
    """Returns the values of --set.

    Raises:
        ConfigError: one is not KEY=VALUE.
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set {pair} must have the form KEY=VALUE")
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    return values


def restore(args: argparse.Namespace, run: Path | None) -> Any:
    """Returns the model that the options name, a `vig_jax.inference.loaded_model.LoadedModel`.

    From then on, compiled programs are kept in the run's `config.train.compilation_cache`, or for a
    weight file in the recipes'.

    Args:
        args: with the options of `configure`.
        run: the run that was named, if any.

    Raises:
        ConfigError: options that do not go together.
    """
    loaded = _load(args, run)
    from vig_jax.config import recipes
    from vig_jax.train.compilation_cache import use_compilation_cache

    train = recipes.imagenet().train if weight_file(args, run) else loaded.config.train
    use_compilation_cache(train.compilation_cache)
    return loaded


def restore_for_images(args: argparse.Namespace) -> tuple[Any, list[Path]]:
    """Returns the model and the image files of a command, and prints what the model is.

    Args:
        args: with the options of `configure`, and `paths`: a run, unless --weights is given, and
            then image files or folders.

    Raises:
        ConfigError: there are no images, or options that do not go together.
    """
    from vig_jax.inference.files import find_images

    run, images = (None, args.paths) if args.weights else (args.paths[0], args.paths[1:])
    if not images:
        raise ConfigError(f"only {run} is given: name a run and then images")
    files = find_images(images)
    loaded = restore(args, run)
    print(printable(f"{loaded.config.model.name}: {loaded.description}"), file=sys.stderr)
    return loaded, files


def weight_file(args: argparse.Namespace, run: Path | None) -> Path | None:
    """Returns the weight file that --weights names, or that is in the place of a run, if any."""
    if args.weights:
        file: Path = args.weights
        return file
    return run if run is not None and run.is_file() else None


def _load(args: argparse.Namespace, run: Path | None) -> Any:
    """Returns the model that the options name; see `restore`."""
    file = weight_file(args, run)
    if file is None:
        if args.model:
            raise ConfigError("--model needs --weights; a run stores its model")
        if run is None:
            raise ConfigError("no weights are given: name a run, or --weights FILE [--model NAME]")
        from vig_jax.inference.loaded_model import load_for_inference

        return load_for_inference(
            run,
            ema=False if args.raw else None,
            image_size=args.image_size,
            settings=settings(args.set),
        )
    from vig_jax.inference.loaded_model import restore_weights

    if run is not None and args.weights:
        raise ConfigError(f"a run ({run}) and --weights {args.weights} are given: name one of them")
    return restore_weights(
        file,
        args.model,
        ema=False if args.raw else None,
        image_size=args.image_size,
        settings=settings(args.set),
    )
