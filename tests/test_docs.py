"""The documentation keeps its promises: code blocks run, commands and links exist.

A Python block of README or docs runs, unless the line before it is an HTML comment with "compile
only". The blocks of the operators' pages are fragments, except those with the comment "runs". All
calls must fit the signatures.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import vig_jax
from vig_jax.config import named, parse
from vig_jax.train.processes import OPTIONS

ROOT = Path(__file__).parents[1]
COMPILE_ONLY = "compile only"
RUNS = "<!-- runs -->"
OPTIONAL = {"onnxruntime", "stripes"}  # of extras and examples, whose calls are not checked


class Block(NamedTuple):
    """A fenced block: its first line, its language, its text, the line above it."""

    line: int
    language: str
    text: str
    above: str


FOLDERS = ("*.md", "docs/*.md", "kernels_pallas/**/*.md", "vig_jax/**/*.md", "tests/**/*.md")
BY_NAME = {
    str(page.relative_to(ROOT)): page for folder in FOLDERS for page in sorted(ROOT.glob(folder))
}


def blocks(page: Path) -> list[Block]:
    found = []
    lines = page.read_text().splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        else:
            above = lines[start - 1] if start else ""
            text = "\n".join(lines[start + 1 : number])
            found.append(Block(start + 2, lines[start][3:], text, above))
            start = None
    assert start is None, f"{page}: a fence is not closed"
    return found


def python_blocks(name: str) -> list[Block]:
    return [b for b in blocks(BY_NAME[name]) if b.language == "python"]


WITH_CODE = [name for name in BY_NAME if name != "docs/api.md" and python_blocks(name)]
RUNNING = [
    name
    for name in WITH_CODE
    if (name == "README.md" or name.startswith("docs/"))
    and any(COMPILE_ONLY not in b.above for b in python_blocks(name))
]


def test_pages_are_found():
    assert {"README.md", "docs/README.md", "docs/architecture.md"} <= set(BY_NAME)
    assert "README.md" in RUNNING


@pytest.mark.parametrize("name", RUNNING)
def test_code_runs(name, monkeypatch, tmp_path):
    """The blocks of a page run one after the other, with models of one block per stage."""

    def shallow(model: str, num_classes: int = 1000, **settings: Any) -> Any:
        depth = {"depths": (1, 1, 1, 1)} if "_h_" in model else {"depth": 1}
        return create_model(model, num_classes, **(depth | settings))

    create_model = vig_jax.create_model
    monkeypatch.setattr(vig_jax, "create_model", shallow, raising=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in python_blocks(name):
        if COMPILE_ONLY not in block.above:
            exec(compile("\n" * (block.line - 1) + block.text, name, "exec"), names)
    for symbol, shape in promised_shapes(name).items():
        value = names[symbol]
        value = value[0] if isinstance(value, tuple) else value
        assert value.shape == shape, symbol


@pytest.mark.parametrize("number", range(5))
def test_code_of_operators_runs(number):
    """Each of these blocks is a program."""
    found = [b for name in WITH_CODE for b in python_blocks(name) if b.above == RUNS]
    assert len(found) == 5
    exec(compile("\n" * (found[number].line - 1) + found[number].text, "README.md", "exec"), {})


def promised_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Returns the last shape that a comment gives for a name: `x = ...  # [1, 1000] float32`."""
    promised = {}
    for block in python_blocks(name):
        for line in block.text.splitlines():
            match = re.match(r"(\w+) = .*#.*?\[(\d+(?:, \d+)*)\]", line)
            if match and COMPILE_ONLY not in block.above:
                promised[match[1]] = tuple(int(n) for n in match[2].split(", "))
    return promised


