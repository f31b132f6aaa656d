from types import SimpleNamespace

import jax
import numpy as np

from vig_jax.sharding.mesh import make_mesh
from vig_jax.sharding.xla_options import overlap_options


def test_only_several_gpus_have_options_and_xla_knows_them():
    assert overlap_options(make_mesh()) is None
    unchecked = getattr(overlap_options, "__wrapped__", overlap_options)  # without type checks
    gpu = SimpleNamespace(platform="gpu")
    meshes = [SimpleNamespace(devices=np.array([gpu] * n), size=n) for n in (1, 2)]
    one, two = map(unchecked, meshes)
    assert one is None
    assert two
    # XLA refuses an unknown name on every platform.
    jax.jit(lambda x: x + 1, compiler_options=two).lower(1.0).compile()
