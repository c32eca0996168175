"""Every Python block of the pages compiles, and uses no name that its page has not defined or imported by then."""

from __future__ import annotations

import builtins
import re
import symtable
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/*.md", "model_cards/*.md", "examples/community/README.md")
    for path in sorted(ROOT.glob(pattern))
]
BLOCK = re.compile(r"^```py(?:thon)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def undefined_names(blocks: list[str]) -> list[str]:
    """``block 2: torch`` for each name that neither that block nor one before it defines; Python's own excepted."""
    known, found = {*dir(builtins)}, []
    for number, block in enumerate(blocks, start=1):
        compile(block, f"block {number}", "exec")
        module = symtable.symtable(block, f"block {number}", "exec")
        symbols = module.get_symbols()
        known |= {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
        found += [f"block {number}: {name}" for name in sorted({*global_names(module)} - known)]
    return found


def global_names(table: symtable.SymbolTable) -> Iterator[str]:
    """Names that a block, its functions and classes read from the module."""
    at_top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (at_top or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from global_names(child)


@pytest.mark.parametrize("page", PAGES)
def test_no_block_uses_what_its_page_does_not_define(page: str) -> None:
    assert undefined_names(BLOCK.findall((ROOT / page).read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("blocks", "names"),
    [
        (["import torch", "torch.zeros(1)"], []),
        (["torch.zeros(1)", "import torch"], ["block 1: torch"]),
        (["def f(a):\n    return [b + a + c for b in range(a)]"], ["block 1: c"]),
        (["class A:\n    x = 1\n    y = x + z"], ["block 1: z"]),
        (["with open('f') as file:\n    print([line for line in file], lines)"], ["block 1: lines"]),
    ],
)
def test_the_checker_itself(blocks: list[str], names: list[str]) -> None:
    assert undefined_names(blocks) == names
