import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from tests.sharding.simulated import run_on_eight_devices
from vig_jax.sharding.mesh import make_mesh
from vig_jax.sharding.rules import REPLICATE, Largest, shardings


def test_the_largest_axis_that_divides():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"))
    rule = Largest(at_least=64)
    for shape, spec in {
        (8, 16): PartitionSpec(None, "fsdp"),
        (16, 16): PartitionSpec("fsdp"),
        (3, 3, 8, 18): PartitionSpec(None, None, "fsdp"),  # 18 does not divide
        (7, 18): PartitionSpec(),
        (4, 4): PartitionSpec(),  # small
        (): PartitionSpec(),
    }.items():
        assert rule.spec(shape, mesh) == spec, shape
    assert rule.spec((8, 16), AbstractMesh((8,), ("data",))) == PartitionSpec()


def test_the_first_rule_that_matches_decides():
    tree = {"params": {"head": {"kernel": np.zeros((4, 4))}, "stem": np.zeros(4)}}
    devices = np.array(jax.devices()[:1]).reshape(1, 1)
    mesh = Mesh(devices, ("data", "fsdp"))
    rules = (("params/head/", PartitionSpec("fsdp")), ("params/", PartitionSpec("rows")))
    found = shardings(tree, mesh, rules)["params"]
    assert found["head"]["kernel"].spec == PartitionSpec("fsdp")
    assert found["stem"].spec == PartitionSpec(None)  # the mesh has no such axis
    with pytest.raises(ValueError, match="no rule matches params/stem: end the rules"):
        shardings(tree, mesh, rules[:1])
    assert all(s.is_fully_replicated for s in jax.tree.leaves(shardings(tree, mesh, REPLICATE)))
    assert all(s.is_fully_replicated for s in jax.tree.leaves(shardings(tree, make_mesh())))


@pytest.mark.multidevice
@pytest.mark.parametrize("part", ["fast", pytest.param("slow", marks=pytest.mark.slow)])
def test_split_state_on_eight_devices(part):
    run_on_eight_devices("split_state.py", part)
