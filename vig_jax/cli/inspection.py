"""Opens and describes the data sets of `vig data`."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vig_jax.errors import ConfigError, DataSetError
from vig_jax.text import did_you_mean, preview_names, printable

_SHOWN = 20  # classes; of more, the first and the last half of them
_BAR = 40  # characters
_NAMED = 3  # annotations with a problem


def open_source(args: argparse.Namespace) -> dict[Any, Any]:
    """Opens the splits that the options of `vig data` name.

    Raises:
        UserError: they cannot be opened.
    """
    from vig_jax.data.convert import find_kind, open_splits
    from vig_jax.data.datasets.fashion_mnist import FashionMnistDataset
    from vig_jax.data.datasets.registry import BOXES, FILES, MASKS, registered_datasets
    from vig_jax.data.datasets.split import StratifiedDataset

    registered = registered_datasets()
    if args.kind is not None and args.kind not in (known := (*args.kinds, *registered)):
        raise ConfigError(f"--from {args.kind}: {did_you_mean(args.kind, known)}")
    if args.kind in registered or (args.kind is None and args.source in registered):
        return _open_registered(args)
    if args.source == "fashion_mnist" and not Path(args.source).exists():
        return {split: FashionMnistDataset(split) for split in ("train", "eval")}
    kind = args.kind or _kind_of_dense(Path(args.source).expanduser()) or find_kind(args.source)
    if kind in BOXES or kind in MASKS:
        return _open_dense(args, kind)
    if args.val_fraction is None:
        return dict(open_splits(args.source, kind))
    whole = FILES[kind](args.source, "all")
    return {
        split: StratifiedDataset(whole, split, args.val_fraction, args.split_seed)
        for split in ("train", "eval")
    }


def _open_registered(args: argparse.Namespace) -> dict[str, Any]:
    """Opens both splits of a data set of a plugin: SRC is its name, or its path after --from."""
    from vig_jax.config import parse, recipes
    from vig_jax.data import open_dataset

    name, path = (args.kind, args.source) if args.kind else (args.source, None)
    if args.val_fraction is not None:
        raise ConfigError(f"--val-fraction: the plugin of {name} has its splits already")
    data = dataclasses.replace(parse(recipes.imagenet()).data, source=name, path=path)
    return {split: open_dataset(data, split) for split in ("train", "eval")}


def check_classes(source: Any) -> None:
    """Refuses a data set that does not have one class per image.

    Raises:
        ConfigError: names the data set.
    """
    from vig_jax.data.dataset import ClassificationDataset

    if not isinstance(source, ClassificationDataset):
        raise ConfigError(
            f"{source.info.name} does not have one class per image, which this command needs"
        )


def _kind_of_dense(root: Path) -> str | None:
    """Returns the source of masks or boxes for the layout of a folder; None for another layout."""
    if root.suffix == ".json" or any(root.glob("annotations/instances_*.json")):
        return "coco"
    layouts: dict[str, list[tuple[str, ...]]] = {
        "voc": [("JPEGImages", "SegmentationClass")],
        "voc_detection": [("JPEGImages", "Annotations")],
        "cityscapes": [("leftImg8bit", "gtFine")],
        "ade20k": [("ADEChallengeData2016",), ("images", "annotations", "objectInfo150.txt")],
        "mask_folder": [("images", "annotations"), ("images", "masks")],
    }
    for kind, layout in layouts.items():
        if any(all((root / name).exists() for name in names) for names in layout):
            named_ade20k = kind == "mask_folder" and root.name == "ADEChallengeData2016"
            return "ade20k" if named_ade20k else kind
    return None


def _open_dense(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Opens the splits of images with masks or boxes, without looking at masks."""
    from vig_jax.config import parse, recipes
    from vig_jax.data.datasets.registry import BOXES, DIVIDED, MASKS

    if args.val_fraction is not None and kind not in DIVIDED:
        raise ConfigError(f"--val-fraction: {kind} has a validation split already")
    data = dataclasses.replace(
        parse(recipes.imagenet()).data,
        path=args.source,
        split="given" if args.val_fraction is None else "random",
        val_fraction=args.val_fraction or 0.0,
        split_seed=args.split_seed,
    )
    found: dict[str, Any] = {}
    reasons: dict[str, DataSetError] = {}
    for split in ("train", "eval"):
        try:
            found[split] = {**BOXES, **MASKS}[kind](data, split)
        except DataSetError as error:
            reasons[split] = error
    if not found:
        raise reasons["train"]
    for split, reason in reasons.items():
        print(f"{split} is left out: {printable(str(reason).splitlines()[0])}")
    return found


