"""Several compiled programs in place of one that takes long to compile.

XLA compiles a program mostly in one thread, and in more than linear time. A function that is split
into programs compiles sooner, because they are compiled side by side.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import jax

Calls = Callable[..., Any]
"""Calls each program of a mapping once, in its order, with the arguments that follow it."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """A function that calls jitted programs one after another; used like a jitted function.

    Attributes:
        programs: jitted functions by name, in the order of their calls.
        sequence: `sequence(programs, *arguments)` passes arguments and results on, and computes
            nothing itself.
    """

    programs: Mapping[str, Any]
    sequence: Calls

    def __call__(self, *arguments: Any) -> Any:
        """Calls all programs."""
        return self.sequence(self.programs, *arguments)

    def trace(self, *arguments: Any) -> "TracedPrograms":
        """Traces all programs, each for the types that the ones before it return.

        Args:
            arguments: arrays or shapes.
        """
        traced, results = self.each(lambda name, *x: self.programs[name].trace(*x), *arguments)
        return TracedPrograms(traced, self.sequence, results)

    def each(self, trace: Callable[..., Any], *arguments: Any) -> tuple[dict[str, Any], Any]:
        """Returns `trace(name, *types)` for each program, in order, and the types of the results.

        Args:
            trace: its result has the attribute `out_info` of `jax.stages.Traced`.
            arguments: of this function: arrays or shapes.
        """
        traced = {}

        def call(name: str, *inputs: Any) -> Any:
            traced[name] = trace(name, *inputs)
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), traced[name].out_info
            )

        calls = {name: functools.partial(call, name) for name in self.programs}
        return traced, self.sequence(calls, *arguments)

    def lower(self, *arguments: Any) -> "LoweredPrograms":
        """Traces and lowers all programs."""
        return self.trace(*arguments).lower()


@dataclasses.dataclass(frozen=True)
class TracedPrograms:
    """The result of `Programs.trace`.

    Attributes:
        programs: `jax.stages.Traced` by name.
        sequence: see `Programs`.
        out_info: shapes and types of the results.
    """

    programs: Mapping[str, Any]
    sequence: Calls
    out_info: Any

    def lower(self, **options: Any) -> "LoweredPrograms":
        """Lowers all programs, with the options of `jax.stages.Traced.lower`."""
        lowered = {name: program.lower(**options) for name, program in self.programs.items()}
        return LoweredPrograms(lowered, self.sequence)


@dataclasses.dataclass(frozen=True)
class _Stage:
    """Programs of one stage of JAX.

    Attributes:
        programs: `jax.stages.Lowered` or `jax.stages.Compiled` by name.
        sequence: see `Programs`.
    """

    programs: Mapping[str, Any]
    sequence: Calls

    def as_text(self) -> str:
        """Returns the text of all programs: StableHLO of lowered ones, HLO of compiled ones."""
        return "\n".join(program.as_text() for program in self.programs.values())


class LoweredPrograms(_Stage):
    """The result of `Programs.lower`."""

    def compile(self) -> "CompiledPrograms":
        """Compiles the programs side by side."""
        with ThreadPoolExecutor(len(self.programs), "compilation") as threads:
            compiled = threads.map(lambda program: program.compile(), self.programs.values())
            programs = dict(zip(self.programs, compiled, strict=True))
        return CompiledPrograms(programs, self.sequence)


class CompiledPrograms(_Stage):
    """The result of `LoweredPrograms.compile`."""

    def __call__(self, *arguments: Any) -> Any:
        """Calls all programs."""
        return self.sequence(self.programs, *arguments)

    def memory_analysis(self) -> Any:
        """Returns the bytes of the whole function, by the names of `jax.stages.Compiled`.

        Arguments and results are those of the last program, which takes the function's arguments
        and what it needs of earlier results. Temporaries are the most that a program has, with the
        results of those before it.
        """
        *earlier, last = (program.memory_analysis() for program in self.programs.values())
        temporary, results = last.temp_size_in_bytes, 0
        for memory in earlier:
            temporary = max(temporary, memory.temp_size_in_bytes + results)
            results += memory.output_size_in_bytes
        return SimpleNamespace(
            argument_size_in_bytes=last.argument_size_in_bytes,
            output_size_in_bytes=last.output_size_in_bytes,
            alias_size_in_bytes=last.alias_size_in_bytes,
            temp_size_in_bytes=temporary,
        )
