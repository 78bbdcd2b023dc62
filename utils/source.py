"""Reads Python source without running it: one function or class with everything it stands on, and a notebook's code.

Used to keep a student's passed solution, and to carry a solution from a module into a chapter's exercise cell.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import symtable
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_ALWAYS_THERE = {*dir(builtins), "__name__", "__file__", "__doc__", "__builtins__", "__debug__"}
# What IPython puts into a notebook's names, and the import that a plain module needs instead.
_FROM_IPYTHON = {"display": "from IPython.display import display", "get_ipython": "from IPython import get_ipython"}
_COMPREHENSIONS = {"listcomp", "setcomp", "dictcomp", "genexpr"}
# Calls that make a constant or a type alias when their arguments are constants.
_CONSTANT_CALLS = {
    *("set", "frozenset", "dict", "list", "tuple", "range", "int", "float", "str", "slice"),
    *("TypeVar", "NewType", "NamedTuple", "namedtuple", "ParamSpec", "TypeVarTuple"),
}


class NotDefined(LookupError):
    """The source has no top-level definition of the name that was asked for."""


@dataclass(frozen=True)
class Extract:
    """Code of one definition that runs by itself, and the names it uses which nothing in the source supplies."""

    code: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class _Statement:
    """A top-level statement: the names it sets and uses at once, those it sets and uses when what it defines is called,
    and those it only mentions in quoted annotations."""

    node: ast.stmt
    text: str
    sets: frozenset[str] = frozenset()
    uses_at_once: frozenset[str] = frozenset()
    uses_later: frozenset[str] = frozenset()
    sets_later: frozenset[str] = frozenset()
    mentions: frozenset[str] = frozenset()

    @property
    def is_import(self) -> bool:
        return isinstance(self.node, ast.Import | ast.ImportFrom)

    @property
    def is_star_import(self) -> bool:
        return isinstance(self.node, ast.ImportFrom) and self.node.names[0].name == "*"

    @property
    def is_definition(self) -> bool:
        return isinstance(self.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def definitions(source: str) -> dict[str, int]:
    """Names of the top-level functions and classes, and aliases of them -> line of the last definition, in order."""
    lines: dict[str, int] = {}
    for statement in _statements(source):
        if statement.is_definition or isinstance(statement.node, ast.If | ast.Try):
            names = statement.sets
        elif isinstance(statement.node, ast.Assign) and getattr(statement.node.value, "id", None) in lines:
            names = statement.sets  # `pca = pca_by_eigh`
        else:
            continue
        for name in names:
            lines.pop(name, None)
            lines[name] = statement.node.lineno
    return lines


def extract(source: str, name: str, constants_only: bool = False, known: Collection[str] = ()) -> Extract:
    """The code of the top-level `name` in `source`, with the imports, helpers and assignments that it stands on.

    The last definition of a name counts. With `constants_only`, as for a live notebook, assignments are taken only when
    they are constants or type aliases; other names land in `needs`, as do names that nothing defines. Names in `known`
    are taken to exist where the code will run: neither copied nor listed. Raises NotDefined, or SyntaxError.
    """
    return _Extraction(_statements(source), constants_only, known).run(name)


class _Extraction:
    def __init__(self, statements: list[_Statement], constants_only: bool, known: Collection[str]) -> None:
        self.statements = statements
        self.constants_only = constants_only
        self.known = set(known)
        self.setters: dict[str, list[int]] = {}
        for position, statement in enumerate(statements):
            for name in statement.sets:
                self.setters.setdefault(name, []).append(position)
        self.chosen: list[int] = []  # in an order in which every statement finds what it uses at once
        self.seen: set[int] = set()
        self.imported: dict[int, set[str]] = {}  # import statement -> names wanted from it
        self.needs: set[str] = set()
        self.from_ipython: set[str] = set()

    def run(self, name: str) -> Extract:
        if name not in self.setters:
            raise NotDefined(f"no top-level definition of `{name}`")
        self._take(self.setters[name][-1], name)
        for position in list(self.setters[name]):
            self._take_additions(position, name)
        unknown = self.needs - set(self.setters)
        stars = [statement.text for statement in self.statements if statement.is_star_import] if unknown else []
        if stars:  # the names may come from there; finding out would mean running it
            self.needs -= unknown
        imports, body = self._render()
        ipython = [_FROM_IPYTHON[one] for one in sorted(self.from_ipython)]
        futures = [line for line in imports if line.startswith("from __future__")]
        others = [line for line in imports if not line.startswith("from __future__")]
        head = "\n".join([*futures, *others, *ipython, *stars])
        code = "\n\n\n".join(part for part in (head, *body) if part) + "\n"
        return Extract(code, tuple(sorted(self.needs - self.known)))

    def _want(self, name: str, before: int | None) -> None:
        """Take what sets `name`: for a use at once the last setter before the use, for a later use the last of all."""
        if name in self.known:
            return
        setters = self.setters.get(name, [])
        if not setters:
            if name in _FROM_IPYTHON:
                self.from_ipython.add(name)
            elif name not in _ALWAYS_THERE:
                self.needs.add(name)
            return
        earlier = [position for position in setters if before is None or position < before]
        position = (earlier or setters)[-1]
        if self.constants_only and not self._may_keep(position):
            self.needs.add(name)
            return
        if self.statements[position].is_import:
            # `import torch` and `import torch.nn.functional` both set `torch`, and both may be needed.
            for other in setters:
                if isinstance(self.statements[other].node, ast.Import):
                    self._take(other, name)
        self._take(position, name)
        for position in setters:
            self._take_additions(position, name)

    def _take(self, position: int, name: str) -> None:
        statement = self.statements[position]
        if statement.is_import:
            self.imported.setdefault(position, set()).add(name)
        if position in self.seen:
            return
        self.seen.add(position)
        for used in sorted(statement.uses_at_once):
            self._want(used, before=position)
        self.chosen.append(position)
        for used in sorted(statement.uses_later):
            if used in self.setters or used not in statement.sets_later:
                self._want(used, before=None)
        for mentioned in sorted(statement.mentions & set(self.setters)):
            position = self.setters[mentioned][-1]
            if self._may_keep(position) and not _is_for_readers(self.statements[position].node):
                self._want(mentioned, before=None)

    def _take_additions(self, defined: int, name: str) -> None:
        """Take later statements such as `Table.rows = _rows` or `NAMES["x"] = 1`, which complete what `name` is."""
        for position, statement in enumerate(self.statements):
            completes = position > defined and position not in self.seen and name in _completed_names(statement.node)
            if completes and (not self.constants_only or self._may_keep(position)):
                self._take(position, name)

    def _may_keep(self, position: int, busy: frozenset[int] = frozenset()) -> bool:
        """Whether a statement only imports, defines, or sets constants and aliases of these."""
        statement = self.statements[position]
        if statement.is_import or statement.is_definition or position in busy:
            return True
        if not _is_constant_statement(statement.node):
            return False
        for name in statement.uses_at_once - _ALWAYS_THERE - self.known:
            earlier = [other for other in self.setters.get(name, []) if other < position]
            if not earlier or not self._may_keep(earlier[-1], busy | {position}):
                return False
        return True

    def _render(self) -> tuple[list[str], list[str]]:
        imports: list[str] = []
        for position in sorted(self.imported):
            for line in _import_lines(self.statements[position].node, self.imported[position]):
                if line not in imports:
                    imports.append(line)
        futures = {
            _import_lines(statement.node, {alias.name for alias in statement.node.names})[0]
            for statement in self.statements
            if isinstance(statement.node, ast.ImportFrom) and statement.node.module == "__future__"
        }
        imports = [*sorted(futures), *(line for line in imports if line not in futures)]
        body = [self.statements[position].text for position in self._order()]
        return imports, body

    def _order(self) -> list[int]:
        """Source order where that works; what is used at once comes first where cells were run out of order."""
        chosen = [position for position in self.chosen if position not in self.imported]
        placed: list[int] = []

        def place(position: int, busy: frozenset[int]) -> None:
            if position in placed or position in busy:
                return
            for name in sorted(self.statements[position].uses_at_once):
                setters = [other for other in self.setters.get(name, []) if other in chosen]
                if setters and not any(other < position for other in setters):
                    place(setters[-1], busy | {position})
            placed.append(position)

        for position in sorted(chosen):
            place(position, frozenset())
        return placed


def _statements(source: str) -> list[_Statement]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # a student's "\d" is no matter here
        tree = ast.parse(source)
        lines = source.splitlines()
        return [_statement(node, source, lines) for node in tree.body if not _is_main_guard(node)]


def _statement(node: ast.stmt, source: str, lines: list[str]) -> _Statement:
    if isinstance(node, ast.ImportFrom) and (node.module == "__future__" or node.names[0].name == "*"):
        return _Statement(node, ast.unparse(node))
    at_once: set[str] = set()
    later: set[str] = set()
    sets_later: set[str] = set()
    # The statement alone: as written, a `global x` or a class scope is resolved by the compiler's own rules.
    table = symtable.symtable(ast.unparse(node), "<cell>", "exec")
    sets = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    for scope, is_called_later in _scopes(table, False):
        for symbol in scope.get_symbols():
            is_module_name = scope is table or symbol.is_global()
            if is_module_name and symbol.is_referenced():
                (later if is_called_later else at_once).add(symbol.get_name())
            if scope is not table and symbol.is_global() and symbol.is_assigned():
                later.add(symbol.get_name())  # `global counter`
                sets_later.add(symbol.get_name())
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        at_once.add(node.target.id)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not _builds_on_itself(node):
        at_once.discard(node.name)
    return _Statement(
        node,
        _text(node, source, lines),
        sets=frozenset(sets),
        uses_at_once=frozenset(at_once),
        uses_later=frozenset(later),
        sets_later=frozenset(sets_later),
        mentions=frozenset(_quoted_annotations(node)),
    )


def _builds_on_itself(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether a definition uses an earlier one of the same name, rather than naming itself in an annotation."""
    parts = [*node.decorator_list, *getattr(node, "bases", [])]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        parts += [*node.args.defaults, *(default for default in node.args.kw_defaults if default)]
    return any(isinstance(inner, ast.Name) and inner.id == node.name for part in parts for inner in ast.walk(part))


