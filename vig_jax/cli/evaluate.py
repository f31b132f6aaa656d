"""Evaluates a trained run or a weight file on held-out data and prints its metrics.

  vig evaluate runs/fashion_mnist
  vig evaluate runs/vig_s --data-path /data/imagenet --batch-size 256
  vig evaluate --weights vig_s.pth --model vig_s --data-path /data/imagenet
  vig evaluate runs/* vig_s_81p7acc.pth --data-path /data/imagenet --csv models.csv
  vig evaluate runs/vig_s --results mistakes   # mistakes/confusion.png, top_confusions.csv, ...
  vig evaluate runs/ade20k --set "eval_scales=(0.75,1.0,1.25)" --set eval_flip=True

On several hosts, start the same command on each of them, with a number for each:

  vig evaluate runs/vig_s --coordinator host0:1234 --num-processes 2 --process-id 0

The images of a classifier are PATH/val/CLASS/*.jpg. Classes are matched to the model's by name, and
a subset of them will do; the names of ImageNet-1k and their identifiers (n01440764) are
interchangeable. The metrics are top-1 accuracy and, for more than five classes, top-5 accuracy as
fractions, the loss in nats and, for two classes, F1 of the second.

A segmenter needs the classes of its training in the same order. The metrics are mIoU, mAcc and aAcc
as fractions, at the original size of every image. --json has those of each class as well, and the
names of the images with the lowest mIoU.

A detector needs the classes of its training in the same order. The metrics are COCO's AP of boxes
and of masks as fractions: box_ap, box_ap50, mask_ap and so on. --json also has the AP of each
class, recalls, and the names of the images with the lowest AP. --results also has all detections in
the format of COCO's results.
"""

import argparse
import csv
import dataclasses
import io
import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from vig_jax.cli import options, weights
from vig_jax.devices import open_devices_early
from vig_jax.errors import REPORTED_ERRORS, ConfigError
from vig_jax.files import to_json, write_text
from vig_jax.text import printable, printable_lines

