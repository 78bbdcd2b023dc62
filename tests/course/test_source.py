"""Reading source without running it: extraction of one definition, notebooks, stubs."""

import textwrap

import pytest

from authoring.stubs import stub_module, stub_source
from utils.errors import CourseError
from utils.source import NotDefined, definitions, extract, notebook_source, plain_python, unreadable_cells

LIVE = textwrap.dedent(
    '''
    import math, os
    import os.path
    from typing import NamedTuple
    DAYS = ["Mon", "Tue"]
    Pair = tuple[int, int]
    model = open("nothing")
    size = len(DAYS)
    seen = 0

    def helper(x):
        return 1

    # what a helper does
    def helper(x):
        global seen
        seen += 1
        return [math.sqrt(day) for day in DAYS if (n := day) and n]

    def keep(function):
        return function

    @keep
    def pca(x: Pair, k: "Pair | None" = None) -> 'Float[Tensor, "n seq"]':
        """Doc with model in it."""
        def inner(y):
            return helper(y) + model.layers + missing
        return inner(os.path.join(x))

    class Rows:
        days = DAYS
        def again(self) -> "Rows":
            return Rows()

    Rows.extra = helper
    '''
)


def run(code: str) -> dict:
    names: dict = {}
    exec(compile(code, "<extract>", "exec"), names)
    return names


def test_extract_takes_what_is_used_and_no_more():
    got = extract(LIVE, "pca")
    assert got.needs == ("missing",)
    for part in (
        "import math\n",
        "import os\n",
        "import os.path\n",
        "# what a helper does\n",
        "@keep",
        'model = open("nothing")',
        "seen = 0",
    ):
        assert part in got.code
    for part in ("NamedTuple", "return 1\n", "size", "class Rows"):
        assert part not in got.code


def test_extract_from_a_live_notebook_takes_constants_and_names_the_rest():
    got = extract(LIVE, "pca", constants_only=True)
    assert got.needs == ("missing", "model")
    assert "DAYS = " in got.code and "Pair = " in got.code and "open(" not in got.code
    assert callable(run(got.code)["pca"])


def test_extract_of_a_class_takes_what_completes_it_later():
    got = extract(LIVE, "Rows", constants_only=True)
    names = run(got.code)
    assert names["Rows"]().extra is not None and names["Rows"].days == ["Mon", "Tue"]
    assert got.needs == ()


@pytest.mark.parametrize(
    ("source", "needs"),
    [
        ("def f(x: Float[Tensor, 'n d']): return x", ("Float", "Tensor")),
        ("def f(x: 'Unknown[int, \"n d\"]'): return x", ()),
        ("def f(x):\n    global state\n    state = x\n    return state", ()),
        ("def f():\n    with open('a') as g, open(b) as h: return g, h", ("b",)),
        ("def f(*args, **kw):\n    try: return args\n    except E as e: return e, kw", ("E",)),
        ("def f():\n    import a.b as c\n    return c, [i for i in d for j in i if j]", ("d",)),
        ("class f:\n    x = 1\n    y = [x for _ in range(3)]\n    def g(self): return super().g() + x", ("x",)),
        ("f = lambda: y", ("y",)),
        ("def f(x):\n    match x:\n        case [a, *b]: return a, b, c", ("c",)),
        ("from m import *\ndef f(x): return from_star(x)", ()),
        ("def f(): display(1)", ()),
    ],
)
def test_names_that_nothing_supplies(source, needs):
    assert extract(source, "f").needs == needs


def test_star_import_and_future_import_are_kept_first():
    code = extract(
        "from m import *\nfrom __future__ import annotations\nx = 1\ndef f(y: Z): return sin(y) + x", "f"
    ).code
    assert code.splitlines()[:2] == ["from __future__ import annotations", "from m import *"]


def test_earlier_versions_of_a_redefined_function_do_not_pile_up():
    cell = "class A:\n    def again(self) -> A:\n        return A()\n\ndef f():\n    return A\n"
    assert extract(cell + cell + cell, "f").code.count("class A") == 1


def test_a_wrapped_redefinition_keeps_what_it_wraps():
    code = extract("def f(): return 1\nold = f\ndef g(h): return lambda: h() + 1\nf = g(f)", "f").code
    assert run(code)["f"]() == 2


def test_cells_written_in_the_wrong_order_come_out_in_a_working_one():
    code = extract("def f(x=SIZE): return x\nSIZE = 3", "f").code
    assert run(code)["f"]() == 3


def test_statements_that_share_a_line_are_separated():
    assert (
        extract("a = 1; b = open('x'); c = a\ndef f(): return c", "f").code
        == "a = 1\n\n\nc = a\n\n\ndef f(): return c\n"
    )


def test_known_names_are_neither_copied_nor_missed():
    got = extract(LIVE, "pca", known={"helper", "missing"})
    assert "def helper" not in got.code and got.needs == ()


def test_imports_guarded_by_try_come_along():
    source = "try:\n    import json as j\nexcept ImportError:\n    j = None\ndef f(): return j"
    assert extract(source, "f", constants_only=True).needs == ()
    assert run(extract(source, "f", constants_only=True).code)["f"]().__name__ == "json"


