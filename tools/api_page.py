"""Writes docs/api.md: signatures and docstrings of the public surface, read from the source.

python tools/api_page.py            # writes the page
python tools/api_page.py --check    # exits with status 1 if the page is out of date
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
INTRODUCTION = """\
# API

Signatures and docstrings of the public surface. `make api` writes this page from the source; do not
edit it. Shapes are those of jaxtyping; [CONTRIBUTING.md](../CONTRIBUTING.md#house-style) explains
the letters.
"""
# Heading, module, patterns of names (None: its __all__, or else its public classes and functions).
SECTIONS: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    ("Operators", "kernels_pallas", None),
    ("Models, weights, inference", "vig_jax", None),
    ("Loaded models", "vig_jax.inference.loaded_model", ("LoadedModel",)),
    ("Explanations", "vig_jax.explain", None),
    ("Backbones", "vig_jax.models.backbone", ("Backbone", "ParameterGroups", "FeatureInfo")),
    ("Plugins", "vig_jax.config.plugins", ("import_plugins",)),
    ("Models of plugins", "vig_jax.models", ("register_model",)),
    ("Augmentations of plugins", "vig_jax.augment", ("register_augmentation",)),
    ("Loggers", "vig_jax.train.logging.loggers", ("Logger", "LoggedRun", "register_logger")),
    ("Data sets", "vig_jax.data", ("register_dataset", "open_dataset", "Dataset*", "Preprocess")),
    ("Data sets for classification", "vig_jax.data.dataset", ("Classification*",)),
    ("Tasks", "vig_jax.tasks.protocol", None),
    ("Registry of tasks", "vig_jax.tasks.registry", None),
    ("Base classes of evaluations", "vig_jax.metrics.states", ("*Evaluation",)),
    ("Errors", "vig_jax.errors", ("*Error",)),
)
_HEADINGS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Raises"}
_DUNDERS = {"__call__", "__getitem__", "__len__"}

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def parse(module: str) -> list[ast.stmt]:
    """Returns the statements of a module, those under TYPE_CHECKING included."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = ast.parse(file.read_text()).body
    return body + [s for node in body if isinstance(node, ast.If) for s in node.body]


def names_of(node: ast.stmt) -> list[str]:
    """Returns the names that a statement defines or imports."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _imported(module: str, node: ast.ImportFrom) -> str:
    """Returns the module that a statement in another module imports from."""
    if not node.level:
        return node.module or ""
    package = module.split(".")
    up = node.level - ROOT.joinpath(*package).is_dir()
    return ".".join([*package[: len(package) - up], *filter(None, [node.module])])


def find(module: str, name: str) -> tuple[str, Definition, str]:
    """Follows imports to the definition of a name.

    Returns:
        The module of the definition, the definition, and its docstring.

    Raises:
        KeyError: the module neither defines nor imports the name.
    """
    body = parse(module)
    for node, after in zip(body, [*body[1:], None], strict=True):
        if name not in names_of(node):
            continue
        if isinstance(node, ast.ImportFrom):
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            return find(_imported(module, node), original)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return module, node, ast.get_docstring(node) or ""
        if isinstance(node, ast.Assign | ast.AnnAssign):
            text = after.value if isinstance(after, ast.Expr) else None
            return module, node, str(text.value) if isinstance(text, ast.Constant) else ""
    raise KeyError(f"{module} has no {name}")


def public_names(module: str) -> list[str]:
    """Returns the names in `__all__`, or else the public classes and functions in their order."""
    body = parse(module)
    for node in body:
        if isinstance(node, ast.Assign) and names_of(node) == ["__all__"]:
            return list(ast.literal_eval(node.value))
    definitions = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return [n.name for n in definitions if not n.name.startswith("_")]


def signature(function: ast.FunctionDef) -> str:
    """Returns a function's name, parameters and result; long ones with one parameter a line."""
    arguments = function.args
    end = f") -> {ast.unparse(function.returns)}" if function.returns else ")"
    line = f"{function.name}({ast.unparse(arguments)}{end}"
    if len(line) <= 96:
        return line

    def row(argument: ast.arg, default: ast.expr | None) -> str:
        equals = " = " if argument.annotation else "="
        return ast.unparse(argument) + (equals + ast.unparse(default) if default else "")

    positional = [*arguments.posonlyargs, *arguments.args]
    padding = [None] * (len(positional) - len(arguments.defaults))
    rows = [row(a, d) for a, d in zip(positional, [*padding, *arguments.defaults], strict=True)]
    if arguments.vararg or arguments.kwonlyargs:
        rows.append("*" + (ast.unparse(arguments.vararg) if arguments.vararg else ""))
    rows += [row(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        rows.append(f"**{ast.unparse(arguments.kwarg)}")
    return "\n".join([f"{function.name}(", *(f"    {r}," for r in rows), end])


def markdown(docstring: str) -> str:
    """Returns a Google docstring as Markdown: the sections become lists."""
    lines: list[str] = []
    section = ""
    for line in docstring.splitlines():
        heading = re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line)
        item = re.fullmatch(r" {4}(\**\w[\w.`, *]*): (.*)", line)
        if heading:
            section = heading[1]
            lines += [f"**{_HEADINGS.get(section, section)}**", ""]
        elif section in _HEADINGS and item:
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("    "):
            lines.append(("  " if section in _HEADINGS else "") + line.strip())
        else:
            section = section if not line else ""
            lines.append(re.sub("::$", ":", line))  # an indented block follows: code in Markdown
    return "\n".join(lines).strip()


def code(text: str) -> str:
    """Returns text as a block of Python in Markdown, with a blank line before it."""
    return f"\n\n```python\n{text}\n```"


def entry(module: str, name: str) -> str:
    """Returns the Markdown of one name: signature, docstring, and the members of a class."""
    home, node, text = find(module, name)
    shown = f"### {name}"
    if isinstance(node, ast.FunctionDef):
        shown += code(signature(node))
    elif isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        shown += code(f"class {name}({bases})" if bases else f"class {name}")
    elif node.value is not None:
        shown += code(f"{name} = {ast.unparse(node.value)}")
    shown += f"\n\n{markdown(text)}" if text else ""
    if module != home:
        shown += f"\n\nDefined in `{home}`."
    return shown + ("".join(members(node)) if isinstance(node, ast.ClassDef) else "")


def members(node: ast.ClassDef) -> Iterator[str]:
    """Yields the Markdown of the public fields and methods of a class."""
    fields = [m for m in node.body if isinstance(m, ast.AnnAssign) and names_of(m)[0][0] != "_"]
    if fields:
        yield code("\n".join(ast.unparse(field) for field in fields))
    for member in node.body:
        if not isinstance(member, ast.FunctionDef):
            continue
        if member.name.startswith("_") and member.name not in _DUNDERS:
            continue
        decorators = {ast.unparse(d) for d in member.decorator_list}
        if decorators & {"property", "functools.cached_property"} and member.returns:
            yield code(f"{member.name}: {ast.unparse(member.returns)}")
        else:
            yield code(signature(member))
        docstring = ast.get_docstring(member)
        yield f"\n\n{markdown(docstring)}" if docstring else ""


def page() -> str:
    """Returns the text of docs/api.md."""
    parts = [INTRODUCTION.rstrip()]
    for heading, module, patterns in SECTIONS:
        parts.append(f"## {heading}\n\n`import {module}`")
        names = [n for n in public_names(module) if any(fnmatch(n, p) for p in patterns or "*")]
        parts += [entry(module, name) for name in names]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Writes or checks the page; returns the exit status."""
    parser = argparse.ArgumentParser(description="Writes docs/api.md from the docstrings.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print(f"{PAGE.name} is out of date: run `make api`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
