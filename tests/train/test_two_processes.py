"""A run of a model on several processes: the same as on one, also if their number changes."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from kernels_pallas.testing import rms_relative_error
from tests import several
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.train.supervise import LOST_STATUS

OPTIONS = (
    "--config=configs/fashion_mnist.py",
    "--config.model.img_size=16",
    "--config.model.embed_dim=32",  # the widest weight is just large enough to be split
    "--config.model.depth=1",
    "--config.model.num_heads=1",
    "--config.model.drop_path_rate=0.5",
    "--config.model.dtype=float32",
    "--config.data.source=image_folder",
    "--config.data.image_size=16",
    "--config.data.erase_probability=0.5",
    "--config.data.workers=0",
    "--config.train.batch_size=16",
    "--config.train.epochs=8",
    "--config.train.eval_every_epochs=8",
    "--config.train.checkpoint_every_steps=2",
    "--config.train.log_every_steps=1",
    "--config.train.lost_after_seconds=5",
)


def kill_child(process):
    """Kills a process of several, which is a child of its supervisor."""
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in tasks.read_text().split():
            os.kill(int(child), signal.SIGKILL)


def records(workdir):
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else ()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.timeout(1200)
def test_four_processes_are_continued_by_two_and_by_one(compilation_cache, image_folder, tmp_path):
    def start(count, workdir):
        split = f"--config.mesh.fsdp={min(count, 2)}"
        options = (*OPTIONS, split, f"--config.data.path={image_folder}", f"--workdir={workdir}")
        environments = [compilation_cache] * count
        return several.start(count, "train.py", *options, environments=environments)

    whole, workdir = tmp_path / "whole", tmp_path / "run"
    assert several.ended(start(1, whole))[0][0] == 0
    for count, victim, step in ((4, 2, 4), (2, 0, 9)):
        processes = start(count, workdir)
        while all(record["step"] < step for record in records(workdir)):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        kill_child(processes[victim])
        found = several.ended(processes, timeout=400)
        for number, (status, printed) in enumerate(found):
            assert "Traceback" not in " ".join(printed), printed
            assert status == (137 if number == victim else LOST_STATUS), printed
    ((status, printed),) = several.ended(start(1, workdir))
    assert status == 0, printed
    assert any("resuming from the checkpoint of step" in line for line in printed)

    ours, theirs = records(workdir), records(whole)
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for name in ("train/loss", "train/grad_norm"):
        np.testing.assert_allclose(
            [record[name] for record in ours if name in record],
            [record[name] for record in theirs if name in record],
            rtol=1e-4,
        )
    assert ours[-1]["eval/loss"] == pytest.approx(theirs[-1]["eval/loss"], rel=1e-4)
    for ema in (False, True):
        ours, theirs = (
            load_for_inference(folder / "checkpoints" / "16", ema=ema).variables
            for folder in (workdir, whole)
        )
        errors = jax.tree.map(rms_relative_error, ours, theirs)
        assert max(jax.tree.leaves(errors)) < 1e-3
