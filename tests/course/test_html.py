"""HTML escapes by default; only what is marked as such is markup."""

import pytest

from utils.notebook.html import BREAK, Markup, element, inline, join


def test_text_and_attributes_are_escaped_and_markup_is_not():
    inner = element("b", "a < b & c")
    assert inner == "<b>a &lt; b &amp; c</b>"
    made = element("p", "1 < 2 ", inner, BREAK, title='say "<hi>"', aria_label="x", open=True, hidden=False)
    assert made == ('<p title="say &#34;&lt;hi&gt;&#34;" aria-label="x" open>1 &lt; 2 <b>a &lt; b &amp; c</b><br></p>')
    assert isinstance(made, Markup)
    assert join(["<", Markup("<i>")]) == "&lt;<i>"


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("use `x < 1` here\nand there", "use <code>x &lt; 1</code> here<br>and there"),
        ("the *total* variance", "the <em>total</em> variance"),
        ("2 * 3 * 4, a*b*c, `*args` and *", "2 * 3 * 4, a*b*c, <code>*args</code> and *"),
        ("<script>", "&lt;script&gt;"),
    ],
)
def test_what_a_hint_may_hold(text, html):
    assert inline(text) == html
