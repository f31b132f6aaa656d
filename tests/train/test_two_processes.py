"""A run on two processes, as on two hosts: the same losses as on one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "--config=configs/fashion_mnist.py",
    "--config.model.img_size=16",
    "--config.model.embed_dim=16",
    "--config.model.depth=1",
    "--config.model.num_heads=1",
    "--config.model.drop_path_rate=0.5",
    "--config.data.source=image_folder",
    "--config.data.image_size=16",
    "--config.data.erase_probability=0.5",
    "--config.train.batch_size=16",
    "--config.train.epochs=1",
    "--config.train.eval_every_epochs=1",
    "--config.train.log_every_steps=1",
)


def start(workdir, images, environment, *options):
    options = (*OPTIONS, f"--config.data.path={images}", f"--workdir={workdir}", *options)
    return subprocess.Popen(
        [sys.executable, "train.py", *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.multidevice
def test_two_processes_compute_what_one_does(compilation_cache, image_folder, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pair = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    pair |= compilation_cache
    processes = [
        start(tmp_path / "two", image_folder, pair | {"JAX_PROCESS_ID": i}, "--distributed")
        for i in ("0", "1")
    ]
    processes.append(start(tmp_path / "one", image_folder, compilation_cache))
    for process in processes:
        printed, _ = process.communicate(timeout=500)
        assert process.returncode == 0, printed
    two, one = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    )
    assert len(two) == 3  # two updates and the evaluation, written by one process only
    for ours, theirs in zip(two, one, strict=True):
        names = [name for name in ours if "loss" in name or name == "step"]
        np.testing.assert_allclose(
            [ours[name] for name in names], [theirs[name] for name in names], rtol=1e-4
        )
