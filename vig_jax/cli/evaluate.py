"""Top-1 and top-5 accuracy of a trained run on its held-out images.

vig evaluate runs/fashion_mnist
vig evaluate runs/vig_s --data-path /data/imagenet --batch-size 256
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run", type=Path, help="a run's workdir, or one of its checkpoints")
    parser.add_argument("--data-path", help="data set, if not where the run had it")
    parser.add_argument("--batch-size", type=int, help="default: that of training")
    parser.add_argument("--raw", action="store_true", help="the weights, not their average (EMA)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints."""
    from vig_jax.data import BadImages, eval_batches, open_source
    from vig_jax.evaluation.accuracy import evaluate, make_eval_step
    from vig_jax.sharding.mesh import check_batch_size, make_mesh
    from vig_jax.tasks.classification import make_task
    from vig_jax.train.checkpoint import load_for_inference

    restored = load_for_inference(args.run, ema=False if args.raw else None)
    config = restored.config
    data = config.data
    if args.data_path:
        data = dataclasses.replace(data, path=args.data_path)
    batch_size = args.batch_size or config.train.batch_size
    mesh = make_mesh()
    check_batch_size(batch_size, mesh)
    source = open_source(data, "eval")
    bad_images = BadImages(source, data.max_bad_images)
    task = make_task(config)
    progress = tqdm(total=len(source), unit="img", desc="evaluate", disable=None, leave=False)

    def on_batch(batch: Mapping[str, np.ndarray]) -> None:
        bad_images.update(batch["bad"])
        progress.update(int(batch["weight"].sum()))

    with progress, eval_batches(source, data, batch_size=batch_size) as batches:
        metrics = evaluate(
            task,
            make_eval_step(task, mesh=mesh),
            {"": restored.variables["params"]},
            batches,
            mesh,
            on_batch=on_batch,
        )
    kind = "averaged (EMA)" if restored.ema else "raw"
    print(f"{args.run}: {kind} weights after {restored.step} updates, {len(source)} images")
    print(f"top-1 {metrics['top1']:.4f}  top-5 {metrics['top5']:.4f}  loss {metrics['loss']:.4f}")
    if len(bad_images):
        print(f"{len(bad_images)} images did not decode and were left out")
    if args.json:
        facts = {"run": str(args.run), "step": restored.step, "ema": restored.ema}
        args.json.write_text(json.dumps(facts | metrics, indent=1) + "\n")
    return 0
