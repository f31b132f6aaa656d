"""The base class of operator tests: the cases and the checks that all operators share."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ..core import mosaic
from ..core.accuracy import rms_relative_error
from ..core.arg_specs import MODEL, Case, on_device
from ..core.derivatives import is_float, vjp_of_floats
from ..core.dispatch import Call, observe
from ..core.launch import interpret
from ..core.types import float32_or_wider
from ..operators import OPERATORS
from .launches import launches
from .tolerances import TOLERANCES

on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA GPU")
"""Skips a test on machines without a GPU; such tests are marked `gpu` too."""

with_mosaic = pytest.mark.skipif(mosaic.plgpu is None, reason=f"{mosaic.unsupported(None)}")
"""Skips a test of Mosaic kernels on a JAX without a backend for them."""

Run = Callable[..., Any]


class OpTest:
    """Tests of one operator, made from its `arg_specs`.

    A subclass names the operator and says what differs. Everything is compared with the operator's
    reference in float64, and the reference with `formula`.

    Attributes:
        op: The operator's name.
        backend: The implementation in kernels that is tested.
        portable: The implementations that are tested besides, on this machine.
        portable_cases: The number of cases that these are tested with; None for all.
        exact: Outputs must be equal to those of the reference.
        wide_outputs: Outputs are float32 for narrower arrays.
        twice: The operator with kernels can be differentiated twice.
        forward_launches: Kernels that a call without derivatives launches.
        gradient_launches: Kernels that a call with gradients launches.
        remat_launches: Kernels that a call with gradients launches under `jax.checkpoint`.
    """

    op: ClassVar[str]
    backend: ClassVar[str] = "pallas_triton"
    portable: ClassVar[Sequence[str]] = ("xla",)
    portable_cases: ClassVar[int | None] = 3
    exact: ClassVar[bool] = False
    wide_outputs: ClassVar[bool] = False
    twice: ClassVar[bool] = False
    forward_launches: ClassVar[Sequence[str]]
    gradient_launches: ClassVar[Sequence[str]]
    remat_launches: ClassVar[Sequence[str]]

    def formula(self, case: Case, *arrays: np.ndarray) -> Any:
        """Computes the output in numpy's float64 by the definition.

        Args:
            case: The call.
            *arrays: Its arrays in float64.
        """
        raise NotImplementedError

    @property
    def function(self) -> Run:
        """Returns the operator."""
        return OPERATORS[self.op].function

    def cases(self, *, model: bool) -> list[Case]:
        """Returns the models' cases, or the small ones."""
        return [case for case in OPERATORS[self.op].cases if (MODEL in case.tags) == model]

    def call(self, case: Case) -> Call:
        """Returns what implementations see of a case."""
        key = (self.op, _key(case))
        if key not in _calls:
            with jax.enable_x64(case.dtype == np.float64):
                _calls[key] = observe(case.bind(self.function), *case.args.values())
        return _calls[key]

    def served(self, cases: Iterable[Case]) -> list[Case]:
        """Returns the cases that the kernels serve."""
        found = []
        for case in cases:
            call = self.call(case)
            if call.table[self.backend].supports(call.spec, None) is None:
                found.append(case)
        return found

    def cases_of(self, test: str) -> list[Case]:
        """Returns the cases of a test."""
        small, model = self.cases(model=False), self.cases(model=True)
        first = small[0]
        if test == "test_formula":
            return small
        if test == "test_portable":
            others = map(first.astype, ("float64", "float32", "float16"))
            return [*small[: self.portable_cases], *others]
        if test == "test_interpreted":
            return self.served([*small, first.astype("float32")])
        if test == "test_lowers_for_cuda":
            return self.served([*model, model[0].astype("float32")])
        if test == "test_lowers_for_cuda_with_64_bits":
            return self.served([first, first.astype("float32")]) or self.served(small)[:1]
        if test == "test_on_gpu":
            both = [*small, *model]
            return self.served([*both, *(case.astype("float32") for case in both)])
        raise ValueError(f"{test} has no cases")

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Parametrizes the tests that take a case or an implementation."""
        if "case" in metafunc.fixturenames:
            by_key = {_key(case): case for case in self.cases_of(metafunc.function.__name__)}
            metafunc.parametrize("case", by_key.values(), ids=by_key)
        if "implementation" in metafunc.fixturenames:
            metafunc.parametrize("implementation", self.portable)

    # The reference, and implementations on this machine.

    def test_formula(self, case: Case) -> None:
        """Compares the reference with the formula, both in float64."""
        wide = case.astype("float64")
        with jax.enable_x64(True):
            arrays = wide.arrays()
            actual = jax.jit(wide.bind(self.function, implementation="reference"))(*arrays)
            expected = self.formula(case, *map(np.asarray, arrays))
        self.compare(jax.tree.leaves(actual), jax.tree.leaves(expected), 1e-12, "output")

    def test_portable(self, case: Case, implementation: str) -> None:
        """Compares values and gradients of an implementation in plain JAX."""
        with jax.enable_x64(case.dtype == np.float64):
            self.check(case, case.bind(self.function, implementation=implementation))

    # Kernels.

    def test_interpreted(self, case: Case) -> None:
        """Compares values and gradients of interpreted kernels.

        What they read or write outside of an array is NaN.
        """
        with interpret():
            self.check(case, case.bind(self.function, implementation=self.backend))

    def test_vmap(self) -> None:
        """Compares values and gradients of interpreted kernels under vmap.

        The first array is mapped, the others are not.
        """
        case = self.served(self.cases(model=False))[0]
        arrays, cotangents = self.inputs(case)
        first = jnp.stack([arrays[0], arrays[0][::-1]])
        cotangents = jax.tree.map(lambda x: jnp.stack([x, x]), cotangents)
        run = with_gradients(case.bind(self.function, implementation=self.backend))
        axes = ((0, *(None for _ in arrays[1:])), 0)
        with interpret():
            outs, grads = jax.jit(jax.vmap(run, axes))((first, *arrays[1:]), cotangents)
        for i in range(2):
            results = jax.tree.map(lambda x: x[i], (cotangents, outs, grads))  # noqa: B023
            expected = self.expected(case, (first[i], *arrays[1:]), results[0])
            self.compare_results(case, expected, *results[1:])

    def test_lowers_for_cuda(self, case: Case) -> None:
        """Lowers a call of a model, and its gradients."""
        self.lower(case)

    def test_lowers_for_cuda_with_64_bits(self, case: Case) -> None:
        """Lowers narrow inputs where Python's integers are 64-bit; those of kernels are not."""
        with jax.enable_x64(True):
            self.lower(case)

    def test_launches(self) -> None:
        """Counts the kernels of a call, with and without gradients, and under jax.checkpoint."""
        case = self.served(self.cases(model=False))[0]
        run = case.bind(self.function, implementation=self.backend)
        arrays = tuple(case.args.values())
        cotangents = jax.eval_shape(run, *arrays)
        counts = [
            launches(run, *arrays),
            launches(with_gradients(run), arrays, cotangents),
            launches(with_gradients(jax.checkpoint(run)), arrays, cotangents),
        ]
        expected = (self.forward_launches, self.gradient_launches, self.remat_launches)
        assert counts == [Counter(names) for names in expected], counts

    def test_the_default_takes_the_kernels_on_cuda_only(self) -> None:
        """Lowers one trace for two platforms."""
        case = self.served(self.cases(model=False))[0]
        traced = jax.jit(case.bind(self.function)).trace(*case.args.values())
        texts = [traced.lower(lowering_platforms=(p,)).as_text() for p in ("cuda", "cpu")]
        assert ["triton" in text for text in texts] == [True, False]

    def test_a_second_derivative_is_refused(self) -> None:
        """Differentiates twice: the message names an implementation that allows it."""
        case = self.served(self.cases(model=False))[0]
        arrays = tuple(case.args.values())
        further = case.bind(self.function, implementation=self.portable[0])
        expected = jax.eval_shape(second_derivative(further), *arrays)
        twice = second_derivative(case.bind(self.function))
        if self.twice:
            assert jax.eval_shape(twice, *arrays) == expected
        else:
            with pytest.raises(
                NotImplementedError, match=f"once, in reverse mode.*'{self.portable[0]}'"
            ):
                jax.eval_shape(twice, *arrays)

    @on_gpu
    @pytest.mark.gpu
    def test_on_gpu(self, case: Case) -> None:
        """Compares values and gradients of compiled kernels."""
        if MODEL in case.tags:
            case = case.with_batch(16)
            if case.bytes > _MOST_BYTES:  # the reference in float64 keeps a state per token
                case = case.with_batch(1)
        self.check(case, case.bind(self.function, implementation=self.backend))

    @on_gpu
    @pytest.mark.gpu
    def test_transformations_on_gpu(self) -> None:
        """Runs again, with equal bits; and under jax.checkpoint and vmap, within tolerance.

        Under these the results may come from other kernels, and XLA's products and reductions from
        other algorithms.
        """
        case = self.served(self.cases(model=True))[0].with_batch(6)
        run = case.bind(self.function, implementation=self.backend)
        inputs = self.inputs(case)
        compiled = jax.jit(with_gradients(run))
        expected = compiled(*inputs)
        jax.tree.map(np.testing.assert_array_equal, compiled(*inputs), expected)
        recomputed = jax.jit(with_gradients(jax.checkpoint(run)))(*inputs)
        stacked = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), inputs)
        mapped = jax.jit(jax.vmap(with_gradients(run)))(*stacked)
        for outs, grads in (recomputed, jax.tree.map(lambda x: x[0], mapped)):
            self.compare_results(case, expected, outs, grads)

    # Helpers.

    @property
    def _forward_differs(self) -> bool:
        return not set(self.forward_launches) <= set(self.gradient_launches)

    def inputs(self, case: Case) -> tuple[tuple[jax.Array, ...], Any]:
        """Draws the arrays of a case and cotangents of its results."""
        arrays = case.arrays(seed=len(case.name))
        outs = jax.eval_shape(case.bind(self.function, implementation="reference"), *arrays)
        generator = np.random.default_rng(1)
        return arrays, jax.tree.map(
            lambda out: on_device(generator.standard_normal(out.shape), out.dtype), outs
        )

    def check(self, case: Case, run: Run) -> None:
        """Compares results alone, and results with gradients, with the reference in float64."""
        arrays, cotangents = self.inputs(case)
        expected = _expected.get(self.op, {}).get(_key(case))
        if expected is None or MODEL in case.tags:
            expected = self.expected(case, arrays, cotangents)
        if MODEL not in case.tags:
            _expected.setdefault(self.op, {})[_key(case)] = expected
        outs, grads = jax.jit(with_gradients(run))(arrays, cotangents)
        self.compare_results(case, expected, outs, grads)
        if self._forward_differs:
            out = jax.jit(run)(*arrays)  # other kernels compute it
            self.compare_results(case, expected, out, grads)

    def expected(self, case: Case, arrays: Sequence[jax.Array], cotangents: Any) -> Any:
        """Computes results and gradients by the reference in float64."""
        with jax.enable_x64(True):
            wide = jax.tree.map(
                lambda x: jnp.asarray(np.asarray(x, np.float64)) if is_float(x) else x,
                (tuple(arrays), cotangents),
            )
            key = (self.op, str(case.args), str(case.kwargs))
            if key not in _references:
                run = case.bind(self.function, implementation="reference")
                _references[key] = jax.jit(with_gradients(run))
            return jax.tree.map(np.asarray, _references[key](*wide))

    def compare_results(self, case: Case, expected: Any, outs: Any, grads: Any) -> None:
        """Compares results and gradients with those that are expected."""
        tolerance = TOLERANCES[case.dtype.name]
        outs = jax.tree.leaves(outs)
        dtype = float32_or_wider(case.dtype) if self.wide_outputs else case.dtype
        assert all(out.dtype == dtype for out in outs), "the type of an output"
        types = [(x.dtype, x.shape) for x in case.args.values() if is_float(x)]
        assert [(x.dtype, x.shape) for x in grads] == types, "types and shapes of gradients"
        allowed = 0.0 if self.exact else tolerance.forward
        self.compare(outs, jax.tree.leaves(expected[0]), allowed, "output")
        self.compare(grads, expected[1], tolerance.gradient, "gradient")

    def compare(
        self, actual: Sequence[Any], expected: Sequence[Any], allowed: float, what: str
    ) -> None:
        """Compares arrays by their RMS relative error."""
        for i, (mine, right) in enumerate(zip(actual, expected, strict=True)):
            error = rms_relative_error(mine, right)
            assert error <= allowed, f"{what} {i} is off by {error:.1e}, allowed {allowed:.0e}"

    def lower(self, case: Case) -> None:
        """Lowers a call with and without gradients for CUDA."""
        run = case.bind(self.function, implementation=self.backend)
        arrays = tuple(case.args.values())

        def both(arrays, cotangents):
            results = with_gradients(run)(arrays, cotangents)
            return (results, run(*arrays)) if self._forward_differs else results

        traced = jax.jit(both).trace(arrays, jax.eval_shape(run, *arrays))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        kernels = {*self.forward_launches, *self.gradient_launches}
        count = text.count("triton") + text.count("mosaic_gpu")
        assert count >= len(kernels), "kernels in the program"


def with_gradients(run: Run) -> Run:
    """Makes a function of arrays and cotangents that returns results and gradients."""

    def call(arrays: Sequence[jax.Array], cotangents: Any) -> tuple[Any, Any]:
        outs, pullback = vjp_of_floats(run, *arrays)
        return outs, pullback(cotangents)

    return call


def second_derivative(run: Run) -> Run:
    """Makes the derivative of the squared gradient by the first array."""

    def squares(function: Run) -> Run:
        return lambda *arrays: sum(
            jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(function(*arrays))
        )

    return jax.grad(squares(jax.grad(squares(run))))


def _key(case: Case) -> str:
    return f"{case.name}-{case.dtype}"


_MOST_BYTES = 2**26
_calls: dict[tuple[str, str], Call] = {}
_references: dict[tuple[str, str, str], Run] = {}
_expected: dict[str, dict[str, Any]] = {}
"""Results of the reference by operator and case, which several tests share."""
