"""Makes an exercise's stub from its reference solution: signature and docstring stay, the answer goes."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass

from utils.errors import CourseError

_MARKER = re.compile(r"# (BEGIN|END) SOLUTION\s*")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class _Region:
    """A marked region: the lines of its two markers (from 1) and its indentation."""

    begin: int
    end: int
    indent: str


@dataclass(frozen=True)
class _Cut:
    """Lines `first` to `last` (from 1) of the source become `replacement`."""

    first: int
    last: int
    replacement: list[str]


def stub_source(module_source: str, name: str, filename: str = "the solution") -> str:
    """The stub of the function or class `name`: its source with every answer replaced by a line that raises.

    In a function the marked regions go, or all after the docstring where nothing is marked; in a class so does every
    method, and regions that wrap whole methods vanish with them. CourseError: unknown name or lost marker.
    """
    node = _definition(ast.parse(module_source, filename), name, filename)
    lines = module_source.splitlines()
    cuts = _cuts(node, name, lines, _regions(module_source, filename))
    return "\n".join(_apply(cuts, lines, _first_line(node), _last_line(node))) + "\n"


def stub_module(module_source: str, names: Iterable[str], filename: str = "the solution") -> str:
    """The module with every exercise in `names` replaced by its stub; what else is marked as solution is left out."""
    tree = ast.parse(module_source, filename)
    lines = module_source.splitlines()
    regions = _regions(module_source, filename)
    cuts: list[_Cut] = []
    for name in names:
        cuts += _cuts(_definition(tree, name, filename), name, lines, regions)
    covered = {line for cut in cuts for line in range(cut.first, cut.last + 1)}
    cuts += [_Cut(one.begin, one.end, []) for one in regions if one.begin not in covered and not one.indent]
    return "\n".join(_apply(cuts, lines, 1, len(lines))) + "\n"


def _definition(tree: ast.Module, name: str, filename: str) -> _Function | ast.ClassDef:
    matches = [node for node in tree.body if isinstance(node, _Function | ast.ClassDef) and node.name == name]
    if not matches:
        raise CourseError(
            f"{filename}: no top-level function or class is named `{name}`. Define it, or rename the exercise."
        )
    return matches[-1]


def _regions(source: str, filename: str) -> list[_Region]:
    regions: list[_Region] = []
    opened: tuple[int, str] | None = None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        marker = _MARKER.fullmatch(token.string) if token.type == tokenize.COMMENT else None
        if marker is None:
            continue
        line = token.start[0]
        if marker[1] == "BEGIN":
            if opened:
                raise CourseError(
                    f"{filename}:{line}: BEGIN SOLUTION inside the region opened in line {opened[0]}: close that first"
                )
            opened = (line, token.line[: token.start[1]])
        elif opened is None:
            raise CourseError(f"{filename}:{line}: END SOLUTION without a BEGIN SOLUTION above it")
        else:
            regions.append(_Region(opened[0], line, opened[1]))
            opened = None
    if opened:
        raise CourseError(f"{filename}:{opened[0]}: BEGIN SOLUTION is never closed: add `# END SOLUTION`")
    return regions


def _cuts(node: _Function | ast.ClassDef, name: str, lines: list[str], regions: list[_Region]) -> list[_Cut]:
    inside = _inside(node, regions)
    if not isinstance(node, ast.ClassDef):
        return _function_cuts(node, name, lines, inside)
    cuts: list[_Cut] = []
    methods = [part for part in node.body if isinstance(part, _Function)]
    in_methods = [one for method in methods for one in _inside(method, inside)]
    wrapping = [one for one in inside if one not in in_methods]
    cuts += [_Cut(one.begin, one.end, []) for one in wrapping]
    for method in methods:
        if not any(one.begin < method.lineno < one.end for one in wrapping):
            cuts += _function_cuts(method, f"{name}.{method.name}", lines, _inside(method, inside))
    return _never_empty(cuts, node)


def _inside(node: _Function | ast.ClassDef, regions: list[_Region]) -> list[_Region]:
    """Regions that begin in the definition. The last may end below it: the syntax tree knows no comments."""
    return [one for one in regions if node.lineno < one.begin <= _last_line(node)]


def _never_empty(cuts: list[_Cut], node: ast.ClassDef) -> list[_Cut]:
    left = [
        part
        for part in node.body
        if not any(cut.first <= part.lineno <= cut.last and not cut.replacement for cut in cuts)
    ]
    if left:
        return cuts
    body = next(cut for cut in cuts if not cut.replacement)
    indent = " " * node.body[0].col_offset
    filled = _Cut(body.first, body.last, [f"{indent}...  # write {node.name} here, then run the check below"])
    return [filled if cut is body else cut for cut in cuts]


def _function_cuts(node: _Function, name: str, lines: list[str], regions: list[_Region]) -> list[_Cut]:
    if regions:
        return [_Cut(one.begin, one.end, [_raise(one.indent, name)]) for one in regions]
    first = node.body[0]
    is_documented = ast.get_docstring(node, clean=False) is not None
    if is_documented and len(node.body) == 1:
        return [_Cut(_last_line(first) + 1, _last_line(first), [_raise(" " * first.col_offset, name)])]
    answer = node.body[1] if is_documented else first
    before = lines[answer.lineno - 1].encode()[: answer.col_offset].decode()
    if before.strip():  # `def f(x): return x`
        indent = " " * (node.col_offset + 4)
        return [_Cut(answer.lineno, _last_line(node), [before.rstrip(" ;"), _raise(indent, name)])]
    start = _last_line(first) + 1 if is_documented else _header_end(node, lines) + 1
    return [_Cut(start, _last_line(node), [_raise(before, name)])]


def _header_end(node: _Function, lines: list[str]) -> int:
    """The last line of the signature: comments below it belong to the answer."""
    line = node.body[0].lineno - 1
    while line > node.lineno and (not lines[line - 1].strip() or lines[line - 1].lstrip().startswith("#")):
        line -= 1
    return line


def _raise(indent: str, name: str) -> str:
    return f'{indent}raise NotImplementedError("write {name}, then run the check below")'


def _first_line(node: _Function | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _last_line(node: ast.stmt) -> int:
    assert node.end_lineno is not None  # what was parsed from text has lines
    return node.end_lineno


def _apply(cuts: list[_Cut], lines: list[str], first: int, last: int) -> list[str]:
    last = max([last, *(cut.last for cut in cuts)])
    lines_left: list[str] = []
    position = first
    for cut in sorted(cuts, key=lambda cut: cut.first):
        lines_left += lines[position - 1 : cut.first - 1]
        if not cut.replacement:  # a region that vanished takes the blank lines above it with it
            while lines_left and not lines_left[-1].strip():
                lines_left.pop()
        lines_left += cut.replacement
        position = cut.last + 1
    return lines_left + lines[position - 1 : last]
