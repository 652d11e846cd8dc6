"""Who may import whom: nothing reaches upwards, and no module is part of a circle."""

import ast
from graphlib import TopologicalSorter

from conftest import PROJECT

LAYERS = (
    {"utils", "config"},
    {"models", "data"},
    {"training", "studies"},
    {"evaluation"},
    {"run"},
    {"classifier", "export", "grid", "reporting"},
    {"cli"},
    {"__init__", "__main__"},
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def imports() -> dict[str, set[str]]:
    """Return, for every module of the package, those that it imports."""
    package = PROJECT / "fruitveg_tl"
    files = {
        f: ".".join(f.relative_to(PROJECT).with_suffix("").parts) for f in package.rglob("*.py")
    }
    modules, found = set(files.values()), {}
    for file, module in files.items():
        nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)]
        named = {f"{n.module}.{alias.name}" for n in nodes for alias in n.names}
        found[module] = (named | {n.module for n in nodes}) & modules
    return found


def height(module: str) -> int:
    return HEIGHT[module.split(".")[1]]


def test_no_module_imports_upwards():
    upwards = [(a, b) for a, used in imports().items() for b in used if height(b) > height(a)]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter(imports()).prepare()
