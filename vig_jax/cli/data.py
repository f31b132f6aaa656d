"""Converts, inspects and times data sets, and writes the embedded images.

vig data inspect /data/flowers --sheet sheet.png
vig data inspect /data/ADEChallengeData2016 --json ade.json
vig data convert /data/flowers /data/flowers_records --resize-short 320 --workers 8
vig data benchmark /data/flowers_records --workers 8
vig data images fashion_images --split eval --per-class 4
vig data inspect stripes --plugin stripes_plugin    # a data set that a plugin registers
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from vig_jax.cli import options
from vig_jax.cli.inspection import check_classes, open_source
from vig_jax.errors import ConfigError, ConversionError
from vig_jax.files import to_json

KINDS = ("array_record", "image_folder", "parquet", "tar")
# With masks or boxes.
DENSE_KINDS = ("ade20k", "cityscapes", "coco", "mask_folder", "voc", "voc_detection")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the commands and their options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    images = commands.add_parser("images", help="write the embedded images as an image folder")
    images.add_argument("directory", type=options.path, help="CLASS/NUMBER.png are written here")
    images.add_argument("--split", choices=["train", "eval"], default="eval")
    images.add_argument(
        "--per-class", type=int, metavar="N", help="write only N images of each class"
    )
    _configure_convert(
        commands.add_parser("convert", help="write a data set as ArrayRecord, tar, parquet, folder")
    )
    inspect = commands.add_parser(
        "inspect", help="print counts, sizes and undecodable files, or draw a contact sheet"
    )
    _describe_source(inspect, (*KINDS, *DENSE_KINDS))
    inspect.add_argument("--sample", type=int, metavar="N", help="decode only N images of a split")
    _describe_limit(inspect)
    inspect.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="of masks: label 0 is no class, and label k is class k - 1 (ade20k has such masks)",
    )
    inspect.add_argument(
        "--json", type=options.output_file, metavar="FILE", help="write the complete result to FILE"
    )
    inspect.add_argument(
        "--sheet", type=options.output_file, metavar="PNG", help="draw images with their classes"
    )
    benchmark = commands.add_parser(
        "benchmark",
        help="time the stages on the host, the loader, and the augmentation on the device",
        description="Times the training path per image on one core: reading, decoding, crop and "
        "resize, and all together; for masks with the views of mmsegmentation "
        "for ADE20K. With --workers it times the loader; with --device-batch the augmentation of "
        "the ImageNet configs on JAX's device.",
    )
    _describe_source(benchmark, (*KINDS, *DENSE_KINDS))
    benchmark.add_argument(
        "--image-size",
        type=int,
        default=224,
        metavar="PIXELS",
        help="side of the images (224)",
    )
    benchmark.add_argument(
        "--images",
        type=int,
        default=128,
        metavar="N",
        help="number of images to time (128)",
    )
    benchmark.add_argument(
        "--resize",
        choices=["auto", "pillow", "numba"],
        default="auto",
        help="implementation, see config.data.resize (auto)",
    )
    benchmark.add_argument(
        "--workers", type=int, metavar="N", help="time the loader with N processes"
    )
    benchmark.add_argument(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="of the timed loader (64)",
    )
    benchmark.add_argument(
        "--device-batch",
        type=int,
        metavar="N",
        help="time the augmentation of N images",
    )
    benchmark.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        metavar="S",
        help="duration of timing the loader, and the device (3)",
    )
    benchmark.add_argument(
        "--json", type=options.output_file, metavar="FILE", help="write the numbers to FILE"
    )


def _describe_source(parser: argparse.ArgumentParser, kinds: Sequence[str]) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        help="folder with train and val, folder of class folders, folder of shards, or a pattern "
        "with {split}; `fashion_mnist` is the embedded data set; or one that a plugin registers",
    )
    parser.add_argument(
        "--from",
        dest="kind",
        metavar="KIND",
        help=f"format of SRC, if its files are ambiguous: {', '.join(kinds)}, or a data set that a "
        "plugin registers",
    )
    parser.set_defaults(kinds=kinds)
    options.add_plugins(parser)
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="for an SRC without a validation split: hold out this fraction of each class, or of "
        "all images if it has masks",
    )
    parser.add_argument("--split-seed", type=int, default=0, metavar="N", help="of that split (0)")


def _describe_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-image-pixels",
        type=int,
        default=2**26,
        metavar="N",
        help="larger images, by width times height, are undecodable (67108864)",
    )


def _configure_convert(parser: argparse.ArgumentParser) -> None:
    _describe_source(parser, KINDS)
    parser.add_argument("destination", metavar="DST", type=options.path, help="a new folder")
    parser.add_argument("--to", choices=KINDS, default="array_record")
    shards = parser.add_mutually_exclusive_group()
    shards.add_argument("--shards", type=int, metavar="N", help="number, of the larger split")
    shards.add_argument(
        "--shard-size",
        type=_size,
        default="256M",
        metavar="BYTES",
        help="approximate, with K, M or G (256M)",
    )
    parser.add_argument(
        "--resize-short", type=int, default=0, metavar="PIXELS", help="reduce larger shorter sides"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="store pixels (array_record only): nothing to decode in training; 0.2 MB per image "
        "with --resize-short 224",
    )
    parser.add_argument(
        "--reencode-progressive",
        action="store_true",
        help="re-encode progressive JPEGs as baseline ones, which decode faster (lossy)",
    )
    parser.add_argument("--quality", type=int, default=95, help="of re-encoded JPEGs (95)")
    parser.add_argument(
        "--subsampling",
        choices=["4:4:4", "4:2:2", "4:2:0"],
        default="4:2:0",
        help="of re-encoded JPEGs",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order (0)")
    parser.add_argument("--no-shuffle", action="store_true", help="keep the order of SRC")
    parser.add_argument(
        "--no-decode", action="store_true", help="copy without decoding each image once"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="convert only N images of each split"
    )
    _describe_limit(parser)
    parser.add_argument(
        "--leave-out-damaged",
        action="store_true",
        help="leave out JPEGs that decode in spite of damage, as if they did not",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one per CPU)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted conversion")
    parser.add_argument("--verify", action="store_true", help="check all files at the end")
    parser.add_argument(
        "--max-errors", type=int, default=0, metavar="N", help="images that may be left out (0)"
    )


def _size(text: str) -> int:
    """Parses bytes, e.g. "500M"."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    unit = units.get(text[-1:].upper())
    try:
        return int(float(text[:-1]) * unit) if unit else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 500M") from None


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    actions = {
        "images": _images,
        "convert": _convert,
        "inspect": _inspect,
        "benchmark": _benchmark,
    }
    return actions[args.action](args)


