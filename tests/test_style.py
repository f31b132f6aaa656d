"""Lints the prose of the project: how docstrings begin, and a list of phrases to avoid.

`python tests/test_style.py [PATH ...]` prints every finding, one a line.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The rule for the first word of a docstring holds here; the phrases are looked for everywhere.
WITH_DOCSTRING_RULE = ("kernels_pallas", "vig_jax", "benchmarks", "configs", "tools", "train.py")
EVERYWHERE = (*WITH_DOCSTRING_RULE, "tests", "docs", "Makefile", "*.md", "*.toml")

NEVER_FIRST = {
    *("As", "At", "Of", "So", "How", "What", "Whatever", "When", "Where", "Whether", "Which"),
    *("Who", "Whose", "Why", "The same", "Is", "Are", "By", "In", "On", "To", "From"),
}
# Words in -s that are not verbs in the third person, as seen at the start of docstrings.
NOT_VERBS = {
    *("Always", "Arguments", "Arrays", "Axes", "Batches", "Biases", "Blocks", "Bytes", "Channels"),
    *("Chunks", "Classes", "Columns", "Configs", "Decays", "Devices", "Dims", "Directions"),
    *("Elements", "Epochs", "Examples", "Factors", "Files", "Gradients", "Heads", "Images"),
    *("Implementations", "Indices", "Inputs", "Its", "Kernels", "Keys", "Keywords", "Labels"),
    *("Layers", "Leaves", "Lengths", "Lines", "Logits", "Matrices", "Messages", "Metrics"),
    *("Milliseconds", "Names", "Numbers", "Operands", "Operations", "Others", "Outputs", "Pairs"),
    *("Parameters", "Parts", "Paths", "Pixels", "Platforms", "Positions", "Products", "Programs"),
    *("Rates", "Reasons", "Refs", "Rows", "Seconds", "Settings", "Shapes", "Sizes", "States"),
    *("Statistics", "Steps", "Tables", "This", "Thus", "Tilings", "Tokens", "Tuples", "Values"),
    *("Variables", "Views", "Warps", "Weights", "Widths", "Words", "Yes"),
}

# Phrase (a regular expression; a blank matches any white space) -> what to write in its place.
PHRASES = {
    r"told|tells?": "logged, reported, documented, says",
    r"go(es)? on|going on|gone on|went on": "continues, resumes",
    r"wanted": "expected, required, requested",
    r"(written|computed|calculated) (again|anew)": "recomputed",
    r"anew": "again, or a verb with re-",
    r"(so|as) many": "the number of, N",
    r"of (its|their) own": "its own X, a separate X",
    r"(comes?|came) to(?! rest)": "is, becomes, equals",
    r"heed(s|ed|ing)?": "respects, guarantees, ignores",
    r"laws?": "distribution, rule",
    r"averaged weights?": "EMA weights",
    r"contestants?": "candidate, model",
    r"headline": "primary metric",
    r"(in|by|take|takes|taking) turns?": "alternately, in rounds",
    r"otherwise than": "differently from",
    r"(stand|stands|stood)(?!-?alone| alone| for|-ins?\b)": "is, lies",
    r"pictures?(?!\.py)": "figure, image",
    r"mend(s|ed|ing)?": "fix, cure",
    r"shall": "must, should",
    r"but for": "except for",
    r"in vain": "for nothing, unused",
    r"lest|albeit|thereof|whereof|hitherto": "plain words",
    r"for ever": "always",
    r"(?<!far\s)(?<!further\s)apart(?! from)": "separately, split",
    r"(heard|louder|loudly)": "logged at level ...",
    r"it is known by": "is named",
}
NAMES = {
    "Answer": "Prediction",
    "Calendar": "Intervals",
    "Geometry": "a problem shape",
    "Place": "program coordinates",
    "Record": "RunHistory",
    "FREE_KEYS": "keys that may change on resume",
    "apart": "split_directions",
    "conv_patches": "im2col",
    "few": "preview",
    "forgo_jax": "block_jax_import",
    "interpreting": "interpret",
    "placed_ahead": "prefetch_to_device",
    "steps_ahead": "max_in_flight",
    "usual_turns": "rounds",
}

_PHRASE = re.compile(
    "|".join(
        rf"(?P<p{i}>(?<![\w-])(?:{phrase})\b)".replace(" ", r"\s+")
        for i, phrase in enumerate(PHRASES)
    ),
    re.IGNORECASE,
)
_CURES = tuple(PHRASES.values())
# Documentation says what is; CHANGELOG.md has the history.
_HISTORY = re.compile(
    r"\b(now|nowadays|previously|formerly|in the past|used to be)\b", re.IGNORECASE
)


def files(*patterns: str) -> Iterator[Path]:
    """Yields the Python, Markdown and build files under the given paths, sorted, tracked or not."""
    for pattern in patterns:
        for top in sorted(ROOT.glob(pattern)):
            found = [top] if top.is_file() else sorted(top.rglob("*"))
            yield from (f for f in found if f.suffix in {".py", ".md", ".toml"} or f == top)


def where(file: Path) -> Path:
    """Returns the path of a file in the project."""
    return file.relative_to(ROOT)


def phrases(text: str, first_line: int) -> Iterator[tuple[int, str]]:
    """Yields the line and a message for every phrase of the list in a text."""
    for match in _PHRASE.finditer(text):
        line = first_line + text.count("\n", 0, match.start())
        found = " ".join(match[0].split())
        yield line, f'"{found}": say {_CURES[int(match.lastgroup[1:])]}'


def history(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yields the line and a message for every word of a page that hints at its history."""
    if file.suffix == ".md" and file.name != "CHANGELOG.md":
        for match in _HISTORY.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield line, f'"{match[0]}": say what is; CHANGELOG.md has the history'


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yields the first line and the text of every block of comments."""
    block: list[str] = []
    start = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if block and token.start[0] != start + len(block):
            yield start, "\n".join(block)
            block = []
        if not block:
            start = token.start[0]
        block.append(token.string)
    if block:
        yield start, "\n".join(block)


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}


def opening(node: ast.AST, docstring: str) -> str | None:
    """Returns what is wrong with the first words of a docstring, or None."""
    words = docstring.split()[:2]
    if not words:
        return "the docstring is empty"
    first = words[0].rstrip(".,:;")
    if first in NEVER_FIRST or " ".join(words) in NEVER_FIRST:
        return f'a docstring does not begin with "{first}"'
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    if _decorators(node) & {"property", "cached_property"} or node.name.startswith("test_"):
        return None
    noun = first in NOT_VERBS or (words[1:] == ["of"] and first != "Consists")
    if re.fullmatch("[A-Z][a-z]+s", first) and not first.endswith("ss") and not noun:
        return None
    return f'the docstring of {node.name} begins with "{first}", not with a verb in -s'


def python_findings(source: str, *, docstring_rule: bool) -> Iterator[tuple[int, str]]:
    """Yields the line and a message for everything wrong in a Python file."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if " " in node.value:
                yield from phrases(node.value, node.lineno)
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield node.lineno, f"{node.id}: call it {NAMES[node.id]}"
        elif isinstance(node, ast.arg | ast.keyword) and node.arg in NAMES:
            yield node.lineno, f"{node.arg}: call it {NAMES[node.arg]}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from phrases(node.name.replace("_", " "), node.lineno)
            if node.name in NAMES:
                yield node.lineno, f"{node.name}: call it {NAMES[node.name]}"
        if docstring_rule and isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ):
            docstring = ast.get_docstring(node)
            wrong = opening(node, docstring) if docstring is not None else None
            if wrong:
                yield getattr(node, "lineno", 1), wrong
    if any("#" in line and _PHRASE.search(line) for line in source.splitlines()):
        for line, text in comments(source):
            yield from phrases(text.replace("#", " "), line)