@pytest.mark.parametrize("name", WITH_CODE)
def test_calls_fit_the_signatures(name):
    known: dict[str, Any] = {}
    for block in python_blocks(name):
        tree = ast.parse(block.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module not in OPTIONAL:
                module = importlib.import_module(node.module or "")
                known |= {a.asname or a.name: getattr(module, a.name) for a in node.names}
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in OPTIONAL:
                        continue
                    module = importlib.import_module(alias.name)
                    known[alias.asname or alias.name.split(".")[0]] = module
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                fits(node, known, f"{name}:{block.line + node.lineno - 1}")


def fits(call: ast.Call, known: dict[str, Any], where: str) -> None:
    path = ast.unparse(call.func).split(".")
    if path[0] not in known or not all(word.isidentifier() for word in path):
        return
    function = functools.reduce(getattr, path[1:], known[path[0]])
    if not getattr(function, "__module__", "").startswith(("vig_jax", "kernels_pallas")):
        return
    keywords = {k.arg: None for k in call.keywords if k.arg}
    try:
        inspect.signature(function).bind(*call.args, **keywords)
    except TypeError as error:
        raise AssertionError(f"{where}: {error}") from error


def commands() -> list[tuple[str, list[str]]]:
    """Returns every command in unmarked fences and in the Makefile, with its place."""
    found = []
    makefile = re.sub(r"\$\((RUN|SCENES)\)", "runs/demo", (ROOT / "Makefile").read_text())
    for line in makefile.splitlines():
        command = line.strip().removeprefix("@$(BIN)/").partition(" | ")[0]
        if command.startswith(("vig ", "python train.py")):
            found.append((f"Makefile: {command}", shlex.split(command)))
    for name in BY_NAME:
        for block in blocks(BY_NAME[name]):
            text = block.text.replace("\\\n", " ") if not block.language else ""
            for line in text.splitlines():
                if line.startswith(("vig ", "python ", "make ")):
                    words = shlex.split(line, comments=True)
                    found.append((f"{name}:{block.line}: {line}", words))
    return found


def test_commands_exist():
    """Every command parses: its options, config files and keys, scripts, targets of make."""
    found = commands()
    assert len([where for where, _ in found if where.startswith("Makefile")]) == 10
    assert {words[0] for _, words in found} == {"vig", "python", "make"}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for where, words in found:
        if words[0] == "make":
            assert {w for w in words[1:] if "=" not in w} <= targets, where
        elif words[0] == "vig" and words[1] == "train":
            check_training(words[2:], where)
        elif words[0] == "vig":
            check_vig(words[1:], where)
        elif words[1] == "-m":
            assert importlib.util.find_spec(words[2]), where
            assert all((ROOT / w).exists() for w in words[3:] if w.startswith("tests")), where
        else:
            assert (ROOT / words[1]).exists(), where
            if words[1] == "train.py":
                check_training(words[2:], where)


def check_vig(words: list[str], where: str) -> None:
    if any(w in {"COMMAND", "--help"} or re.search(r"[\[<|]", w) for w in words):
        return
    command = importlib.import_module(f"vig_jax.cli.{words[0]}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.configure(parser)
    try:
        parser.parse_args(words[1:])
    except (argparse.ArgumentError, SystemExit) as error:
        raise AssertionError(f"{where}: {error}") from error


def check_training(words: list[str], where: str) -> None:
    flags = dict(w.removeprefix("--").split("=", 1) for w in words if "=" in w)
    page = flags.pop("config", "configs/NAME.py")
    for option in ("workdir", *OPTIONS):
        flags.pop(option, None)
    if "NAME" in page:
        return
    if page.startswith("configs/"):
        assert (ROOT / page).exists(), where
        config = importlib.import_module(page.removesuffix(".py").replace("/", ".")).get_config()
    elif page.endswith(".py"):
        return
    else:
        config = named.get_config(page)
    for key, value in flags.items():
        *parents, last = key.removeprefix("config.").split(".")
        section = functools.reduce(getattr, parents, config)
        assert last in section, f"{where}: {key}"
        old = section[last]
        if isinstance(old, int | float) and not isinstance(old, bool):
            section[last] = type(old)(float(value))
        elif not isinstance(old, bool):
            section[last] = int(value) if value.isdigit() else value
    parse(config)


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("name", BY_NAME)
def test_links_lead_somewhere(name):
    page = BY_NAME[name]
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(goal), f"{name}: {target}"


@pytest.mark.parametrize("name", BY_NAME)
def test_named_files_exist(name):
    """Paths and dotted names in backticks lead to files."""
    text = re.sub("```.*?```", "", BY_NAME[name].read_text(), flags=re.DOTALL)
    for path in re.findall(r"`((?:kernels_pallas|vig_jax|tests|configs|docs)/[\w./]*)`", text):
        assert (ROOT / path).exists(), f"{name}: {path}"
    for dotted in re.findall(r"`((?:kernels_pallas|vig_jax)(?:\.\w+)+)`", text):
        assert resolves(dotted), f"{name}: {dotted}"


def resolves(dotted: str) -> bool:
    """Returns whether a dotted name is a module or an attribute of one."""
    names = dotted.split(".")
    for count in range(len(names), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            home: Any = importlib.import_module(".".join(names[:count]))
            for attribute in names[count:]:
                if not hasattr(home, attribute):
                    return False
                home = getattr(home, attribute)
            return True
    return False


def test_every_page_of_docs_is_in_the_index():
    index = BY_NAME["docs/README.md"].read_text()
    for name in BY_NAME:
        if name.startswith("docs/") and name != "docs/README.md":
            assert f"({name.removeprefix('docs/')})" in index, name


def test_every_room_is_in_the_architecture():
    words = set(BY_NAME["docs/architecture.md"].read_text().split())
    for package in ("kernels_pallas", "vig_jax"):
        for entry in (ROOT / package).iterdir():
            modules = entry.rglob("*.py") if entry.is_dir() else [entry]
            if not entry.name.startswith("__") and any(m.suffix == ".py" for m in modules):
                assert entry.name + "/" * entry.is_dir() in words, entry


def test_api_page_is_up_to_date():
    checked = subprocess.run(
        [sys.executable, "tools/api_page.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert not checked.returncode, checked.stderr
