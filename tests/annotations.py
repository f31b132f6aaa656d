"""Checks of the arguments and results of annotated functions, made cheap.

jaxtyping's own decorator makes code for every function on import, binds the arguments of every call
and checks them twice: a fifth of the time of the tests.
"""

import ast
import contextlib
import dataclasses
import functools
import types
import typing

import beartype
import jaxtyping
from jaxtyping._import_hook import JaxtypingTransformer, Typechecker

PACKAGES = ("kernels_pallas", "vig_jax")
CHECKER = beartype.beartype(conf=beartype.BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def checked(annotated):
    """Returns a function, or a class whose `__init__` is one if it is a dataclass, with checks.

    The code of the checks is made at the first call: a test calls few of all functions.
    """
    if isinstance(annotated, type):
        if dataclasses.is_dataclass(annotated):
            annotated.__init__ = checked(annotated.__init__)
        return annotated
    checking = None

    @functools.wraps(annotated)
    def check(*args, **kwargs):
        nonlocal checking
        if jaxtyping.config.jaxtyping_disable:
            return annotated(*args, **kwargs)
        if checking is None:
            checking = with_checks(annotated)
        with jaxtyping.jaxtyped("context"):  # a letter stands for one size in all annotations
            return checking(*args, **kwargs)

    return check


def with_checks(function):
    hints = {}
    for name, hint in function.__annotations__.items():
        one = types.SimpleNamespace(__annotations__={name: hint})
        with contextlib.suppress(NameError, AttributeError):  # of the type checker alone
            hints |= typing.get_type_hints(one, function.__globals__, include_extras=True)
    function.__annotations__ = hints
    checking = CHECKER(function)
    if any("{" in str(hint) for hint in hints.values()):  # a size is the value of an argument
        return jaxtyping.jaxtyped(checking, typechecker=None)
    return checking


def _visit_outside_of_functions(self, node):
    if not isinstance(node, ast.FunctionDef):
        ast.NodeVisitor.generic_visit(self, node)


def _decorator(self):
    module = f"__import__('sys').modules[{__name__!r}]"
    return ast.parse(f"{module}.{checked.__name__}", mode="eval").body


def install():
    """Checks every function of our packages that is defined from now on."""
    # Nested functions are not checked: they would be wrapped again at each call of the outer one,
    # which took a third of the time of tracing a model.
    JaxtypingTransformer.generic_visit = _visit_outside_of_functions
    Typechecker.get_ast = _decorator
    jaxtyping.install_import_hook(PACKAGES, f"{__name__}.{checked.__name__}")
