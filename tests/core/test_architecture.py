"""The architecture, read from the source: no circular imports, and arrows that run one way.

Circles are looked for among imports at module level, those under `if TYPE_CHECKING:` included: two modules that need each other's
types cannot be understood, or checked, one without the other. Imports within functions are not part of a circle, because they
are how a module puts off what it needs only sometimes; the arrows hold for them, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("core", "patch", "nodes")


@cache
def modules() -> dict[str, Path]:
    """The pack's modules by their dotted names, packages by their folder's name; "" is the pack itself."""
    files = [ROOT / "__init__.py", *(f for folder in FOLDERS for f in (ROOT / folder).rglob("*.py"))]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): f for f in files}


def at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, except what stands in functions."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from at_module_level(child)


def imports(module: str, lazy: bool) -> set[str]:
    """What a module imports, `lazy`: also within functions. The pack's own modules by their names in `modules()`, after a dot;
    `from package import name` is the module package.name if there is one, or else the package."""
    path = modules()[module]
    package = module.split(".") if module and path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text("utf-8"))
    found = set()
    for node in ast.walk(tree) if lazy else at_module_level(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module
            found.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [node.module])])
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                found.add("." + (name if name in modules() else base))
    return found


def circular(graph: dict[str, set[str]]) -> set[str]:
    """The nodes of a graph from which some path leads back to them."""

    def reachable(start: str) -> set[str]:
        seen, left = set[str](), [*graph[start]]
        while left:
            node = left.pop()
            if node not in seen:
                seen.add(node)
                left += graph.get(node, ())
        return seen

    return {node for node in graph if node in reachable(node)}


@cache
def own(lazy: bool) -> dict[str, set[str]]:
    """For each module of the pack those of the pack that it imports."""
    return {m: {i[1:] for i in imports(m, lazy) if i.startswith(".")} - {m} for m in modules()}


def test_no_module_imports_in_a_circle():
    found = circular(own(lazy=False))
    assert not {m: sorted(own(lazy=False)[m] & found) for m in sorted(found)}, "these import in a circle"


def test_a_circle_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set[str]()}
    assert circular(graph) == {"b", "c"}


def test_arrows_run_one_way(subtests):
    order = ("core", "patch", "nodes", "")
    assert len(modules()) > 100
    for module, imported in own(lazy=True).items():
        with subtests.test(module or "__init__"):
            level = order.index(module.split(".")[0])
            assert not {m for m in imported if order.index(m.split(".")[0]) > level}


def test_only_patch_imports_the_internals_of_comfyui(subtests):
    """core imports nothing of ComfyUI; nodes use its public API (comfy_api), and what a node is made of."""
    internals = {"comfy", "comfy_extras", "comfy_execution", "execution", "server", "nodes", "folder_paths", "app"}
    for module in modules():
        folder = module.split(".")[0]
        with subtests.test(module or "__init__"):
            found = {i.split(".")[0] for i in imports(module, lazy=True) if not i.startswith(".")}
            assert "skipstone" not in found
            if folder == "core":
                assert not found & (internals | {"comfy_api"})
            elif folder != "patch":
                assert "comfy" not in found