def _quoted_annotations(node: ast.stmt) -> Iterator[str]:
    """Names in annotations that are one string, such as `x: "Row"`; never the "n d" of Float[Tensor, "n d"]."""
    for inner in ast.walk(node):
        for annotation in (getattr(inner, "annotation", None), getattr(inner, "returns", None)):
            if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
                yield from re.findall(r"(?<![.\w])[A-Za-z_]\w*", annotation.value)


def _scopes(table: Any, is_called_later: bool) -> Iterator[tuple[Any, bool]]:
    yield table, is_called_later
    for child in table.get_children():
        is_function = child.get_type() == "function" and child.get_name() not in _COMPREHENSIONS
        yield from _scopes(child, is_called_later or is_function)


def _text(node: ast.stmt, source: str, lines: list[str]) -> str:
    """The statement as written, with its decorators and the comment right above it."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    assert node.end_lineno is not None  # what was parsed from text has lines
    behind = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
    if lines[first - 1][: node.col_offset].strip() or behind.strip(" ;"):
        rest = behind.strip()
        if not rest.startswith("#"):  # it shares its line with another statement
            return ast.get_source_segment(source, node) or ast.unparse(node)
    while first > 1 and re.match(r"#(?! ?%%|!)", lines[first - 2]) and not _is_marker(lines[first - 2]):
        first -= 1
    return "\n".join(lines[first - 1 : node.end_lineno])


def _is_marker(line: str) -> bool:
    return line.strip() in ("# BEGIN SOLUTION", "# END SOLUTION")


def _import_lines(node: ast.stmt, wanted: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        kept = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in wanted]
        return [ast.unparse(ast.Import(names=[alias])) for alias in kept]
    assert isinstance(node, ast.ImportFrom)
    names = [alias for alias in node.names if (alias.asname or alias.name) in wanted]
    return [ast.unparse(ast.ImportFrom(module=node.module, names=names, level=node.level))] if names else []


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _is_for_readers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _completed_names(node: ast.stmt) -> set[str]:
    """Names whose attributes or items the statement sets."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    names = set()
    for target in targets:
        root = target
        while isinstance(root, ast.Attribute | ast.Subscript):
            root = root.value
        if root is not target and isinstance(root, ast.Name):
            names.add(root.id)
    return names