def findings(*patterns: str) -> Iterator[tuple[Path, int, str]]:
    """Yields file, line and message for everything wrong under the given paths."""
    ruled = set(files(*WITH_DOCSTRING_RULE))
    for file in files(*patterns):
        if file == Path(__file__).resolve():
            continue
        text = file.read_text()
        if file.suffix == ".py":
            found = python_findings(text, docstring_rule=file in ruled)
        else:
            found = [*phrases(text, 1), *history(file, text)]
        for line, message in sorted(found):
            yield file, line, message


def test_the_lint_finds_what_it_is_for():
    source = '''
"""What a module is."""
def of():
    """The number of rows."""
    raise ValueError("more are  wanted")  # told
class Rows:
    """So many rows."""
    @property
    def count(self):
        """The count."""
    def add(self):
        """Adds a row."""
'''
    found = sorted(python_findings(source, docstring_rule=True))
    assert [line for line, _ in found] == [1, 3, 5, 5, 6, 7]


def test_style():
    found = [f"{where(file)}:{line}: {message}" for file, line, message in findings(*EVERYWHERE)]
    assert not found, "\n".join(found)


def main() -> int:
    """Prints the findings under the given paths, or everywhere; returns the exit status."""
    count = 0
    for file, line, message in findings(*(sys.argv[1:] or EVERYWHERE)):
        print(f"{where(file)}:{line}: {message}")
        count += 1
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main())