def print_classes(split: str, about: dict[str, Any]) -> None:
    """Prints what `vig_jax.data.inspection.inspect` has found."""
    classes = {name: {"images": count} for name, count in about["classes"].items()}
    _print_files(split, len(classes), about)
    _print_bars(classes, "images", lambda x: f"{x['images']:>9,}")
    _print_bad(about, ("undecodable", "damaged"))


def print_masks(split: str, about: dict[str, Any]) -> None:
    """Prints what `vig_jax.data.mask_inspection.inspect_masks` has found."""
    classes = about["classes"]
    _print_files(split, len(classes), about)
    print(f"  {about['ignored']:.1%} of the pixels have no class; of the others:")
    _print_bars(classes, "pixels", lambda x: f"{x['pixels']:>8.2%} {x['images']:>9,} images")
    _print_bad(about, ("faulty", "damaged"))


def print_boxes(split: str, about: dict[str, Any]) -> None:
    """Prints what `vig_jax.data.box_inspection.inspect_boxes` has found."""
    classes = about["classes"]
    _print_files(split, len(classes), about)
    total = sum(found["boxes"] for found in classes.values())
    print(f"  {total:,} boxes that can be used for training:")
    _print_bars(classes, "boxes", lambda x: f"{x['boxes']:>9,} in {x['images']:>7,} images")
    for problem, names in about["annotations"].items():
        print(f"  {problem}: {len(names):,} ({preview_names(names, _NAMED)})")
    _print_bad(about, ("faulty", "damaged"))


def _print_bars(
    classes: Mapping[str, Mapping[str, Any]], key: str, numbers: Callable[[Mapping[str, Any]], str]
) -> None:
    """Prints a line with numbers and a bar for each class, the largest first.

    Args:
        classes: facts by name.
        key: the fact that is drawn.
        numbers: returns the text about a class.
    """
    most = max(found[key] for found in classes.values())
    for name, found in _ends(sorted(classes.items(), key=lambda item: -item[1][key])):
        bar = "#" * round(_BAR * found[key] / most) if found and most else ""
        text = numbers(found) if found else ""
        print(f"  {printable(name)[:30]:<31}{text}  {bar}".rstrip())


def _ends(ordered: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Returns the first and the last items, with dots in place of the others."""
    half = _SHOWN // 2
    if len(ordered) <= _SHOWN:
        return ordered
    return [*ordered[:half], ("...", None), *ordered[-half:]]


def _print_files(split: str, classes: int, about: dict[str, Any]) -> None:
    looked = "" if about["inspected"] == about["images"] else f", {about['inspected']:,} inspected"
    print(f"{split}: {about['images']:,} images, {classes} classes{looked}")
    for key in ("width", "height", "bytes", "boxes"):
        if summary := about.get(key):
            low, middle, high = (summary[name] for name in ("min", "median", "max"))
            print(f"  {key:<7}{low:,.0f} to {high:,.0f}, median {middle:,.0f}")
    formats = ", ".join(f"{kind}: {count:,}" for kind, count in about["formats"].items())
    print(f"  {formats}")


def _print_bad(about: dict[str, Any], kinds: Sequence[str]) -> None:
    for kind in kinds:
        for bad in about[kind][:10]:
            print(f"  {kind}: {bad['path']}: {printable(bad['reason'])}")
        if (more := len(about[kind]) - 10) > 0:
            print(f"  and {more} more {kind} (--json lists them)")
