"""Draws what a trained model bases its predictions on, and writes the numbers.

  vig explain runs/fashion_mnist photo.png
  vig explain runs/flowers photos/ --class daisy --output explanations
  vig explain --weights vig_s.pth --model vig_s photo.jpg --image-size 384

For each image, NAME_explanation.png in --output has the image, the saliency of a class, the
effective receptive field (its mean over all the images), and for every block and head the memory of
both scans and the weight of the local branch. explanations.npz has the arrays of all images. The
images are prepared as in evaluation. Of a segmenter or a detector, the backbone is explained.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vig_jax.cli import options, weights
from vig_jax.devices import open_devices_early
from vig_jax.errors import ConfigError
from vig_jax.text import did_you_mean, printable


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "paths",
        type=options.path,
        nargs="+",
        metavar="PATH",
        help="a run's workdir, one of its checkpoints, a hub folder or a weight file (not with "
        "--weights), then image files or folders of them",
    )
    weights.configure(parser)
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="the class of the saliency, or its number (default: the most probable of each image)",
    )
    parser.add_argument(
        "--steps",
        type=options.positive,
        default=32,
        help="gradients per image for the saliency (default 32)",
    )
    parser.add_argument(
        "--output",
        type=options.path,
        default=Path("explanations"),
        metavar="FOLDER",
        help="of the files (default: explanations)",
    )


def run(args: argparse.Namespace) -> int:
    """Explains, draws and writes."""
    open_devices_early()
    import numpy as np

    from vig_jax.explain import draw_explanation, explain
    from vig_jax.inference.file_predictor import output_names
    from vig_jax.inference.files import load_images

    loaded, files = weights.restore_for_images(args)
    label = args.class_name
    if label is not None:
        label = _label(label, loaded.metadata.get("class_names", ()))
    images = load_images(files, loaded.config.data)
    explanation = explain(loaded, images, class_index=label, steps=args.steps)
    args.output.mkdir(parents=True, exist_ok=True)
    for row, (file, name) in enumerate(output_names(files).items()):
        target = args.output / f"{name}_explanation.png"
        draw_explanation(explanation, target, row)
        print(printable(f"{file}: {target}"))
    arrays = args.output / "explanations.npz"
    explanation.save(arrays, files=np.array([str(file) for file in files]))
    print(printable(f"arrays: {arrays}"))
    return 0


def _label(text: str, class_names: Sequence[str]) -> int:
    """Returns the label that --class names.

    Raises:
        ConfigError: no class has this name, and it is no number.
    """
    if text in class_names:
        return list(class_names).index(text)
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"unknown class {text!r}; {did_you_mean(text, class_names)}") from error
