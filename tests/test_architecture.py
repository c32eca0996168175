"""The house rules of DESIGN, sections 2 and 5, read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import diffusers_dedim

ROOT = Path(diffusers_dedim.__file__).parent
PACKAGE = ROOT.name
MODULES = {
    ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
# From below to above; a module may import its own folder, and those in the rows before its own.
LAYERS = (
    ("", "errors", "extras", "atomic", "prefetch"),
    ("models", "images", "diffusion"),
    ("faces", "metrics"),
    ("encoders", "baselines"),
    ("pipeline", "training"),
    ("video",),
    ("evaluation", "runs", "hub"),
    ("demo",),
    ("cli",),
)
RANK = {folder: rank for rank, folders in enumerate(LAYERS) for folder in folders}
# A folder's __init__ only hands names on; these modules hold one thing each that has no other room.
SMALL = {"errors", "extras", "models.weights", "models.unet", "encoders.types", "cli.demo"}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING``: names for the reader, not imports."""
    for child in ast.iter_child_nodes(tree):
        if not is_type_checking(child):
            yield child
            yield from run_time_nodes(child)


def imported(name: str, path: Path) -> set[str]:
    """Full names of the modules that a module imports at run time, lazily or not."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in run_time_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base]).rstrip(".")
            for alias in node.names:
                found.add(resolve(base, alias.name))
    return found


def resolve(base: str, name: str) -> str:
    """The module behind ``from base import name``; the root package's names are lazy."""
    if base == PACKAGE and name in diffusers_dedim._HOMES:
        return f"{PACKAGE}.{diffusers_dedim._HOMES[name]}"
    return f"{base}.{name}" if f"{base}.{name}" in MODULES else base


GRAPH = {name: imported(name, path) for name, path in MODULES.items()}


def part(module: str) -> str:
    """``diffusers_dedim.faces.align`` -> ``faces``; "" for the root."""
    return [*module.split("."), ""][1]


def own_parts(module: str) -> set[str]:
    return {part(other) for other in GRAPH[module] if other.split(".")[0] == PACKAGE}


def test_the_graph_is_read() -> None:
    assert f"{PACKAGE}.diffusion.matching" in GRAPH[f"{PACKAGE}.diffusion.sampling"]
    assert {"faces", "diffusion", "models"} <= own_parts(f"{PACKAGE}.pipeline.pipeline_dedim")


def test_the_root_holds_what_everybody_may_use() -> None:
    assert {part(module) for module in MODULES} == set(RANK)
    assert len(list(ROOT.glob("*.py"))) <= 6


@pytest.mark.parametrize("module", [name for name in MODULES if part(name)])
def test_a_module_imports_its_own_folder_and_lower_layers(module: str) -> None:
    own = part(module)
    above = {other for other in own_parts(module) - {own, ""} if RANK[other] >= RANK[own]}
    assert not above, f"{module} may not import {above}"


def test_only_the_command_line_knows_typer() -> None:
    users = {part(name) for name, uses in GRAPH.items() if any(use.split(".")[0] == "typer" for use in uses)}
    assert users == {"cli"}


def test_nobody_outside_touches_what_is_private_in_the_pipeline() -> None:
    for folder in ("src", "examples", "spaces", "benchmarks"):
        for path in (ROOT.parents[1] / folder).rglob("*.py"):
            if path.parent != ROOT / "pipeline":
                nodes = [
                    node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
                ]
                used = {
                    node.attr
                    for node in nodes
                    if ast.unparse(node.value).split(".")[-1] in ("pipe", "pipeline")
                }
                assert not {name for name in used if name.startswith("_")}, path


def test_a_folder_only_hands_names_on() -> None:
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name not in (PACKAGE, f"{PACKAGE}.demo"):
            kinds = {type(node) for node in ast.parse(path.read_text()).body}
            assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}, name


def test_there_is_no_cycle() -> None:
    own = {name: {other for other in uses if other in MODULES} for name, uses in GRAPH.items()}
    # a package's __init__ and its modules are one thing: a module may ask its own package's siblings only
    list(TopologicalSorter({name: uses - {name} for name, uses in own.items()}).static_order())


@pytest.mark.parametrize("module", [name for name in MODULES if part(name) in ("diffusion", "metrics")])
def test_the_paper_and_the_metrics_never_see_pil(module: str) -> None:
    assert not {other for other in GRAPH[module] if other.split(".")[0] == "PIL"}


def test_faces_never_see_a_unet() -> None:
    for name in MODULES:
        if part(name) == "faces":
            nodes = list(ast.walk(ast.parse(MODULES[name].read_text())))
            words = {node.id for node in nodes if isinstance(node, ast.Name)}
            words |= {node.name for node in nodes if isinstance(node, ast.alias)}
            assert not {word for word in words if "unet" in word.lower()}, name


FUNCTIONS = [
    pytest.param(node, id=f"{name}:{node.name}")
    for name, path in MODULES.items()
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_bodies_are_short(function: ast.FunctionDef, request: pytest.FixtureRequest) -> None:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
    assert lines <= (80 if request.node.callspec.id.endswith("pipeline_dedim:__call__") else 40)


def loop_depth(node: ast.AST) -> int:
    inner = max((loop_depth(child) for child in ast.iter_child_nodes(node)), default=0)
    return inner + isinstance(node, (ast.For, ast.While, ast.AsyncFor))


@pytest.mark.parametrize("module", MODULES)
def test_module_limits(module: str) -> None:
    source = MODULES[module].read_text()
    tree = ast.parse(source)
    lines = len(source.splitlines())
    assert lines <= 450
    assert lines >= 40 or MODULES[module].name == "__init__.py" or module.partition(".")[2] in SMALL
    assert MODULES[module].name != "utils.py"
    assert loop_depth(tree) <= 2
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "never assert on input"


RAISED = {"ValueError", "TypeError"}
SPECIAL = {"__init__", "__post_init__", "__call__", "__iter__"}  # their class may say it for them


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Every node of a function but those of functions and classes inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield child
            yield from own_nodes(child)


def public_functions(
    tree: ast.Module | ast.ClassDef, texts: str = ""
) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Public functions and methods, each with its docstring; special methods with their class's too."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node, ast.get_docstring(node) or "")
        elif isinstance(node, ast.FunctionDef) and (node.name in SPECIAL or not node.name.startswith("_")):
            yield node, (ast.get_docstring(node) or "") + (texts if node.name in SPECIAL else "")


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_say_what_they_raise(module: str) -> None:
    for function, text in public_functions(ast.parse(MODULES[module].read_text())):
        raised = [node.exc for node in own_nodes(function) if isinstance(node, ast.Raise) and node.exc]
        names = {ast.unparse(exc.func if isinstance(exc, ast.Call) else exc) for exc in raised}
        assert not names & RAISED or "Raises:" in text, f"{function.name} raises {names}: say when"


def test_all_code_that_makes_protected_photos_decides_over_kept_ones() -> None:
    """`dedim evaluate` measures anew when this code changes: none of it may be missing from its list."""
    from diffusers_dedim.evaluation.measure import _METHOD_CODE

    reached, new = set(), {f"{PACKAGE}.evaluation.methods", f"{PACKAGE}.evaluation.robustness"}
    while new:
        reached |= new
        new = {other for name in new for other in GRAPH[name] if other in MODULES} - reached
    # files and metrics have no say in what a protected photo looks like
    reached = {name for name in reached if part(name) not in (*LAYERS[0], "images", "metrics")}
    paths = {name.partition(".")[2].replace(".", "/") + "/" for name in reached}
    assert sorted(path for path in paths if not path.startswith(_METHOD_CODE)) == []
