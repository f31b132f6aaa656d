"""Choosing the implementation that serves a call, and logging the choice."""

import dataclasses
import inspect
import logging

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas.core import dispatch as dispatch_module
from kernels_pallas.core.device import Device
from kernels_pallas.core.dispatch import Implementation

dispatch = inspect.unwrap(dispatch_module.dispatch)  # without the tests' type checker


def implementation(name, value, reason=None, platforms=None, error=None):
    def run(spec, x):
        if error is not None:
            raise error
        return x + value

    return Implementation(name, lambda spec, device: reason, run, platforms)


def call(candidates, choice=None):
    table = {candidate.name: candidate for candidate in candidates}
    x = jnp.float32(0)
    return dispatch("op", "a spec", (x,), implementation=choice, table=table)


def test_the_first_that_serves_wins():
    assert call([implementation("a", 1), implementation("b", 2)]) == 1
    assert call([implementation("a", 1, reason="too wide"), implementation("b", 2)]) == 2


def test_an_implementation_can_lead_on_a_gpu(monkeypatch):
    """Only where no name is given; a name and a sequence keep their order."""
    faster = dataclasses.replace(
        implementation("b", 2), leads=lambda spec, device: device.compute_capability == 9.0
    )
    candidates = [implementation("a", 1), faster]
    for capability, expected in ((9.0, 2), (10.0, 1)):
        gpu = Device("cuda", "made_up", capability)
        monkeypatch.setattr(dispatch_module, "target_device", lambda gpu=gpu: gpu)
        assert call(candidates) == expected
        assert call(candidates, choice=("a", "b")) == 1
    monkeypatch.setattr(dispatch_module, "target_device", lambda: None)
    assert call(candidates) == 1


def test_the_implementation_that_a_config_is_for_comes_first():
    """Also before one that leads."""

    class Config:
        pass

    def run(spec, x, config=None):
        return x + (1 if config is None else 3)

    tuned = Implementation("a", lambda spec, device: None, run, config_type=Config)
    table = {"b": implementation("b", 2), "a": tuned}
    x = jnp.float32(0)
    for config, expected in ((None, 2), (Config(), 3)):
        out = dispatch("op", "a spec", (x,), implementation=None, config=config, table=table)
        assert out == expected


def test_not_implemented_falls_through():
    late = implementation("a", 1, error=NotImplementedError("no such tile"))
    assert call([late, implementation("b", 2)]) == 2
    assert call([late, implementation("b", 2)], choice=("a", "b")) == 2


def test_other_errors_do_not_fall_through():
    broken = implementation("a", 1, error=RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        call([broken, implementation("b", 2)])


def test_a_name_alone_never_falls_through():
    candidates = [implementation("a", 1, reason="too wide"), implementation("b", 2)]
    with pytest.raises(NotImplementedError, match="op: 'a' cannot run this call: too wide"):
        call(candidates, choice="a")
    assert call(candidates, choice="b") == 2


def test_sequences_are_tried_in_order():
    candidates = [implementation("a", 1), implementation("b", 2), implementation("c", 3, "no")]
    assert call(candidates, choice=("b", "a")) == 2
    assert call(candidates, choice=["c", "a"]) == 1
    with pytest.raises(NotImplementedError, match="'c' cannot run this call: no"):
        call(candidates, choice=["c"])


def test_neither_name_nor_sequence():
    with pytest.raises(TypeError, match="must be a name, a sequence of names or None, got 3"):
        call([implementation("a", 1)], choice=3)


@pytest.mark.parametrize("error", [None, NotImplementedError("no such tile")])
def test_platforms_are_chosen_when_lowering(error):
    candidates = [
        implementation("cuda_only", 1, platforms=("cuda",), error=error),
        implementation("portable", 2),
    ]
    assert call(candidates) == 2  # these tests run on CPU

    def run(x):
        table = {candidate.name: candidate for candidate in candidates}
        return dispatch("op", "a spec", (x,), implementation=None, table=table)

    text = {
        platform: jax.jit(run).trace(1.0).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    }
    assert "dense<2.0" in text["cpu"]
    assert ("dense<1.0" in text["cuda"]) == (error is None)
    assert ("dense<2.0" in text["cuda"]) == (error is not None)


def test_sequences_without_a_portable_one_act_as_a_name_alone():
    candidates = [
        implementation("a", 1, platforms=("cuda",), error=NotImplementedError("no such tile")),
        implementation("b", 2, platforms=("cuda",)),
    ]
    assert jax.jit(lambda: call(candidates, choice=["b"]))() == 2
    assert call(candidates, choice=["a", "b"]) == 2
    with pytest.raises(NotImplementedError, match="'a' cannot run this call: no such tile"):
        call(candidates, choice=["a"])


def test_the_choice_is_logged_once(caplog):
    dispatch_module._log_choice.cache_clear()
    candidates = [implementation("a", 1, reason="too wide"), implementation("b", 2)]
    with caplog.at_level(logging.INFO, logger="kernels_pallas"):
        call(candidates)
        call(candidates)
    assert [record.getMessage() for record in caplog.records] == ["op: using b; not a: too wide"]


def logged(candidates, caplog):
    """Returns what the choice for the local platform logs, with levels."""
    dispatch_module._log_choice.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="kernels_pallas"):
        call(candidates)
    # Outside of a trace only one branch is taken, depending on the version of JAX.
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    return [line for line in lines if "when lowered for cuda" not in line[1]]


def test_one_line_for_all_operators_where_no_kernel_can_run(caplog):
    dispatch_module._log_platform.cache_clear()
    no_kernel = [implementation("a", 1, platforms=("cuda",)), implementation("b", 2)]
    wide = [implementation("a", 1, reason="too wide", platforms=("cuda",)), implementation("c", 2)]
    assert logged(no_kernel, caplog) == [
        ("DEBUG", "op: using b"),
        ("INFO", "op: using b; no operator has kernels for cpu"),
    ]
    assert logged(no_kernel, caplog) == [("DEBUG", "op: using b")]
    assert logged(wide, caplog) == [("DEBUG", "op: using c; not a: too wide")]


def test_a_reason_of_the_local_platform_is_logged_at_info(caplog):
    candidates = [
        implementation("a", 1, reason="too wide", platforms=("cpu",)),
        implementation("b", 2),
    ]
    assert logged(candidates, caplog) == [("INFO", "op: using b; not a: too wide")]
