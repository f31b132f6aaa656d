"""The operator's benchmark: what it prints, what it refuses, and a made-up peer."""

import functools
import sys
import time
from types import SimpleNamespace

import jax
import pytest

from kernels_pallas import bidirectional_gla, gla
from kernels_pallas.benchmarks import run
from kernels_pallas.core import timing
from kernels_pallas.gla.arg_specs import WORKLOADS

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
    assert "tiny xla_chunked, not timed: output is off by 1.0e+00, allowed 1e-05" in printed.err
    assert "not timed: gradient 3 is off" in printed.err
    assert [row["implementation"] for row in cells(printed.out)] == 2 * ["reference"]


@pytest.mark.parametrize("wrong_pass", ["forward", "forward_backward"])
def test_what_is_timed_is_checked(wrong_pass, capsys, monkeypatch):
    """A program that is wrong for the whole batch alone, as with a tiling of its own."""
    build = getattr(run._Case, wrong_pass)

    def wrong(case, implementation):
        function = build(case, implementation)

        def called(*arrays):
            factor = 2.0 if implementation == "xla_chunked" and len(arrays[0]) == 3 else 1.0
            return jax.tree.map(lambda x: factor * x, function(*arrays))

        return called

    monkeypatch.setattr(run._Case, wrong_pass, wrong)
    monkeypatch.setitem(WORKLOADS, "three", run.Workload("three", 3, 5, 1, 4, 8))
    assert run.main(["--workload", "three", *TINY]) == 1
    what = "forward's output" if wrong_pass == "forward" else "output"
    assert f"three xla_chunked, not timed: {what} is off by 1.0e+00" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], "bfloat16"), (["--decay-dtype", "float32"], "float32")],
)
def test_type_of_the_decays(options, expected, capsys, monkeypatch):
    given = []

    def seen(*arrays, implementation):
        given.append((implementation, arrays[0].dtype.name, arrays[3].dtype.name))
        return gla(*arrays, implementation=implementation)

    monkeypatch.setattr(run, "gla", seen)
    asked = ["--workload", "tiny", *TINY, "--op", "gla", "--dtype", "bfloat16", *options]
    assert run.main(asked) == 0
    # Traced once per pass, although checked and timed.
    chunked = [types for implementation, *types in given if implementation == "xla_chunked"]
    assert chunked == 2 * [["bfloat16", expected]]
    head = capsys.readouterr().out.splitlines()[0]
    assert head.startswith(f"bfloat16, {expected} typical decays, seed 1,")


class Peer:
    """Stands for `kernels_pallas.benchmarks.fla_peer`."""

    def versions(self):
        return "fla 0.0"

    def results(self, op, arguments, cotangent, images):
        assert images == 2
        function = {"gla": gla, "bidirectional_gla": bidirectional_gla}[op]
        out, pullback = jax.vjp(function, *arguments)
        return 1.5 * out, pullback(cotangent)

    def candidates(self, op, sets, cotangents):
        assert op == "bidirectional_gla"
        assert len(sets[0]) == 5
        assert cotangents is None or cotangents[0].shape == sets[0][2].shape
        nap = functools.partial(lambda seconds, calls: time.sleep(seconds * calls))
        return {"fla": functools.partial(nap, 0.02), "fla, one direction": lambda calls: None}


def test_peer(capsys, monkeypatch):
    monkeypatch.setattr(run, "_peer", lambda name: Peer() if name == "fla" else None)
    assert run.main(["--workload", "tiny", *TINY, "--peers", "fla"]) == 0
    printed = capsys.readouterr()
    assert "fla on tiny: output off by 5.0e-01, gradients by at most " in printed.err
    rows = cells(printed.out)
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
    candidates = {name: functools.partial(lambda n, c: calls.append((n, c)), name) for name in "ab"}
    seconds = timing.interleaved(candidates, repeats=2, sample_seconds=0.0)
    # Compiled, timed once, then in turns: a call to settle and a sample of at least one.
    assert "".join(name for name, _ in calls) == "aabb" + 2 * "aabb"
    assert {count for _, count in calls} == {1}
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 2, "b": 2}


def test_kernels(monkeypatch):
    """Only what a GPU's streams ran counts, per call."""
    assert timing.kernels(lambda calls: None) == []  # the profile of a CPU

    def line(name, **nanoseconds):
        events = [
            SimpleNamespace(name=n, duration_ns=t) for n, ts in nanoseconds.items() for t in ts
        ]
        return SimpleNamespace(name=name, events=events)

    planes = [
        SimpleNamespace(name="/host:CPU", lines=[line("Stream", host=[9e9])]),
        SimpleNamespace(
            name="/device:GPU:0",
            lines=[
                line("Stream #1", scan=[1e3, 3e3, 2e3, 2e3], norm=[5e3, 7e3]),
                line("Stream #2", norm=[4e3, 8e3]),
                line("XLA Ops", scan=[9e9]),
            ],
        ),
    ]
    read = lambda path: SimpleNamespace(planes=planes)  # noqa: E731
    monkeypatch.setattr(jax.profiler.ProfileData, "from_file", read)
    assert timing.kernels(lambda calls: None, calls=2) == [
        timing.Kernel("norm", 2.0, 12.0),
        timing.Kernel("scan", 2.0, 4.0),
    ]
