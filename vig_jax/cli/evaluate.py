"""Top-1 and top-5 accuracy on held-out images, of a trained run or of a weight file.

Of two classes, also F1 of the second.

  vig evaluate runs/fashion_mnist
  vig evaluate runs/vig_s --data-path /data/imagenet --batch-size 256
  vig evaluate --weights vig_s.pth --model vig_s --data-path /data/imagenet
  vig evaluate runs/vig_s --confusion mistakes   # mistakes/confusion.png, top_confusions.csv, ...

Images are PATH/val/CLASS/*.jpg; the labels are the places of the sorted folder names.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vig_jax.cli import weights
from vig_jax.errors import ConfigError, DataSetError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        help="a run's workdir or one of its checkpoints (not with --weights)",
    )
    weights.configure(parser)
    parser.add_argument("--data-path", help="data set, if not where the run had it")
    parser.add_argument(
        "--batch-size", type=int, help="default: that of training; with --weights 64"
    )
    parser.add_argument("--workers", type=int, help="decoding processes; 0: in this one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument(
        "--confusion",
        type=Path,
        metavar="FOLDER",
        help="also write which classes are taken for which: confusion.npz, .png and a table of the "
        "most frequent mistakes; in a run's folder `vig report` draws them again",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints."""
    from vig_jax.data import BadImages, eval_batches, open_dataset
    from vig_jax.data.preprocess.classification import ClassificationPreprocess
    from vig_jax.evaluation.accuracy import evaluate, make_eval_step
    from vig_jax.sharding.mesh import check_batch_size, make_mesh
    from vig_jax.tasks.classification import make_task

    restored = weights.restore(args, args.run)
    config = restored.config
    data = config.data
    if args.data_path:
        data = dataclasses.replace(data, path=args.data_path)
    if args.workers is not None:
        data = dataclasses.replace(data, workers=args.workers)
    batch_size = args.batch_size or (64 if args.weights else config.train.batch_size)
    mesh = make_mesh()
    check_batch_size(batch_size, mesh)
    source = open_dataset(data, "eval")
    class_names = source.info.metadata["class_names"]
    _check_classes(class_names, restored)
    preprocess = ClassificationPreprocess(data, train=False)
    bad_images = BadImages(source, preprocess, data.max_bad_images)
    task = make_task(config)
    progress = tqdm(total=len(source), unit="img", desc="evaluate", disable=None, leave=False)

    def on_batch(batch: Mapping[str, np.ndarray]) -> None:
        bad_images.update(batch["bad"])
        progress.update(int(batch["weight"].sum()))

    with (
        progress,
        eval_batches(
            source,
            preprocess,
            batch_size=batch_size,
            workers=data.workers,
            prefetch=data.prefetch,
        ) as batches,
    ):
        sums = evaluate(
            make_eval_step(task, mesh=mesh),
            {"": restored.variables["params"]},
            batches,
            mesh,
            on_batch=on_batch,
        )[""]
    metrics = task.metrics(sums)
    print(f"{args.weights or args.run}: {restored.description}, {len(source)} images")
    f1 = f"  F1 {metrics['f1']:.4f}" if "f1" in metrics else ""
    print(
        f"top-1 {metrics['top1']:.4f}  top-5 {metrics['top5']:.4f}  loss {metrics['loss']:.4f}{f1}"
    )
    if len(bad_images):
        print(f"{len(bad_images)} images did not decode and were left out")
    if args.json:
        facts = {"run": str(args.run), "step": restored.step, "ema": restored.ema}
        if args.weights:
            facts = {"weights": str(args.weights), "model": args.model, "ema": restored.ema}
        args.json.write_text(json.dumps(facts | metrics, indent=1) + "\n")
    if args.confusion:
        _write_confusion(sums, class_names, restored, args.confusion)
    return 0


def _write_confusion(
    sums: Mapping[str, np.ndarray], class_names: Sequence[str], restored: Any, folder: Path
) -> None:
    """Stores and draws which classes were taken for which."""
    from vig_jax.metrics.confusion import Confusion
    from vig_jax.train.logging.report import write_confusion

    if "confusion" not in sums:
        raise ConfigError(
            f"--confusion: {len(class_names):,} classes are too many to count all pairs of"
        )
    confusion = Confusion.of(
        sums["confusion"], class_names, f"{restored.config.model.name}, {restored.description}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    confusion.save(folder)
    for path in write_confusion(confusion, folder):
        print(f"wrote {path}")


def _check_classes(in_data: Sequence[str], restored: Any) -> None:
    """Refuses images whose labels mean other things than the model's outputs."""
    from vig_jax.data.datasets.imagenet import class_ids, class_names

    outputs = restored.config.model.num_classes
    if len(in_data) > outputs:
        raise DataSetError(
            f"the data set has {len(in_data)} classes, the model {outputs}: the weights are for "
            "other classes"
        )
    if restored.class_names == class_names() and tuple(in_data) != class_ids():
        raise DataSetError(
            "the model has the classes of ImageNet-1k, so 1,000 class folders named by their "
            f"identifiers ({class_ids()[0]}, ...) are wanted; there are {len(in_data)}: "
            f"{', '.join(in_data[:3])}, ..."
        )
