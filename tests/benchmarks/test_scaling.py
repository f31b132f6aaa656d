"""The scaling benchmark: its order, its time, and what it does on simulated devices."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import scaling, scaling_cases, scaling_processes
from benchmarks.scaling_cases import Measured

ROOT = Path(__file__).parents[2]


class Toys:
    """Replaces compiling and measuring, on eight made-up devices."""

    def __init__(self, monkeypatch):
        self.lowered, self.measured = [], []
        self.lower_seconds = self.measure_seconds = self.clock = 0.0
        self.wrong = self.broken = ""
        device = jax.devices()[0]
        clock = SimpleNamespace(monotonic=lambda: self.clock, sleep=time.sleep)
        monkeypatch.setattr(scaling, "time", clock)
        monkeypatch.setattr(jax, "devices", lambda: [device] * 8)
        monkeypatch.setattr(scaling_cases, "work_of", self.work_of)
        monkeypatch.setattr(scaling_cases, "measure", self.measure)

    def work_of(self, case, devices, *, small):
        def lower():
            self.lowered.append((case.name, len(devices)))
            self.clock += self.lower_seconds
            if case.name == self.broken:
                raise ValueError("no such shape")
            return SimpleNamespace(compile=lambda: "program")

        return SimpleNamespace(case=case, mesh=SimpleNamespace(size=len(devices)), lower=lower)

    def measure(self, work, inputs, *, seconds):
        assert work.compiled == "program"
        case, count = work.case, work.mesh.size
        self.measured.append((case.name, count))
        self.clock += self.measure_seconds
        value = np.array(2.0 if case.name == self.wrong and count > 1 else 1.0)
        return Measured(self.row(case.name, count), {"loss": value}, [])

    @staticmethod
    def row(name, count):
        row = {"case": name, "gpus": count, "images": 8, "img_per_s": 100.0 * count**0.5}
        row |= {"ms": 1.0, "waited_ms": 2.0, "state_bytes": None, "program_bytes": 3}
        return row | {"exposed_share": None}


@pytest.fixture
def toys(monkeypatch):
    return Toys(monkeypatch)


def run(folder, *options):
    status = scaling.main(["--out", str(folder), *options])
    return status, json.loads((folder / "rows.json").read_text())


def test_the_order_and_the_columns(toys, tmp_path, capsys):
    toys.broken = "vig_h_t UperNet training"
    status, written = run(tmp_path / "new", "--only", "vig_b", "UperNet", "--gpus", "1", "2", "8")
    assert status == 1  # one failed
    fsdp, whole, broken = "vig_b training, fsdp", "vig_b training", toys.broken
    order = [(fsdp, 8), (whole, 8), (whole, 1), (broken, 8), (broken, 1)]
    order += [(fsdp, 2), (whole, 2), (broken, 2)]
    assert toys.lowered == order
    assert toys.measured == [pair for pair in order if pair[0] != broken]
    assert [text.split(":")[0] for text in written["failed"]] == [
        f"{broken} on {n}" for n in (8, 1, 2)
    ]
    rows = {(row["case"], row["gpus"]): row for row in written["rows"]}
    assert rows[fsdp, 8]["efficiency"] == pytest.approx(8**0.5 / 8)  # of vig_b on one GPU
    assert rows[whole, 1]["efficiency"] == 1
    lines = capsys.readouterr().out.splitlines()
    table = [line[:34].strip() for line in lines[-5:]]
    assert table == [fsdp, fsdp, whole, whole, whole]
    assert "2.83  0.354" in lines[-1]


def test_what_does_not_fit_into_the_time_is_dropped(toys, tmp_path):
    toys.lower_seconds, toys.measure_seconds = 5.0, 4.0
    status, written = run(tmp_path, "--minutes", "1")
    assert status == 0
    assert len(toys.lowered) == 7  # until 55 % of the time have passed
    names = [(row["case"], row["gpus"]) for row in written["rows"]]
    assert names == toys.lowered[:6]  # each takes 4 s, and needs 20 % more to begin
    assert toys.clock <= 60
    dropped = written["dropped"]
    assert len(set(dropped)) == len(dropped) == 32 - 6
    assert "vig_s training on 2" in dropped


def test_results_that_differ(toys, tmp_path):
    toys.wrong = "vig_b training"
    status, written = run(tmp_path, "--only", "vig_b training", "--gpus", "1", "4")
    assert status == 1
    assert written["failed"] == ["vig_b training on 4: differs from one GPU by {'loss': 1.0}"]


def test_what_cannot_be_run(toys, tmp_path, capsys):
    assert scaling.main(["--out", str(tmp_path), "--gpus", "9"]) == 1
    assert "--gpus is 9; there are 8: give numbers from 1 to 8" in capsys.readouterr().err
    assert scaling.main(["--out", str(tmp_path), "--only", "resnet"]) == 1
    assert "--only resnet fits none of the rows (vig_s training, " in capsys.readouterr().err


def test_groups_of_processes_are_compared_with_one(toys, monkeypatch, tmp_path, capsys):
    def run_groups(options, counts):
        assert counts == [8, 1, 4]  # the extremes first
        groups = []
        for count in counts:
            group = scaling_processes.Group(count, tmp_path / f"{count}_processes", [])
            groups.append(group)
            group.folder.mkdir()
            (group.folder / "0.log").write_text("reading\nValueError: no such shape\n")
            if count == 4:
                continue  # it has failed
            row = toys.row("vig_s training", count)
            found = {(row["case"], count): Measured(row, {"loss": np.array(1.0 + count)}, [])}
            scaling_processes.write_outputs(found, group.folder)
            written = {"failed": [], "dropped": [f"vig_b training on {count}"], "rows": [row]}
            (group.folder / "rows.json").write_text(json.dumps(written))
        return groups

    monkeypatch.setattr(scaling_processes, "run_groups", run_groups)
    status, written = run(tmp_path, "--processes", "--gpus", "1", "4", "8")
    assert status == 1
    assert written["failed"] == [
        "4 processes: reading ValueError: no such shape",
        "vig_s training on 8: differs from one GPU by {'loss': 3.5}",
    ]
    assert written["dropped"] == ["vig_b training on 8", "vig_b training on 1"]
    assert [row["gpus"] for row in written["rows"]] == [8, 1]
    assert written["rows"][0]["efficiency"] == pytest.approx(8**0.5 / 8)
    assert "2.83  0.354" in capsys.readouterr().out.splitlines()[-1]


def run_on_two_simulated_devices(folder, *options):
    """Returns the lines that the benchmark prints, and what it writes."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-m", "benchmarks.scaling", "--tiny", "--sample-seconds", "0.01"]
    done = subprocess.run(
        [*command, *options, "--out", str(folder)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines(), json.loads((folder / "rows.json").read_text())


@pytest.mark.slow
@pytest.mark.multidevice
def test_one_process_per_device(tmp_path):
    _, written = run_on_two_simulated_devices(tmp_path, "--processes", "--only", "JPEG")
    assert {(row["case"], row["gpus"]) for row in written["rows"]} == {
        ("vig_s training", 1),
        ("vig_s training", 2),
        ("vig_s training, JPEG", 2),
    }


@pytest.mark.slow
@pytest.mark.multidevice
def test_two_simulated_devices(tmp_path):
    lines, written = run_on_two_simulated_devices(tmp_path, "--only", "JPEG", "fsdp")
    rows = {row["gpus"]: row for row in written["rows"] if row["case"] == "vig_s training"}
    assert set(rows) == {1, 2}
    (files,) = (row for row in written["rows"] if row["case"] == "vig_s training, JPEG")
    assert (files["gpus"], files["images"]) == (2, rows[2]["images"])
    assert files["efficiency"] == pytest.approx(files["img_per_s"] / rows[1]["img_per_s"] / 2)
    assert rows[2]["images"] == 2 * rows[1]["images"]
    assert rows[2]["state_bytes"] == rows[1]["state_bytes"] > 0
    assert set(rows[2]["errors"]) == {"loss", "grad_norm"}
    plain, split = (
        next(row for row in written["rows"] if (row["case"], row["gpus"]) == (name, 2))
        for name in ("vig_b training", "vig_b training, fsdp")
    )
    assert split["state_bytes"] < 0.7 * plain["state_bytes"]  # small arrays are whole
    assert split["errors"]["loss"] < 1e-4
    assert lines[-1].startswith("vig_s training, JPEG")
