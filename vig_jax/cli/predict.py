"""Predicts for image files with a trained run or with a weight file.

  vig predict runs/fashion_mnist photo.png
  vig predict runs/fashion_mnist folder/ --top 3 --json predictions.json --figure predictions.png
  vig predict --weights vig_s.pth --model vig_s photo.jpg
  vig predict runs/ade20k_vig_h_t photo.jpg --output maps
  vig predict runs/coco_vig_h_t photo.jpg --threshold 0.5

A classifier prints the most likely classes. With --figure, a folder named after a class is the true
label of its images.

A segmenter prints the classes with the most pixels, and writes two files for each image into
--output. NAME_labels.png is an indexed image of the same size with the class of every pixel: class
0, 1, ... or, for a run with config.task.reduce_zero_label as ADE20K's, class + 1 as in the
annotations, where 0 is unlabelled. NAME_overlay.png is the photograph under the colors of the
classes, with a legend.

A detector prints the objects with the highest scores. Into --output it writes NAME_objects.png for
each image, the photograph with boxes, masks, names and scores, and detections.json: all objects
with a score of at least --threshold as a data set in COCO's format, with masks as runs.

Images are not rotated by their EXIF orientation by a segmenter or a detector.
"""

import argparse
import sys
from pathlib import Path

from vig_jax.cli import options, weights
from vig_jax.devices import open_devices_early
from vig_jax.files import to_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "paths",
        type=options.path,
        nargs="+",
        metavar="PATH",
        help="a run's workdir, one of its checkpoints or a weight file (not with --weights), then "
        "image files or folders of them",
    )
    weights.configure(parser)
    parser.add_argument(
        "--top",
        type=options.positive,
        default=5,
        help="classes or objects to print per image (default 5)",
    )
    parser.add_argument(
        "--batch-size",
        type=options.positive,
        default=64,
        help="of a classifier (default 64); other models take images one by one",
    )
    parser.add_argument(
        "--mesh",
        type=options.mesh,
        default={},
        metavar="AXIS=DEVICES,...",
        help="share the work of a classifier: data=8 splits the batch over devices, sequence=2 the "
        "rows of images that are too large for one; default: one device",
    )
    parser.add_argument(
        "--output",
        type=options.path,
        default=Path("predictions"),
        metavar="FOLDER",
        help="of the files that a segmenter or a detector writes (default: predictions)",
    )
    parser.add_argument(
        "--threshold",
        type=options.probability,
        default=0.3,
        metavar="SCORE",
        help="least score of the objects of a detector, 0 to 1 (default 0.3)",
    )
    parser.add_argument(
        "--json", type=options.output_file, metavar="FILE", help="write the predictions here"
    )
    parser.add_argument(
        "--figure",
        "--picture",
        type=options.output_file,
        metavar="PNG",
        help="draw images with predictions",
    )


def run(args: argparse.Namespace) -> int:
    """Predicts, prints, draws; returns 1 if an image could not be read."""
    open_devices_early()
    from vig_jax.config import MeshConfig
    from vig_jax.inference.file_predictor import PredictOptions, file_predictor
    from vig_jax.sharding.mesh import make_mesh

    loaded, files = weights.restore_for_images(args)
    predictor = file_predictor(loaded)
    predictions = []
    settings = PredictOptions(
        top=args.top,
        batch_size=args.batch_size,
        output=args.output,
        threshold=args.threshold,
        mesh=make_mesh(shape=MeshConfig(**args.mesh)) if args.mesh else None,
    )
    for prediction in predictor.predict_files(files, settings):
        predictions.append(prediction)
        print(prediction, file=sys.stderr if prediction.error else sys.stdout)
    if args.json:
        args.json.write_text(to_json([p.to_json() for p in predictions]))
        print(f"predictions: {args.json}")
    if args.figure:
        shown = predictor.draw(predictions, args.figure)
        print(f"figure of {shown} images: {args.figure}")
    return 1 if any(prediction.error for prediction in predictions) else 0
