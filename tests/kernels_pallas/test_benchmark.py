"""The operators' benchmark: what it prints, what it refuses, and a made-up peer."""

import dataclasses
import functools
import sys
import time
from types import SimpleNamespace

import jax
import pytest

from kernels_pallas import bidirectional_gla, gla
from kernels_pallas.benchmarks import run
from kernels_pallas.core import timing
from kernels_pallas.operators import OPERATORS

FEW = ("--repeats", "2", "--seed", "1")
SWIGLU = ("--op", "swiglu", "--case", "odd_width", *FEW)


def cells(printed):
    """Returns the table's rows, by column."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_rows(capsys):
    assert run.main([*SWIGLU]) == 0
    rows = cells(capsys.readouterr().out)
    assert [row["implementation"] for row in rows] == 2 * ["xla", "reference"]
    assert [row["pass"] for row in rows[1:3]] == ["forward", "forward + backward"]
    for row in rows:
        assert (row["operator"], row["case"]) == ("swiglu", "odd_width")
        assert float(row["ms"]) > 0
        assert float(row["GB/s"]) >= 0  # tiny: rounded to nothing
        assert row["of floor"] == "-"  # a CPU's memory is not measured
    assert {row["speed"] for row in rows if row["implementation"] == "reference"} == {"1.00x"}


def test_several_operators(capsys):
    """Lists small cases that can run here; several operators may share the name of a case."""
    assert run.main(["--op", "swiglu", "residual_norm", "--case", "odd_width", *FEW]) == 0
    rows = cells(capsys.readouterr().out)
    assert [(row["operator"], row["implementation"]) for row in rows[::2]] == [
        *(2 * [("swiglu", "xla")]),
        *(2 * [("residual_norm", "xla")]),
    ]
    assert {row["implementation"] for row in rows} == {"xla", "reference"}


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_has_cases_that_can_be_timed(op):
    """On a CPU and on a GPU, with a portable implementation at least."""
    options = run.parse(["--op", op])
    for on_gpu in (False, True):
        selected = run.select(options, on_gpu)
        assert selected
        assert {name for name, _ in selected} == {op}


def test_an_unknown_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["--case", "tinny"])
    assert "unknown case 'tinny' (known: " in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["forward", "both"])
def test_wrong_programs_are_not_timed(wrong, capsys, monkeypatch):
    make = run.make_programs

    def made(op, case, implementation):
        programs = make(op, case, implementation)
        if implementation == "reference":
            return programs
        right = getattr(programs, wrong)
        doubled = lambda *arrays: jax.tree.map(lambda x: 2.0 * x, right(*arrays))  # noqa: E731
        return dataclasses.replace(programs, **{wrong: doubled})

    monkeypatch.setattr(run, "make_programs", made)
    assert run.main([*SWIGLU]) == 1
    printed = capsys.readouterr()
    what = "forward's output 0" if wrong == "forward" else "output 0"
    message = f"swiglu odd_width xla, not timed: {what} is off by 1.0e+00, allowed 1e-05"
    assert message in printed.err
    assert ("not timed: gradient 0 is off" in printed.err) == (wrong == "both")
    assert [row["implementation"] for row in cells(printed.out)] == 2 * ["reference"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], "bfloat16"), (["--decay-dtype", "float32"], "float32")],
)
def test_type_of_the_decays(options, expected):
    options = run.parse(["--case", "tiny", "--op", "gla", "--dtype", "bfloat16", *options])
    [(_, case)] = run.select(options, on_gpu=False)
    assert {name: x.dtype.name for name, x in case.args.items()} == {
        **dict.fromkeys(("q", "k", "v"), "bfloat16"),
        "log_decay": expected,
    }
    assert (case.arrays()[3] <= 0).all()


class Peer:
    """Replaces `kernels_pallas.benchmarks.fla_peer`."""

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
    monkeypatch.setattr(run, "load_peer", lambda name: Peer() if name == "fla" else None)
    assert run.main(["--op", "bidirectional_gla", "--case", "tiny", *FEW, "--peers", "fla"]) == 0
    printed = capsys.readouterr()
    assert "fla on tiny: output off by 5.0e-01, gradients by at most " in printed.err
    rows = cells(printed.out)
    both, one, *_ = (row for row in rows if row["implementation"].startswith("fla"))
    assert [both["implementation"], one["implementation"]] == ["fla", "fla, one direction"]
    assert float(both["ms"]) >= 20
    assert float(both["speed"][:-1]) < 1
    assert [one[name] for name in ("GB/s", "of floor", "speed")] == 3 * ["-"]


@pytest.mark.parametrize(
    ("backend", "message"),
    [("cpu", "need a CUDA GPU, and JAX sees none"), ("gpu", "pip install torch fla-core")],
)
def test_peer_that_cannot_be_had(backend, message, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "kernels_pallas.benchmarks.fla_peer", raising=False)
    with pytest.raises(SystemExit, match=message):
        run.main(["--case", "tiny", "--peers", "fla"])


def test_peer_without_the_type(capsys):
    with pytest.raises(SystemExit):
        run.main(["--peers", "fla", "--dtype", "float64"])
    assert "has no float64" in capsys.readouterr().err


def test_samples_alternate():
    calls = []
    candidates = {name: functools.partial(lambda n, c: calls.append((n, c)), name) for name in "ab"}
    seconds = timing.interleaved(candidates, repeats=2, sample_seconds=0.0)
    # Compiled, timed once, then in rounds: a call to settle and a sample of at least one.
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