def _is_constant_statement(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Pass):
        return True
    if isinstance(node, ast.Assign | ast.AugAssign):
        return _is_constant(node.value)
    if isinstance(node, ast.AnnAssign):
        return node.value is None or _is_constant(node.value)
    if isinstance(node, ast.If):
        return all(map(_is_constant_statement, [*node.body, *node.orelse]))
    if isinstance(node, ast.Try):
        handled = [inner for handler in node.handlers for inner in handler.body]
        return all(map(_is_constant_statement, [*node.body, *handled, *node.orelse, *node.finalbody]))
    return type(node).__name__ == "TypeAlias"  # `type Rows = ...`, from Python 3.12


def _is_constant(value: ast.expr) -> bool:
    """Literals, containers of these, arithmetic on them, and names, attributes and subscripts (aliases)."""
    if isinstance(value, ast.Call):
        called = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
        of_re = isinstance(value.func, ast.Attribute) and ast.unparse(value.func) == "re.compile"
        arguments = [*value.args, *(keyword.value for keyword in value.keywords)]
        return (called in _CONSTANT_CALLS or of_re) and all(map(_is_constant, arguments))
    passive = ast.Constant | ast.Name | ast.Attribute | ast.Subscript | ast.Slice | ast.Starred | ast.JoinedStr
    passive |= ast.FormattedValue | ast.List | ast.Tuple | ast.Set | ast.Dict | ast.BinOp | ast.UnaryOp
    if isinstance(value, ast.Lambda):
        return True
    children = [child for child in ast.iter_child_nodes(value) if isinstance(child, ast.expr)]
    return isinstance(value, passive) and all(map(_is_constant, children))


