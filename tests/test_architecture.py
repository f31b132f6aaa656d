"""The arrows of the tree: who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A unit may import the units above it in this list, and itself.
LAYERS = (
    "kernels_pallas",
    "vig_jax.errors",
    "vig_jax.text",
    "vig_jax.files",
    "vig_jax.folder_lock",
    "vig_jax.devices",
    "vig_jax.config",
    "vig_jax.figures",
    "vig_jax.sharding",
    "vig_jax.ops",
    "vig_jax.layers",
    "vig_jax.heads",
    "vig_jax.models",
    "vig_jax.weights",
    "vig_jax.data.dataset",
    "vig_jax.data.preprocess",
    "vig_jax.data.formats",
    "vig_jax.data.datasets",
    "vig_jax.data.loader",
    "vig_jax.data.convert",
    "vig_jax.data",
    "vig_jax.augment",
    "vig_jax.metrics",
    "vig_jax.tasks",
    "vig_jax.evaluation",
    "vig_jax.train",
    "vig_jax.inference",
    "vig_jax.explain",
    "vig_jax.bench",
    "vig_jax.cli",
    "vig_jax.__main__",
)
FORBIDDEN = {"torch", "torchvision", "tensorflow", "clu", "timm", "fla"}
COMPARISON = "kernels_pallas/benchmarks/fla_peer.py"  # loaded only by the benchmark's --peers


def imports(file: Path) -> set[str]:
    """Dotted names that a file imports, function bodies included."""
    names = set()
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def test_only_kernels_name_their_modules_relatively():
    """Their folder works below another package, under any name."""
    for file in python_files("kernels_pallas", "vig_jax"):
        kernels = file.relative_to(ROOT).parts[0] == "kernels_pallas"
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                own = node.level > 0 or (node.module or "").split(".")[0] == "kernels_pallas"
                assert (node.level > 0) == (kernels and own), f"{file}:{node.lineno}"
            elif isinstance(node, ast.Import):
                absolute = {alias.name.split(".")[0] for alias in node.names}
                assert not (kernels and "kernels_pallas" in absolute), f"{file}:{node.lineno}"


def unit_of(name: str) -> str | None:
    return next((u for u in LAYERS if name == u or name.startswith(u + ".")), None)


def python_files(*folders: str) -> list[Path]:
    files = [f for folder in folders for f in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    return files


def test_every_module_belongs_to_a_unit():
    for file in python_files("kernels_pallas", "vig_jax"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        assert unit_of(module) or module == "vig_jax.__init__", module


def test_imports_point_one_way():
    for file in python_files("kernels_pallas", "vig_jax"):
        unit = unit_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
        if unit is None:
            continue
        allowed = LAYERS[: LAYERS.index(unit) + 1]
        for name in imports(file):
            other = unit_of(name)
            assert other is None or other in allowed, f"{file}: {unit} must not import {name}"


def test_error_classes_have_one_home():
    home = ROOT / "vig_jax" / "errors.py"
    for file in python_files("vig_jax"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                assert file == home, f"{file} defines {node.name}: it belongs to vig_jax.errors"


def test_kernels_stand_alone():
    for file in python_files("kernels_pallas"):
        for name in imports(file):
            root = name.split(".")[0]
            assert root not in {"vig_jax", "configs", "flax", "optax"}, f"{file} imports {name}"


def test_configs_are_plain_pages():
    for file in python_files("configs"):
        for name in imports(file):
            assert name.startswith(("ml_collections", "vig_jax.config")), f"{file} imports {name}"


@pytest.mark.parametrize("folder", ["kernels_pallas", "vig_jax", "configs"])
def test_no_foreign_framework_at_run_time(folder):
    for file in python_files(folder):
        if file != ROOT / COMPARISON:
            assert not {name.split(".")[0] for name in imports(file)} & FORBIDDEN, file


def test_matplotlib_is_imported_with_the_first_figure():
    """Importing it takes as long as importing JAX, and training begins without figures."""
    eager = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "vig_jax").rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "matplotlib" in ast.unparse(node)
    }
    assert eager == {"vig_jax/explain/figure.py"}


def test_train_py_is_a_door():
    assert len((ROOT / "train.py").read_text().splitlines()) <= 60


# Rooms of kernels_pallas, and the other rooms that each may import.
_OPERATORS = (
    *("depthwise_conv", "gla", "im2col", "linear_swiglu", "norm", "swiglu", "swiglu_mlp"),
    *("resize_cross_entropy", "vig_mixer"),
)
KERNEL_ROOMS = {
    "core": (),
    **dict.fromkeys(_OPERATORS, ("core",)),
    "linear_swiglu": ("core", "swiglu"),
    "swiglu_mlp": ("core", "swiglu", "linear_swiglu"),
    "vig_mixer": ("core", "gla"),
    "operators": ("core", "", *_OPERATORS),
    "autotune": ("core", "operators"),
    "testing": ("core", "operators", *_OPERATORS),
    "benchmarks": ("core", "operators", "autotune", "testing", *_OPERATORS),
    "": ("core", "autotune", *_OPERATORS),  # the package itself
}
# The modules of another operator's kernels that an operator may use.
INTERNAL_INTERFACES = {
    ("vig_mixer", "gla"): {"pallas_triton", "pallas_triton.scan", "pallas_triton.config"},
    ("linear_swiglu", "swiglu"): {"pallas_triton"},
    ("swiglu_mlp", "swiglu"): {"pallas_triton", "pallas_triton.kernels"},
    ("swiglu_mlp", "linear_swiglu"): {"pallas_triton", "pallas_mosaic_gpu"},
}


def kernel_modules() -> dict[str, Path]:
    files = python_files("kernels_pallas")
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def kernel_imports() -> list[tuple[str, str, str]]:
    """Returns (room, imported room, module within it) of all imports between rooms."""
    modules = kernel_modules()
    found = []
    for name, file in modules.items():
        room = [*name.split("."), ""][1]
        for other in imports(file) & set(modules):
            _, other_room, *inner = [*other.split("."), ""]
            if other_room != room:
                found.append((room, other_room, ".".join(filter(None, inner))))
    return found


def test_rooms_of_kernels_import_one_way():
    found = kernel_imports()
    assert {room for room, _, _ in found} <= set(KERNEL_ROOMS)
    for room, other, module in found:
        if other == "" and room != "operators":
            continue  # `from kernels_pallas import room` names the package too
        assert other in KERNEL_ROOMS[room], f"kernels_pallas.{room} imports {other}.{module}"


def test_operators_use_declared_interfaces_of_each_other():
    for room, other, module in kernel_imports():
        if room in _OPERATORS and other in _OPERATORS and module.startswith("pallas_"):
            allowed = INTERNAL_INTERFACES[room, other]
            assert module in allowed, f"kernels_pallas.{room} imports {other}.{module}"


def test_only_core_knows_the_backends_of_pallas():
    for name, file in kernel_modules().items():
        for imported in imports(file):
            if imported.startswith("jax.experimental.pallas."):
                assert name.startswith("kernels_pallas.core."), f"{file} imports {imported}"


def test_one_module_calls_orbax():
    for file in python_files("vig_jax"):
        if any(name.split(".")[0] == "orbax" for name in imports(file)):
            assert file == ROOT / "vig_jax" / "weights" / "orbax_store.py", f"{file} imports Orbax"


def test_no_tests_or_benchmarks_of_kernels_at_run_time():
    for file in python_files("vig_jax"):
        for name in imports(file):
            unwanted = name.startswith(("kernels_pallas.testing", "kernels_pallas.benchmarks"))
            assert not unwanted, f"{file} imports {name}"
