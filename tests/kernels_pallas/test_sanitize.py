"""The cases of `make sanitize`, as far as this is possible without a GPU."""

import importlib.util
from pathlib import Path

import pytest

import kernels_pallas
from kernels_pallas.core.dispatch import observe
from kernels_pallas.testing import interpret

SPEC = importlib.util.spec_from_file_location("sanitize", Path(__file__).parent / "sanitize.py")
sanitize = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sanitize)


def test_the_kernels_serve_every_case_and_every_operator_has_one():
    tried = set()
    for title, run, arrays in sanitize.cases():
        call = observe(run, *arrays)
        assert call.table["pallas_triton"].supports(call.spec, None) is None
        tried.add(title.replace(",", "").split()[0])
    without_kernels = {"IMPLEMENTATIONS", "autotune", "gla_step", "implementations"}
    assert tried == set(kernels_pallas.__all__) - without_kernels


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.1, False)])
def test_errors_are_seen(factor, right):
    _, run, arrays = next(case for case in sanitize.cases() if case[0] == "swiglu")
    wrong = lambda x, implementation: (  # noqa: E731
        run(x, implementation=implementation) * (factor if implementation == sanitize.NAME else 1)
    )
    with interpret():
        forward, gradient = sanitize.errors(("swiglu", wrong, arrays))
    assert (forward <= 1, gradient <= 1) == (right, right)