if TYPE_CHECKING:
    from vig_jax.config import DataConfig
    from vig_jax.inference.loaded_model import LoadedModel
    from vig_jax.tasks.protocol import Evaluation
    from vig_jax.tasks.registry import TaskEntry


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "runs",
        type=options.path,
        nargs="*",
        metavar="RUN",
        help="a run's workdir, one of its checkpoints, a hub folder, or a weight file; several are "
        "evaluated one after the other, and one that fails leaves the others",
    )
    weights.configure(parser)
    parser.add_argument("--data-path", help="data set, if not where the run had it")
    parser.add_argument(
        "--data-source",
        metavar="NAME",
        help="layout of the data set, a value of config.data.source, if not that of the run; with "
        "--weights the default is image_folder, or ade20k for a segmenter",
    )
    parser.add_argument(
        "--class-map",
        type=options.path,
        metavar="FILE",
        help="JSON object of the data set's class names to the model's, where they differ",
    )
    parser.add_argument(
        "--batch-size", type=options.positive, help="default: that of training; with --weights 64"
    )
    parser.add_argument(
        "--max-tokens",
        type=options.positive,
        metavar="N",
        help="classify images at their native sizes, reduced to at most N tokens (patches) each, "
        "with a plain model; see config.data.native_sizes",
    )
    parser.add_argument(
        "--mesh",
        type=options.mesh,
        default={},
        metavar="AXIS=DEVICES,...",
        help="devices per axis, e.g. sequence=2 for images that are too large for one device; "
        "default: all on data, which splits the batch",
    )
    parser.add_argument("--workers", type=options.count, help="decoding processes; 0: in this one")
    parser.add_argument(
        "--json", type=options.output_file, metavar="FILE", help="also write the metrics here"
    )
    parser.add_argument(
        "--csv",
        type=options.output_file,
        metavar="FILE",
        help="also write a table here: a row for each model, with its metrics",
    )
    parser.add_argument(
        "--results",
        "--confusion",
        type=options.path,
        metavar="FOLDER",
        help="also write detailed results: the confusion matrix as .npz and .png and a table of "
        "the most frequent mistakes; for a segmenter also the scores of each class and the worst "
        "images; for a detector AP of each class, precision and recall, the worst images, and all "
        "detections; in a run's folder `vig report` draws them again",
    )
    options.add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints; on several processes, the first one prints and writes."""
    member = options.member(args)
    if member is None:
        return _run(args)
    from vig_jax.config import TrainConfig
    from vig_jax.train.processes import joined

    def line_of(error: Exception) -> str | None:
        reported = isinstance(error, REPORTED_ERRORS)
        return printable_lines(f"vig evaluate: {error}") if reported else None

    with joined(member, TrainConfig.lost_after_seconds, line_of):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX waits for the end of an update
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    """Evaluates the models one after the other; one that cannot be evaluated leaves the others."""
    open_devices_early()
    sources = args.runs or [None]
    if len(sources) == 1:
        result = _evaluated(args, sources[0])
        _report(args, result)
        _write_table(args.csv, [_row(result)])
        return 0
    if args.json or args.results or args.weights:
        raise ConfigError(
            f"{len(sources)} models are given: --csv is for several, --json, --results and "
            "--weights are for one"
        )
    rows, failed = [], False
    for source in sources:
        try:
            result = _evaluated(args, source)
            _report(args, result)
            rows.append(_row(result))
        except REPORTED_ERRORS as error:
            failed = True
            print(printable(f"{source}: {error}"), file=sys.stderr)
            rows.append({"weights": str(source), "error": str(error)})
        _write_table(args.csv, rows)
    return 1 if failed else 0


class _Result(NamedTuple):
    """An evaluated model.

    Attributes:
        source: the run or weight file.
        is_file: whether it is a weight file.
        loaded: the model.
        entry: its task.
        evaluation: the metrics of the task.
        state: of the whole data set.
        metrics: by name, the primary one first.
        name_of: from the number of an example to its name.
        images: in the data set.
        undecodable: number of images that were left out.
        damaged: number of images that were used in spite of damage.
    """

    source: Path
    is_file: bool
    loaded: "LoadedModel"
    entry: "TaskEntry"
    evaluation: "Evaluation[Any]"
    state: Any
    metrics: dict[str, float]
    name_of: Callable[[int], str]
    images: int
    undecodable: int
    damaged: int


def _evaluated(args: argparse.Namespace, run: Path | None) -> _Result:
    """Evaluates one model on all processes."""
    import jax

    from vig_jax.config import MeshConfig
    from vig_jax.data import BadImages, eval_batches, open_dataset
    from vig_jax.data.preprocess.protocol import examples_per_row
    from vig_jax.errors import NonFiniteLossError
    from vig_jax.evaluation.evaluate import evaluate, make_predict_step
    from vig_jax.sharding.mesh import check_batch_size, check_rows, make_mesh
    from vig_jax.sharding.rules import placed
    from vig_jax.tasks.protocol import HostBatch
    from vig_jax.tasks.registry import get_task, make_task

    loaded = weights.restore(args, run)
    config = loaded.config
    data = _data(args, config.data)
    file = weights.weight_file(args, run)
    source = file or run
    assert source is not None
    batch_size = args.batch_size or (64 if file else config.train.batch_size)
    mesh = make_mesh(shape=MeshConfig(**args.mesh))
    check_batch_size(batch_size, mesh)
    entry = get_task(config.task.name)
    class_map = _class_map(args.class_map) if args.class_map else None
    dataset = open_dataset(data, "eval")
    dataset = entry.match_data(loaded.metadata, dataset, config, class_map)
    metadata = {**dataset.info.metadata, **loaded.metadata}
    bundle = make_task(dataclasses.replace(config, data=data), metadata).evaluated_on(dataset)
    evaluation, preprocess = bundle.evaluation, bundle.eval_preprocess
    check_rows(batch_size, examples_per_row(preprocess), mesh)
    bad_images = BadImages(dataset, preprocess, data.max_bad_images)
    progress = tqdm(
        total=len(dataset) // jax.process_count(),
        unit="img",
        desc="evaluate",
        disable=None if jax.process_index() == 0 else True,
        leave=False,
    )

    def on_batch(batch: HostBatch) -> None:
        bad_images.update(batch["bad"])
        progress.update(int(batch["weight"].sum()))

    loader = eval_batches(
        dataset,
        preprocess,
        batch_size=batch_size,
        workers=data.workers,
        prefetch=data.prefetch,
        image_seconds=data.image_seconds,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with progress, loader as batches:
        predict = make_predict_step(evaluation, mesh=mesh)
        sets = {"": placed(loaded.variables, mesh)}
        state = evaluate(evaluation, predict, sets, batches, mesh, on_batch=on_batch)[""]
    metrics = evaluation.compute(state)
    if not all(map(math.isfinite, metrics.values())):
        raise NonFiniteLossError(f"{source}: metrics are not finite: {metrics}")
    names = sorted(metrics, key=lambda name: name != evaluation.primary_metric)
    return _Result(
        source,
        bool(file),
        loaded,
        entry,
        evaluation,
        state,
        {name: metrics[name] for name in names},
        dataset.name_of,
        len(dataset),
        *_totals([len(bad_images), len(bad_images.damaged)]),
    )


def _data(args: argparse.Namespace, data: "DataConfig") -> "DataConfig":
    """Returns the settings of the data set that the options change."""
    given = {"path": args.data_path, "source": args.data_source, "workers": args.workers}
    changed = {key: value for key, value in given.items() if value not in (None, "")}
    data = dataclasses.replace(data, **changed)
    if args.max_tokens is None:
        return data
    from vig_jax.tasks.classification.native import at_native_sizes

    data = at_native_sizes(data, args.max_tokens)
    return data if args.image_size else dataclasses.replace(data, eval_size=None)


def _report(args: argparse.Namespace, result: _Result) -> None:
    """Prints the metrics and writes the files of one model, on the first process."""
    import jax

    from vig_jax.tasks.protocol import Detailed, Exporting

    if jax.process_index():
        return
    loaded, evaluation, state = result.loaded, result.evaluation, result.state
    model = loaded.config.model.name
    print(printable(f"{result.source}: {loaded.description}, {result.images} images"))
    print("  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items()))
    if result.undecodable:
        print(f"{result.undecodable} images did not decode and were left out")
    if result.damaged:
        print(f"{result.damaged} images are damaged, but decoded and were used")
    if args.json:
        facts = {"run": str(result.source), "step": loaded.step, "ema": loaded.ema}
        if result.is_file:
            facts = {"weights": str(result.source), "model": model, "ema": loaded.ema}
        if isinstance(evaluation, Detailed):
            facts |= evaluation.details(state, result.name_of)
        args.json.write_text(to_json(facts | result.metrics))
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        evaluation.save(state, args.results, f"{model}, {loaded.description}")
        written = result.entry.report.draw(args.results)
        if isinstance(evaluation, Exporting):
            written += evaluation.export(state, args.results)
        for path in written:
            print(f"wrote {path}")


def _row(result: _Result) -> dict[str, Any]:
    """Returns the columns of one model in the table of --csv."""
    import jax

    loaded = result.loaded
    return {
        "weights": str(result.source),
        "model": loaded.config.model.name,
        "task": loaded.config.task.name,
        "parameters": sum(x.size for x in jax.tree.leaves(loaded.variables["params"])),
        "updates": loaded.step,
        "ema": {True: "yes", False: "no", None: ""}[loaded.ema],
        "images": result.images,
        **result.metrics,
    }


def _write_table(file: Path | None, rows: list[dict[str, Any]]) -> None:
    """Writes the table of --csv on the first process; metrics that a model lacks are empty."""
    import jax

    if file is None or jax.process_index():
        return
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "error"))
    columns += ["error"] if any("error" in row for row in rows) else []
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


def _totals(counts: list[int]) -> list[int]:
    """Returns the sums of counts over all processes."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return counts
    return multihost_utils.process_allgather(np.asarray(counts)).sum(0).tolist()


def _class_map(file: Path) -> dict[str, str]:
    """Reads the file of --class-map."""
    try:
        names = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"--class-map {file} is not JSON: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f'--class-map {file} must be an object of names, e.g. {{"felis": "cat"}}')
    return names