def test_imports_for_type_checkers_stay_behind_where_only_quotes_mention_them():
    guard = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from m import Model\n"
    assert extract(guard + "def f(x: 'Model'): return x", "f").code == "def f(x: 'Model'): return x\n"
    got = extract("from __future__ import annotations\n" + guard + "def f(x: Model): return x", "f")
    assert "TYPE_CHECKING:" in got.code and got.needs == ()


def test_unknown_names_and_definitions():
    with pytest.raises(NotDefined, match="`nothing`"):
        extract(LIVE, "nothing")
    assert list(definitions(LIVE)) == ["helper", "keep", "pca", "Rows"]


def notebook(*cells: str) -> dict:
    return {"cells": [{"cell_type": "code", "source": cell} for cell in cells]}


def test_notebook_cells_become_a_module():
    made = notebook(
        "%pip install x\nfiles = !ls\ndef f():\n    !rm x\n    return 1",
        "def (",
        "%%time\ndef g(): return f()",
        "%%bash\nls",
    )
    assert set(definitions(notebook_source(made))) == {"f", "g"}
    assert "get_ipython" not in notebook_source(made)
    assert unreadable_cells(made) == ["code cell 2: invalid syntax (line 1)"]


def test_percent_and_exclamation_mark_inside_python_stay():
    cell = "x = '''\n%d rows!\n''' % 3\ny = (7\n    % 4)\nassert x != y\n"
    assert run(plain_python(cell))["y"] == 3


SOLUTION = textwrap.dedent(
    '''
    import math

    @keep
    def area(r: float, *, unit: str = "m") -> float:
        """Area of a circle.

        Units: square metres. A backslash \\\\ stays.
        """
        if r < 0:
            raise ValueError("negative")
        # BEGIN SOLUTION
        squared = r * r
        # END SOLUTION
        return math.pi * squared

    def bare(x,
             y):  # comment
        # how to do it
        return x + y

    class Table:
        """Rows."""

        size: int = 0
        # BEGIN SOLUTION

        def _secret(self):
            return 1
        # END SOLUTION

        @property
        def rows(self) -> int:
            """How many."""
            return 3

        def __len__(self):
            # BEGIN SOLUTION
            return 3
            # END SOLUTION
    '''
)


def test_stub_keeps_signature_docstring_and_what_is_not_marked():
    stub = stub_source(SOLUTION, "area")
    assert stub.startswith('@keep\ndef area(r: float, *, unit: str = "m") -> float:\n    """Area of a circle.\n')
    assert "A backslash \\\\ stays." in stub
    assert (
        '    raise NotImplementedError("write area, then run the check below")\n    return math.pi * squared\n' in stub
    )
    assert "r * r" not in stub and "SOLUTION" not in stub


def test_stub_without_markers_loses_its_body_and_comments():
    stub = stub_source(SOLUTION, "bare")
    assert stub.endswith('y):  # comment\n    raise NotImplementedError("write bare, then run the check below")\n')


def test_stub_of_a_class_keeps_its_outline():
    stub = stub_source(SOLUTION, "Table")
    names = run(stub)
    assert "_secret" not in stub and "size: int = 0" in stub and "    @property\n    def rows" in stub
    assert "SOLUTION" not in stub
    with pytest.raises(NotImplementedError, match=r"write Table\.rows"):
        _ = names["Table"]().rows
    with pytest.raises(NotImplementedError, match="__len__"):
        len(names["Table"]())


def test_stub_module_keeps_helpers():
    code = stub_module("def helper(): return 4\n" + SOLUTION.replace("@keep", ""), ["area", "bare", "Table"])
    names = run(code)
    assert names["helper"]() == 4
    for call in (lambda: names["area"](1.0), lambda: names["bare"](1, 2)):
        with pytest.raises(NotImplementedError):
            call()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f():\n    # BEGIN SOLUTION\n    pass\n", "x.py:2: BEGIN SOLUTION is never closed"),
        ("def f():\n    pass\n    # END SOLUTION\n", "x.py:3: END SOLUTION without a BEGIN"),
        (
            "def f():\n    # BEGIN SOLUTION\n    # BEGIN SOLUTION\n    pass\n",
            "x.py:3: BEGIN SOLUTION inside the region opened in line 2",
        ),
        ("def g(): pass\n", "x.py: no top-level function or class is named `f`"),
    ],
)
def test_stub_errors_name_file_and_line(source, says):
    with pytest.raises(CourseError) as caught:
        stub_source(source, "f", "x.py")
    assert says in str(caught.value)


def test_stub_of_a_one_liner_and_of_a_class_that_is_all_solution():
    with pytest.raises(NotImplementedError):
        run(stub_source("def f(x): return x\n", "f"))["f"](1)
    assert "Empty" in run(
        stub_source("class Empty:\n    # BEGIN SOLUTION\n    def g(self): return 1\n    # END SOLUTION\n", "Empty")
    )
