"""A copy of the package works below another one, without a change and without the original."""

import importlib
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import kernels_pallas
from kernels_pallas.testing import rms_relative_error


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The copy, imported while the original cannot be."""
    target = tmp_path / "other" / "kernels_pallas"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(kernels_pallas.__file__).parent, target, ignore=ignore)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.partition(".")[0] == "kernels_pallas"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kernels_pallas", None)
    yield importlib.import_module("other.kernels_pallas")
    for name in [n for n in sys.modules if n.partition(".")[0] == "other"]:
        del sys.modules[name]


def test_a_copy_below_another_package_runs(copy):
    q, k, v, g = jax.random.normal(jax.random.key(0), (4, 1, 8, 2, 4))
    log_decay = jax.nn.log_sigmoid(g)

    def total(op, q):
        return jnp.sum(jnp.sin(op(q, k, v, log_decay)))

    assert copy.__name__ == "other.kernels_pallas"
    ours, theirs = (jax.grad(lambda q, op=m.gla: total(op, q))(q) for m in (copy, kernels_pallas))
    assert rms_relative_error(ours, theirs) == 0
    # Every module imports, those of the kernels, of tuning and of tests as well.
    folder = Path(copy.__file__).parent
    for file in folder.rglob("*.py"):
        parts = file.relative_to(folder.parents[1]).with_suffix("").parts
        if parts[-1] not in ("__main__", "fla_peer"):
            importlib.import_module(".".join(parts).removesuffix(".__init__"))
    assert {n for n in sys.modules if n.partition(".")[0] == "kernels_pallas"} == {"kernels_pallas"}
