"""No file of the package imports another that imports it, at once or by a detour."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src"


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def executed(statements: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when a file is imported: not those of functions, nor those for type checkers alone."""
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from executed(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "handlers", "finalbody"):
                yield from executed(getattr(statement, field, []))


def imported(path: Path, files: dict[str, Path]) -> set[str]:
    found = set()
    for statement in executed(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names} & files.keys()
            continue
        base = statement.module or ""
        if statement.level:
            package = path.parent.relative_to(ROOT).parts
            base = ".".join([*package[: len(package) - statement.level + 1], *([base] if base else [])])
        # `from package import part` needs the part; what else a package gives away, its __init__.
        for alias in statement.names:
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in files else base} & files.keys()
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, its first member again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_of_imports() -> None:
    files = {name(path): path for path in sorted(ROOT.rglob("*.py"))}
    graph = {module: imported(path, files) - {module} for module, path in files.items()}
    assert len(graph) > 150
    assert "spikedistill.neurons.dynamics" in graph["spikedistill.neurons.modules"]
    assert circle(graph) == []
    assert circle(graph | {"spikedistill.neurons.dynamics": {"spikedistill.neurons.modules"}}) != []
