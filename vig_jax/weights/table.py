"""Tables between the names and layouts of a foreign state dict and ours, applied strictly.

A table is an ordered sequence of rules. A key without a rule, an array of ours without a key and a
shape that differs are errors.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vig_jax.errors import WeightsError
from vig_jax.text import preview_names


@dataclasses.dataclass(frozen=True)
class Layout:
    """The translation of one kind of tensor between both sides."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(np.transpose, np.transpose)  # [out, in] <-> [in, out]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO

# [in, out, kh, kw] <-> [in, kh, kw, out]
DECONV = Layout(lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2))


def _to_dense(x: np.ndarray) -> np.ndarray:
    """Returns a 1x1 convolution [out, in, 1, 1] as a matrix [in, out]."""
    if x.shape[2:] != (1, 1):
        raise ValueError(f"{x.shape} is not a 1x1 convolution")
    return x[:, :, 0, 0].T


POINT = Layout(_to_dense, lambda x: x.T[:, :, None, None])

# Their key, our path, layout. In the templates {i}, and {j}, stands for a number.
Rule = tuple[str, str, Layout]
Rules = tuple[Rule, ...]


def to_ours(
    rules: Rules,
    state_dict: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    *,
    cure: str,
) -> dict[str, np.ndarray]:
    """Returns the arrays of a foreign state dict by our paths, in our layouts.

    Args:
        rules: the table; the first match counts.
        state_dict: foreign names to arrays, all of them.
        expected: our paths and shapes, all of them.
        cure: what to check if the arrays do not fit, for the message.

    Raises:
        WeightsError: lists the missing and unexpected names and the shapes that differ.
    """
    ours: dict[str, np.ndarray] = {}
    unexpected = []
    for key, value in state_dict.items():
        match = translate(rules, key, forward=True)
        if match is None or match[0] not in expected or match[0] in ours:
            unexpected.append(key)
            continue
        path, layout = match
        try:
            ours[path] = layout.to_ours(np.asarray(value))
        except ValueError:  # the number of dimensions is wrong: the comparison of shapes reports it
            ours[path] = np.asarray(value)
    missing = [their_name(rules, path) for path in expected if path not in ours]
    shapes = [
        f"{their_name(rules, path)}: file {ours[path].shape}, model {shape}"
        for path, shape in expected.items()
        if path in ours and ours[path].shape != shape
    ]
    problems = [
        f"{title} ({len(names)}): {preview_names(names)}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("shapes differ, in our layout", shapes),
        )
        if names
    ]
    if problems:
        raise WeightsError(f"the weights do not fit the model; {cure}: " + "; ".join(problems))
    return ours


def to_theirs(rules: Rules, ours: Mapping[str, Any], *, whose: str) -> dict[str, np.ndarray]:
    """Returns the foreign state dict of our arrays, the inverse of `to_ours`.

    Args:
        rules: the table.
        ours: our paths to arrays, of NumPy or of JAX.
        whose: the other side, for the message.

    Raises:
        WeightsError: names the paths that the other side does not have.
    """
    state_dict, unexpected = {}, []
    for path, value in ours.items():
        match = translate(rules, path, forward=False)
        if match is None:
            unexpected.append(path)
        else:
            key, layout = match
            state_dict[key] = np.asarray(layout.to_theirs(np.asarray(value)), order="C")
    if unexpected:
        raise WeightsError(f"{whose} has no name for {', '.join(unexpected)}")
    return state_dict


def translate(rules: Rules, name: str, *, forward: bool) -> tuple[str, Layout] | None:
    """Returns the other side's name and the layout, or None if no rule matches `name`."""
    for pattern, target, layout in _patterns(rules, forward):
        if match := pattern.fullmatch(name):
            return target.format(**match.groupdict()), layout
    return None


def their_name(rules: Rules, path: str) -> str:
    """Returns their name of one of our paths, which all have one."""
    match = translate(rules, path, forward=False)
    assert match is not None, path
    return match[0]


@functools.cache
def _patterns(rules: Rules, forward: bool) -> list[tuple[re.Pattern[str], str, Layout]]:
    """Returns the compiled source, the target and the layout of each rule."""
    result = []
    for theirs, ours, layout in rules:
        source, target = (theirs, ours) if forward else (ours, theirs)
        pattern = re.sub(r"\\{(\w)\\}", r"(?P<\1>[0-9]{1,4})", re.escape(source))
        result.append((re.compile(pattern), target, layout))
    return result
