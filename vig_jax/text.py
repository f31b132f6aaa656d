"""Phrases that many messages share."""

import difflib
import io
import sys
from collections.abc import Iterable

_JOINERS = "\u200c\u200d"  # invisible, but part of words in some scripts and of emoji


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
    return f"did you mean {prefix + near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"


def preview_names(names: Iterable[object], limit: int = 5) -> str:
    """Joins the first `limit` names with commas; an ellipsis marks that there are more."""
    shown = [printable(str(name)) for name in names]
    return ", ".join(shown[:limit]) + (", ..." if len(shown) > limit else "")


def printable(text: str) -> str:
    r"""Escapes characters that a terminal, a figure or a UTF-8 file must not get.

    Args:
        text: a name that others chose, e.g. of a file.

    Returns:
        The text with control characters and bytes that are not UTF-8 as escapes, e.g. "\\x1b".
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _JOINERS else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode represents it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def first_line(error: Exception) -> str:
    """Returns the kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *(printable(line) for line in lines[:1])])


def is_utf8(text: str) -> bool:
    """Returns whether a text from the system, such as a path, came from UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escape_output() -> None:
    """Lets this process print any text: characters that the terminal cannot encode are escaped.

    Arguments and names of files may hold bytes that are not UTF-8. Every command calls this first.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable_lines(text: str) -> str:
    """Escapes as `printable` does, except line breaks."""
    return "\n".join(map(printable, text.split("\n")))
