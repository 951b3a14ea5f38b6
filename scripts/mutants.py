"""Ways to break one line of a module: ``python -m scripts.mutations`` draws from them.

    how, source = next(mutations_of(text, 12))

The operators are those of cosmic-ray (https://cosmic-ray.readthedocs.io); besides, the statement that begins there may
go.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.plugins import get_operator, operator_names

_REMOVABLE = (ast.Assign, ast.AugAssign, ast.Raise, ast.Delete, ast.Return)
_USELESS = ("NoOp", "VariableReplacer", "VariableInserter")
"""Operators that change nothing, or put in what has no meaning there."""


def mutations_of(source: str, line: int) -> Iterator[tuple[str, str]]:
    """All ways to break a line that make a difference: what was done, and the whole module with it.

    Annotations and docstrings make none, and what is no Python any more is left out.
    """
    meaning = _meaning_of(source)
    for how, broken in (*_by_operators(source, line), *_by_removal(source, line)):
        try:
            changes = _meaning_of(broken) != meaning
        except SyntaxError:
            continue
        if changes:
            yield how, broken


def _by_operators(source: str, line: int) -> Iterator[tuple[str, str]]:
    tree = get_ast(source)
    for name in operator_names():
        if name.endswith(_USELESS):
            continue
        operator = get_operator(name)()
        positions = [at for node in _walk(tree) for at in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(positions):
            if start[0] == line:
                yield name, MutationVisitor.mutate_code(source, operator, occurrence)


def _walk(node: Any) -> Iterator[Any]:
    """Nodes of a parso tree in the order in which cosmic-ray counts occurrences."""
    yield node
    for child in getattr(node, "children", ()):
        yield from _walk(child)


def _by_removal(source: str, line: int) -> Iterator[tuple[str, str]]:
    """The statement that begins at the line, gone; one that returns a value returns None."""
    for node in ast.walk(ast.parse(source)):
        is_call = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (is_call or isinstance(node, _REMOVABLE)) and node.lineno == line:
            lines = source.splitlines(keepends=True)
            indent = " " * node.col_offset
            lines[line - 1 : node.end_lineno] = [
                f"{indent}{'return None' if isinstance(node, ast.Return) else 'pass'}\n"
            ]
            yield "removal", "".join(lines)


class _Bare(ast.NodeTransformer):
    """Leaves out what does not run: annotations and docstrings."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        self.generic_visit(node)
        node.annotation = ast.Constant(0)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        self.generic_visit(node)
        return ast.Expr(ast.Constant(0)) if isinstance(node.value, ast.Constant) else node


def _meaning_of(source: str) -> str:
    return ast.dump(_Bare().visit(ast.parse(source)))
