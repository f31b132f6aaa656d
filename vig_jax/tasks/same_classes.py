"""Comparison of the classes of a data set with those of a trained model, for dense tasks."""

import itertools
from collections.abc import Mapping, Sequence

from vig_jax.config import RunConfig
from vig_jax.errors import DataSetError
from vig_jax.text import preview_names


def check_same_classes(
    data_set: str,
    found: Sequence[str],
    names: Sequence[str],
    config: RunConfig,
    class_map: Mapping[str, str] | None,
    *,
    cure: str,
) -> None:
    """Checks that a data set has the classes of a trained model, in the same order.

    Args:
        data_set: its name.
        found: names of its classes.
        names: of the model's classes; empty if its weights do not name them. Then only the number
            of classes is compared.
        config: of the model.
        class_map: names of the data set to names of the model, where they differ.
        cure: for the message: what to do about an order that differs.

    Raises:
        DataSetError: names the first differences.
    """
    found = tuple((class_map or {}).get(name, name) for name in found)
    if not names and len(found) != config.model.num_classes:
        raise DataSetError(
            f"{data_set} has {len(found)} classes; the model has {config.model.num_classes}, which "
            "its weights do not name"
        )
    if names and found != tuple(names):
        pairs = itertools.zip_longest(found, names, fillvalue="none")
        differing = [f"class {i} is {a}, not {b}" for i, (a, b) in enumerate(pairs) if a != b]
        raise DataSetError(
            f"{data_set} has other classes than the model: {preview_names(differing, 4)}. {cure}, "
            "or map their names with --class-map FILE"
        )