# Notebooks


def read_source(path: str | Path) -> str:
    """Module-like source from a `.py` file or a notebook."""
    path = Path(path)
    return notebook_source(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")


def notebook_source(notebook: str | Path | dict) -> str:
    """The code cells of a notebook (its JSON or its path) joined to one module, without magics and shell lines.

    A cell that does not parse is left out, and a comment in its place says so.
    """
    return join_cells(source for _, source in _code_cells(notebook))


def join_cells(cells: Iterable[str]) -> str:
    """Notebook cells, such as IPython's `In`, joined as `notebook_source` joins those of a file."""
    parts = []
    for number, source in enumerate(cells, start=1):
        cell = plain_python(source)
        error = _syntax_error(cell)
        parts.append(cell if error is None else f"# cell {number} is left out: {error}")
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def unreadable_cells(notebook: str | Path | dict) -> list[str]:
    """A line for every code cell that does not parse, with the cell's number among the code cells."""
    errors = ((number, _syntax_error(plain_python(source))) for number, source in _code_cells(notebook))
    return [f"code cell {number}: {error}" for number, error in errors if error]


def plain_python(cell: str) -> str:
    """A notebook cell without what only IPython understands; a cell in another language becomes empty."""
    first, _, rest = cell.lstrip().partition("\n")
    if first.startswith("%%"):
        runs_python = first[2:].split()[:1] in (["time"], ["timeit"], ["capture"], ["prun"], ["debug"])
        return plain_python(rest) if runs_python else ""
    transformed = _transform(cell)
    return re.sub(r"^([ \t]*)(?:[^\n'\"#=]*=\s*)?get_ipython\(\)\..*$", r"\1pass", transformed, flags=re.MULTILINE)


def _transform(cell: str) -> str:
    try:
        return _transformer().transform_cell(cell)
    except ImportError:
        return re.sub(r"^([ \t]*)[%!].*$", r"\1pass", cell, flags=re.MULTILINE)
    except SyntaxError:
        return cell


@cache
def _transformer() -> Any:
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager()


def _as_json(notebook: str | Path | dict) -> dict[str, Any]:
    if isinstance(notebook, dict):
        return notebook
    if isinstance(notebook, str) and notebook.lstrip().startswith("{"):
        return json.loads(notebook)
    return json.loads(Path(notebook).read_text(encoding="utf-8"))


def _code_cells(notebook: str | Path | dict) -> Iterator[tuple[int, str]]:
    cells = [cell for cell in _as_json(notebook)["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        yield number, cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def _syntax_error(source: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            compile(source, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        return f"{error.msg} (line {error.lineno})"
    return None
