"""What is tried when tuning, and what was found: the stored winners."""

import json

import pytest

from kernels_pallas.autotune import tuning
from kernels_pallas.gla.arg_specs import WORKLOADS
from kernels_pallas.gla.pallas_triton import config as pallas_triton_config
from kernels_pallas.gla.pallas_triton.config import TUNING_DATA, as_entry, heuristic

SPECS = [spec for workload in WORKLOADS.values() for spec in tuning._specs(workload)]
FILES = sorted(TUNING_DATA.glob("*/*.json"))


def launches(config):
    return config.forward, config.training, config.backward


def check(config, call):
    """A launch is what the kernels take; the mixer's gradients have one place each."""
    for launch in launches(config):
        for size in (launch.chunk, launch.value_block, launch.num_warps, launch.exact_num_warps):
            assert size & (size - 1) == 0
        assert launch.chunk >= 16
        assert min(launch.value_block, launch.num_warps, launch.num_stages, launch.segments) >= 1
    if "gates" in call:
        assert not config.backward.split_directions
        assert config.backward.value_block >= 64


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_candidates(spec):
    best = heuristic(spec)
    forward = tuning._forward_candidates(spec)
    training = tuning._training_candidates(spec, best)
    for candidates in (forward, training):
        assert len(set(candidates)) == len(candidates) > 1
        for config in candidates:
            check(config, as_entry(spec, config)["call"])
    assert {config.forward for config in training} == {best.forward}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_stored_winners(path):
    entries = json.loads(path.read_text())
    stored = pallas_triton_config._stored(path.parent.name)
    assert len(stored) == len(entries) > 0
    known = {tuple(as_entry(spec, heuristic(spec))["call"]) for spec in SPECS}
    for call, config in stored.items():
        assert call in known
        check(config, call)


def test_there_are_stored_winners():
    assert FILES