def _images(args: argparse.Namespace) -> int:
    from vig_jax.data.datasets.fashion_mnist import write_images

    count = write_images(args.directory, args.split, args.per_class)
    print(f"{count} images: {args.directory}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from vig_jax.data.convert import Options, convert, verify
    from vig_jax.data.loader.workers import cpu_count

    options = Options(
        to=args.to,
        shards=args.shards,
        shard_size=args.shard_size,
        resize_short=args.resize_short,
        reencode_progressive=args.reencode_progressive,
        quality=args.quality,
        subsampling=args.subsampling,
        shuffle=not args.no_shuffle,
        seed=args.seed,
        limit=args.limit,
        decode=not args.no_decode,
        raw=args.raw,
        leave_out_damaged=args.leave_out_damaged,
        max_image_pixels=args.max_image_pixels,
    )
    sources = open_source(args)
    for source in sources.values():
        check_classes(source)
    if len(sources) == 1 and args.val_fraction is None and "train" in sources:
        print(f"{args.source} has no validation split: all images are for training")
        print("(--val-fraction holds some of them out)")
    try:
        info = convert(
            sources,
            args.destination,
            options,
            workers=cpu_count() if args.workers is None else args.workers,
            resume=args.resume,
            max_errors=args.max_errors,
        )
    except KeyboardInterrupt:
        raise ConversionError("interrupted; finished shards are kept, --resume continues") from None
    for name, split in info["splits"].items():
        left_out = f", {split['left_out']} left out (errors.jsonl)" if split["left_out"] else ""
        print(f"{name}: {split['images']:,} images in {len(split['shards'])} shards{left_out}")
        if split["damaged"]:
            print(f"{name}: {split['damaged']} of them are damaged, but decode (damaged.jsonl)")
    if args.verify:
        print(f"verified: {verify(args.destination):,} images")
    print(
        f"train with --config.data.source={options.to} --config.data.path={args.destination}"
        + ("" if "val" in info["splits"] else " --config.data.split=stratified")
    )
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from vig_jax.cli.inspection import print_boxes, print_classes, print_masks
    from vig_jax.data.box_inspection import inspect_boxes
    from vig_jax.data.formats.coco import CocoDataset
    from vig_jax.data.formats.segmentation_folder import SegmentationFolder
    from vig_jax.data.inspection import inspect, save_sheet
    from vig_jax.data.mask_inspection import inspect_masks

    if args.sample is not None and args.sample < 1:
        raise ConfigError(f"--sample {args.sample} must be at least 1")
    sources = open_source(args)
    options: dict[str, Any] = {"sample": args.sample, "max_pixels": args.max_image_pixels}
    found = {}
    for split, source in sources.items():
        if isinstance(source, SegmentationFolder):
            about = inspect_masks(source, reduce_zero_label=args.reduce_zero_label, **options)
            print_masks(split, about)
        elif isinstance(source, CocoDataset):
            about = inspect_boxes(source, **options)
            print_boxes(split, about)
        else:
            check_classes(source)
            about = inspect(source, **options)
            print_classes(split, about)
        found[split] = about
    if args.json:
        args.json.write_text(to_json(found))
    if args.sheet:
        split, source = next(iter(sources.items()))
        if isinstance(source, SegmentationFolder):
            from vig_jax.tasks.segmentation.sheet import save_mask_sheet

            zero = found[split]["reduce_zero_label"]
            save_mask_sheet(source, zero, args.sheet, args.max_image_pixels)
        elif isinstance(source, CocoDataset):
            from vig_jax.tasks.detection.sheet import save_box_sheet

            save_box_sheet(source, args.sheet, args.max_image_pixels)
        else:
            save_sheet(source, args.sheet, args.max_image_pixels)
        print(f"contact sheet of {split}: {args.sheet}")
    return 0


def _benchmark(args: argparse.Namespace) -> int:
    from vig_jax.bench.data import host_stages, loader_speed
    from vig_jax.data.formats.segmentation_folder import SegmentationFolder
    from vig_jax.data.preprocess import resize
    from vig_jax.weights.published import published_config

    if args.images < 1:
        raise ConfigError(f"--images {args.images} must be at least 1")
    data = dataclasses.replace(
        published_config("vig_t").data,
        image_size=args.image_size,
        workers=args.workers or 0,
        resize=args.resize,
        max_bad_images=0,
    )
    if args.resize == "numba" and (reason := resize.why_not()):
        raise ConfigError(f"--resize numba: {reason}")
    source = next(iter(open_source(args).values()))
    if args.device_batch is not None and isinstance(source, SegmentationFolder):
        raise ConfigError("--device-batch times the augmentation of images with one class: omit it")
    by = "Pillow" if args.resize == "pillow" or resize.why_not() else "numba"
    numbers: dict[str, Any] = {"resize": by.lower(), "stages": {}}
    print(f"CPU ms per image, one process, by {by:<8} best  median  images/s")
    numbers["stages"] = host_stages(source, data, args.images)
    for name, times in numbers["stages"].items():
        best = times["best"]
        print(f"  {name:<38}{best:>8.3f}{times['median']:>8.3f}{1e3 / max(best, 1e-9):>10,.0f}")
    if args.workers is not None:
        speed = loader_speed(source, data, args.batch_size, seconds=args.seconds)
        numbers["loader"] = {"workers": args.workers, "images_per_second": speed}
        print(f"loader with {args.workers} workers: {speed:,.0f} images/s")
    if args.device_batch is not None:
        import jax

        from vig_jax.bench.augmentation import device_speed

        seconds = device_speed(source, data, args.device_batch, seconds=args.seconds)
        device = jax.devices()[0].device_kind
        numbers["device"] = {
            "name": device,
            "batch": args.device_batch,
            "milliseconds_per_batch": seconds * 1e3,
            "images_per_second": args.device_batch / seconds,
        }
        print(
            f"augmentation on {device}: {seconds * 1e3:,.3f} ms for {args.device_batch} images of "
            f"{args.image_size} x {args.image_size}, {args.device_batch / seconds:,.0f} images/s"
        )
    if args.json:
        args.json.write_text(to_json(numbers))
    return 0
