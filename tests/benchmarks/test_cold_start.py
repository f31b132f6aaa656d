"""The benchmark of starts."""

import json
import subprocess

import pytest

from benchmarks import cold_start
from benchmarks.cold_start import Start, read_line, start, table

LOG = """\
Finished tracing fold_in for jit in 0.000900000 sec
Finished tracing gradients for jit in 2.500000000 sec
WARNING:2026-11-27 21:18:18:jax._src.dispatch:194: Finished jaxpr to MLIR module conversion \
jit(gradients) in 1.250000000 sec
Finished XLA compilation of jit(gradients) in 67.000000000 sec
first update done
Finished XLA compilation of jit(predict) in 3.500000000 sec
"""


def test_the_log_is_read():
    seen = Start({}, None, None, 0.0, 0.0)
    for seconds, line in enumerate(LOG.splitlines(), start=1):
        read_line(line, seconds, seen)
    assert seen.stages == {
        "trace gradients": 2.5,
        "lower gradients": 1.25,
        "compile gradients": 67,
        "compile predict": 3.5,
    }
    assert (seen.first_log, seen.first_update) == (1, 5)


def test_the_table():
    cold = Start({"compile gradients": 67.0, "trace gradients": 2.5}, 1.0, 80.0, 90.0, 120.0)
    lines = table({"cold": cold, "predict": Start({}, None, None, 3.0, 4.0)}).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "seconds",
        "before the first trace",
        "trace: gradients",
        "compile: gradients",
        "first update",
        "end of the process",
        "CPU",
    ]
    assert lines[3].split()[-1] == "67.00"
    assert lines[5].split()[-2:] == ["90.00", "3.00"]


def test_a_process_is_timed(tmp_path):
    code = "import jax; jax.jit(lambda x: x + 1)(2.0); print('first update done')"
    seen = start(["-c", code], tmp_path)
    assert 0 < seen.first_log < seen.first_update < seen.end
    assert seen.cpu > 0


def test_a_failure_is_shown(tmp_path, capsys):
    with pytest.raises(subprocess.CalledProcessError):
        start(["-c", "raise SystemExit('no such device')"], tmp_path)
    assert "no such device" in capsys.readouterr().err


@pytest.mark.slow
def test_all_commands(tmp_path, capsys):
    file = tmp_path / "seconds.json"
    small = [f"--config.model.{x}" for x in ("depth=1", "embed_dim=32", "num_heads=1")]
    page = ["--config", "configs/fashion_mnist.py", "--batch-size", "8", "--json", str(file)]
    assert cold_start.main([*page, "--", *small]) == 0
    rows = json.loads(file.read_text())
    cold, warm = (rows[f"train, {kind}"] for kind in ("cold", "warm"))
    assert {name.split()[1] for name in cold["stages"]} == set(cold_start.PROGRAMS) - {"logits"}
    assert warm["stages"]["compile gradients"] < cold["stages"]["compile gradients"]
    assert "compile logits" in rows["predict, cold"]["stages"]
    assert "first update" in capsys.readouterr().out
