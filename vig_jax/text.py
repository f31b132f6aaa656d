"""Phrases that many messages share."""

import difflib
from collections.abc import Iterable


def did_you_mean(value: str, known: Iterable[str], prefix: str = "") -> str:
    """Returns a hint for an unknown name: the nearest known name, or all of them.

    Args:
        value: the unknown name.
        known: the names that exist, in the order to list them.
        prefix: put before the suggested name, e.g. "config.data.".

    Returns:
        "did you mean 'adam'?", or "known: adam, sgd" if no name is near.
    """
    names = list(known)
    near = difflib.get_close_matches(value, names, n=1)
    return f"did you mean {prefix + near[0]!r}?" if near else f"known: {', '.join(names)}"


def preview_names(names: Iterable[object], limit: int = 5) -> str:
    """Joins the first `limit` names with commas; an ellipsis marks that there are more."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:limit]) + (", ..." if len(shown) > limit else "")
