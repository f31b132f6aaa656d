"""The operator's benchmark: what it prints, what it refuses, and a made-up peer."""

import functools
import sys
import time

import jax
import pytest

from kernels_pallas import bidirectional_gla, gla
from kernels_pallas.benchmarks import run, timing
from kernels_pallas.gla.workloads import WORKLOADS

TINY = ("--repeats", "2", "--seed", "1", "--implementation", "xla_chunked", "reference")


def cells(printed):
    """The table's rows, by column."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_rows(capsys):
    assert run.main(["--workload", "tiny", *TINY]) == 0
    rows = cells(capsys.readouterr().out)
    assert [row["implementation"] for row in rows] == 2 * ["xla_chunked", "reference"]
    assert [row["pass"] for row in rows[1:3]] == [
        "bidirectional_gla, forward",
        "bidirectional_gla, forward + backward",
    ]
    for row in rows:
        assert float(row["ms"]) > 0
        assert float(row["GB/s"]) >= 0  # tiny: rounded to nothing
        assert row["of floor"] == "-"  # a CPU's memory is not measured
    assert {row["speed"] for row in rows if row["implementation"] == "reference"} == {"1.00x"}


def test_a_workload_knows_its_operator(capsys, monkeypatch):
    assert WORKLOADS["lm_2048"].op == "gla"
    monkeypatch.setitem(WORKLOADS, "lm_2048", run.Workload("lm_2048", 1, 5, 1, 4, 8, op="gla"))
    assert run.main(["--workload", "lm_2048", "--workload", "tiny", *TINY]) == 0
    passes = [row["pass"].split(",")[0] for row in cells(capsys.readouterr().out)]
    assert passes == 4 * ["gla"] + 4 * ["bidirectional_gla"]
    assert run.main(["--workload", "lm_2048", *TINY, "--op", "bidirectional_gla"]) == 0
    assert "| gla," not in capsys.readouterr().out


def test_wrong_results_are_not_timed(capsys, monkeypatch):
    doubled = lambda *arrays, implementation: (  # noqa: E731
        gla(*arrays, implementation=implementation) * (1 + (implementation != "reference"))
    )
    monkeypatch.setattr(run, "gla", doubled)
    assert run.main(["--workload", "tiny", *TINY, "--op", "gla"]) == 1
    printed = capsys.readouterr()
    assert "tiny xla_chunked: output is off by 1.0e+00, allowed 1e-05" in printed.err
    assert "tiny xla_chunked: gradient 3 is off" in printed.err
    assert not printed.out


class Peer:
    """Stands for `kernels_pallas.benchmarks.fla_peer`."""

    def versions(self):
        return "fla 0.0"

    def results(self, op, arguments, cotangent):
        function = {"gla": gla, "bidirectional_gla": bidirectional_gla}[op]
        out, pullback = jax.vjp(function, *arguments)
        return 1.5 * out, pullback(cotangent)

    def contestants(self, op, sets, cotangents):
        assert op == "bidirectional_gla"
        assert len(sets[0]) == 5
        assert cotangents is None or cotangents[0].shape == sets[0][2].shape
        nap = functools.partial(lambda seconds, calls: time.sleep(seconds * calls))
        return {"fla": functools.partial(nap, 0.02), "fla, one direction": lambda calls: None}


def test_peer(capsys, monkeypatch):
    monkeypatch.setattr(run, "_peer", lambda name: Peer() if name == "fla" else None)
    assert run.main(["--workload", "tiny", *TINY, "--peers", "fla"]) == 0
    printed = capsys.readouterr().out
    assert "fla on tiny: output off by 5.0e-01, gradients by at most " in printed
    rows = cells(printed)
    assert [row["implementation"] for row in rows[2:4]] == ["fla", "fla, one direction"]
    assert float(rows[2]["ms"]) >= 20
    assert float(rows[2]["speed"][:-1]) < 1
    assert [rows[3][name] for name in ("GB/s", "of floor", "speed")] == 3 * ["-"]


@pytest.mark.parametrize(
    ("backend", "message"),
    [("cpu", "need a CUDA GPU, and JAX sees none"), ("gpu", "pip install torch fla-core")],
)
def test_peer_that_cannot_be_had(backend, message, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "kernels_pallas.benchmarks.fla_peer", raising=False)
    with pytest.raises(SystemExit, match=message):
        run.main(["--workload", "tiny", "--peers", "fla"])


def test_peer_without_the_type(capsys):
    with pytest.raises(SystemExit):
        run.main(["--peers", "fla", "--dtype", "float64"])
    assert "has no float64" in capsys.readouterr().err


def test_samples_alternate():
    calls = []
    contestants = {
        name: functools.partial(lambda n, c: calls.append((n, c)), name) for name in "ab"
    }
    seconds = timing.interleaved(contestants, repeats=2, sample_seconds=0.0)
    # Compiled, timed once, then in turns: a call to settle and a sample of at least one.
    assert "".join(name for name, _ in calls) == "aabb" + 2 * "aabb"
    assert {count for _, count in calls} == {1}
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 2, "b": 2}
