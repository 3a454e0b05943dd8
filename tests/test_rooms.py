"""Each room of the package imports only rooms that stand above it."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "natrig_nb"
ORDER = [
    "core",
    "metrics",
    "testing",
    "data",
    "nn",
    "generator",
    "latent",
    "detector",
    "trigger",
    "attack",
    "defense",
    "adversarial",
    "runs",
    "report",
    "audit",
    "survey",
    "doctor",
    "cli",
]


def walk(tree):
    """All nodes but those that only a type checker sees."""
    yield tree
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    for node in ast.iter_child_nodes(tree):
        yield from walk(node)


def imported_modules(tree, package):
    """Absolute names of the modules of this package that a file imports, also inside functions."""
    for node in walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = (
                ["natrig_nb", *package][: 1 + len(package) - (node.level - 1)] if node.level else []
            )
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports():
    """File, its room, and the room that it imports."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] in ("__init__", "_modidx"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name in imported_modules(tree, parts[:-1]):
            where = name.split(".")
            if where[0] == "natrig_nb" and len(where) > 1 and where[1] in ORDER:
                yield path.relative_to(ROOT), parts[0], where[1]


def test_every_module_is_in_a_room():
    found = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")
    }
    assert found - {"__init__", "_modidx"} == set(ORDER)


def test_no_room_reaches_downwards():
    upwards = []
    for path, room, imported in imports():
        if room == "testing":  # fixtures import what they build inside functions
            continue
        if ORDER.index(imported) > ORDER.index(room):
            upwards.append(f"{path} ({room}) imports {imported}")
    assert not upwards


def test_fixtures_import_inside_functions():
    tree = ast.parse((PACKAGE / "testing.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            allowed = node.level == 0 or module[0] in ("core", "metrics", "")
            assert allowed, f"testing.py imports {node.module} at its top"


def test_no_library_function_uses_a_fixture_by_default():
    found = []
    for path, room, imported in imports():
        if imported == "testing" and room != "testing":
            found.append(str(path))
    assert not found
