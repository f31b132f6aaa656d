"""Autotuning: the configs that are tried, the search, and the stored winners."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
from kernels_pallas.autotune import search as search_module
from kernels_pallas.autotune.search import autotune, search
from kernels_pallas.core import config as core_config
from kernels_pallas.core import launch
from kernels_pallas.core.arg_specs import MODEL
from kernels_pallas.core.config import TUNING_DATA, from_dict, stored, tuning_key
from kernels_pallas.core.device import Device
from kernels_pallas.core.dispatch import observe
from kernels_pallas.operators import OPERATORS
from kernels_pallas.swiglu import pallas_triton
from kernels_pallas.swiglu.pallas_triton.config import Config, KernelConfig
from kernels_pallas.testing import interpret

FILES = sorted(TUNING_DATA.glob("*/*.json"))
GPU = Device("cuda", "made_up", 9.0)


def observed(op, case):
    return observe(case.bind(OPERATORS[op].function), *case.args.values())


def kernel_configs(config):
    """Returns the configs of kernels within a config."""
    fields = [getattr(config, field.name) for field in dataclasses.fields(config)]
    nested = [value for value in fields if dataclasses.is_dataclass(value)]
    return [inner for value in nested for inner in kernel_configs(value)] or [config]


@pytest.mark.parametrize("op", OPERATORS)
def test_candidates(op):
    """They differ, Triton can make their blocks, and one of them serves calls of the models."""
    case = next(case for case in OPERATORS[op].cases if MODEL in case.tags)
    call = observed(op, case)
    module = call.table["pallas_triton"].module
    candidates = list(module.candidates(call.spec, GPU))
    assert len(set(candidates)) > 1
    for config in (module.heuristic(call.spec, GPU), *candidates):
        assert type(config) is module.Config
        for kernel in kernel_configs(config):
            for name in ("chunk", "block", "value_block", "columns", "num_warps"):
                size = getattr(kernel, name, 1)
                assert size > 0
                assert size & (size - 1) == 0
    run = case.bind(OPERATORS[op].function, implementation="pallas_triton", config=candidates[-1])
    jax.eval_shape(run, *case.args.values())


@dataclasses.dataclass(frozen=True)
class TwoNumbers:
    forward: int
    backward: int = 0


def test_the_forward_kernel_is_chosen_first():
    asked = []

    def rank(configs, gradients):
        asked.append((configs, gradients))
        timed = [(c.forward + 10 * abs(c.backward - 2) * gradients, c) for c in configs]
        return sorted(timed, key=lambda pair: pair[0])

    candidates = [TwoNumbers(3, 1), TwoNumbers(2, 2), TwoNumbers(2, 3)]
    assert search(TwoNumbers(5), candidates, rank, gradients=False) == TwoNumbers(2, 0)
    assert asked == [([TwoNumbers(5), TwoNumbers(3), TwoNumbers(2)], False)]
    assert search(TwoNumbers(5), candidates, rank, gradients=True) == TwoNumbers(2, 2)
    assert asked[-1] == (
        [TwoNumbers(2, 0), TwoNumbers(2, 1), TwoNumbers(2, 2), TwoNumbers(2, 3)],
        True,
    )


def test_a_call_is_tuned(monkeypatch):
    """By the median of the times; the second argument of `interleaved` is not used."""

    def interleaved(candidates, **_):
        return {name: [float(name.count("block=64")), -9.0, 9.0] for name in candidates}

    slow, fast = KernelConfig(64), KernelConfig(32)
    monkeypatch.setattr(pallas_triton, "heuristic", lambda *_: Config(slow, slow))
    monkeypatch.setattr(pallas_triton, "candidates", lambda *_: [Config(fast, fast)])
    monkeypatch.setattr(search_module, "interleaved", interleaved)
    x = jnp.ones((2, 64), "bfloat16")
    with interpret():
        config = autotune(kernels_pallas.swiglu, x, gradients=True)
        out = kernels_pallas.swiglu(x, implementation="pallas_triton", config=config)
    np.testing.assert_allclose(out, kernels_pallas.swiglu(x), rtol=1e-2)
    assert config == Config(fast, fast)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs a machine without a GPU")
def test_there_is_nothing_to_tune_on_a_cpu():
    message = "swiglu: there is nothing to tune on cpu: 'pallas_triton' runs on cuda; 'xla' has no"
    with pytest.raises(RuntimeError, match=message):
        autotune(kernels_pallas.swiglu, jnp.ones((2, 64)))
    with pytest.raises(RuntimeError, match="'xla' has no configs"):
        autotune(kernels_pallas.swiglu, jnp.ones((2, 64)), implementation="xla")


def test_winners_are_stored_and_used(monkeypatch, tmp_path):
    monkeypatch.setattr(core_config, "TUNING_DATA", tmp_path)
    monkeypatch.setattr(launch, "local_gpu", lambda: GPU)
    case = next(case for case in OPERATORS["swiglu_mlp"].cases if MODEL in case.tags)
    call = observed("swiglu_mlp", case)
    module = call.table["pallas_triton"].module
    chosen = functools.partial(
        core_config.choose, module.TUNED_AS, module.Config, module.heuristic, call.spec
    )
    assert chosen() == module.heuristic(call.spec, GPU)
    winner = list(module.candidates(call.spec, GPU))[-1]
    path = core_config.store(module.TUNED_AS, GPU.name, call.spec, winner)
    assert path == tmp_path / "made_up" / "swiglu_mlp.pallas_triton.json"
    assert chosen() == winner != module.heuristic(call.spec, GPU)
    core_config.store(module.TUNED_AS, GPU.name, call.spec, winner)
    assert len(json.loads(path.read_text())) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_stored_winners_serve_the_cases(path):
    """Each entry is read, and belongs to a call of the models."""
    modules, keys = {}, set()
    for op, operator in OPERATORS.items():
        for case in operator.cases:
            if MODEL in case.tags:
                call = observed(op, case)
                module = call.table["pallas_triton"].module
                modules[module.TUNED_AS] = module
                keys.add((module.TUNED_AS, tuning_key(call.spec)))
    module = modules[path.stem]
    winners = stored(path.stem, module.Config, path.parent.name)
    entries = json.loads(path.read_text())
    assert len(winners) == len(entries) > 0
    for key, config in winners.items():
        assert (path.stem, key) in keys
        assert from_dict(module.Config, dataclasses.asdict(config)) == config
