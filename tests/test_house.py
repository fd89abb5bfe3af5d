"""The house: wings keep their private names to themselves, modules stay short, and nothing runs in a circle.

The order of the wings is import-linter's to check; see pyproject.toml.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "lightning_hypernet"
LINES = 400
REACHING = {"getattr", "setattr", "hasattr", "delattr"}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def trees(package):
    """The syntax tree of every module of a package, by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    assert package.name in found
    return found


def wing(module):
    """A folder or a module directly in the package; the package's own name is a wing too."""
    return ".".join(module.split(".")[:2])


def imports(tree):
    """Modules and names that a tree imports, as ``(module, name or None)``; all of them are absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            yield from ((node.module, alias.name) for alias in node.names)


def private_attributes(tree):
    """``(name, defined)`` of private attributes: defined where the object itself is written to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            yield node.attr, own and isinstance(node.ctx, ast.Store)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REACHING:
            yield from ((a.value, False) for a in node.args if isinstance(a, ast.Constant) and is_private(str(a.value)))


def private_names(tree):
    """Private names that a module defines, in whatever scope."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        else:
            continue
        if is_private(name):
            yield name


def reached_into(modules):
    """Private names of one wing that another imports or reads; what torch or Lightning keep private is not ours to judge."""
    owners = {}
    for module, tree in modules.items():
        defined = {*private_names(tree), *(name for name, defined in private_attributes(tree) if defined)}
        for name in defined:
            owners.setdefault(name, set()).add(wing(module))
    found = []
    for module, tree in modules.items():
        package = module.partition(".")[0]
        for origin, name in imports(tree):
            path = f"{origin}.{name}" if name else origin
            if path.partition(".")[0] == package and wing(path) != wing(module) and any(map(is_private, path.split("."))):
                found.append(f"{module} imports {path}")
        for name, defined in private_attributes(tree):
            of = owners.get(name, {wing(module)})
            if not defined and wing(module) not in of:
                found.append(f"{module} reads {name} of {', '.join(sorted(of))}")
    return sorted(set(found))


def circle(modules):
    """The modules of an import cycle; empty if there is none. Imports within functions count."""
    graph = {}
    for module, tree in modules.items():
        wanted = {f"{origin}.{name}" if f"{origin}.{name}" in modules else origin for origin, name in imports(tree)}
        graph[module] = wanted & set(modules)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_wing_reaches_into_another():
    assert reached_into(trees(ROOT / PACKAGE)) == []


def test_no_module_is_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in (ROOT / PACKAGE).rglob("*.py")}
    assert {path: lines for path, lines in lengths.items() if lines > LINES} == {}


def test_no_imports_run_in_a_circle():
    assert circle(trees(ROOT / PACKAGE)) == []


@pytest.fixture
def small(tmp_path):
    """A package of two wings, to break."""
    package = tmp_path / "small"
    (package / "low").mkdir(parents=True)
    (package / "__init__.py").write_text("from small.high import Top\n")
    (package / "low" / "__init__.py").write_text("from small.low.base import Base\n")
    (package / "low" / "base.py").write_text(
        "class Base:\n    def __init__(self):\n        self._kept = 1\n    def read(self, other):\n        return other._kept\n"
    )
    (package / "high.py").write_text(
        "from small.low import Base\n\n\nclass Top(Base):\n    _own, outer = 1, Base()._parameters\n"
    )
    return package


def test_a_house_in_order(small):
    assert reached_into(trees(small)) == []
    assert circle(trees(small)) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from small.low.base import _hidden", "small.high imports small.low.base._hidden"),
        ("from small.low import _base", "small.high imports small.low._base"),
        ("import small.low._base", "small.high imports small.low._base"),
        ("print(Base()._kept)", "small.high reads _kept of small.low"),
        ("Base()._kept = 2", "small.high reads _kept of small.low"),
        ("getattr(Base(), '_kept')", "small.high reads _kept of small.low"),
    ],
)
def test_a_wing_that_reaches_into_another(small, line, found):
    with (small / "high.py").open("a") as file:
        file.write(f"\n\n{line}\n")
    assert reached_into(trees(small)) == [found]


def test_a_circle_is_found(small):
    (small / "low" / "base.py").write_text("def late():\n    from small.high import Top\n    return Top\n")
    assert set(circle(trees(small))) == {"small.high", "small.low", "small.low.base"}
