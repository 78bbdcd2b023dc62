"""HTML that escapes by default: text is data, and only `Markup` is markup."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

BREAK = Markup("<br>")


def element(name: str, *content: str, **attributes: str | float | bool) -> Markup:
    """`<name ...>content</name>`.

    Args:
        content: text, which is escaped, and Markup, which is not.
        attributes: values are escaped; True gives an attribute without a value, False leaves it out. An underscore
            stands for a hyphen (`aria_label`).
    """
    head = [_attribute(key, value) for key, value in attributes.items() if value is not False]
    return Markup("<{0}{1}>{2}</{0}>").format(name, join(head), join(content))


def _attribute(key: str, value: str | float | bool) -> Markup:
    name = key.replace("_", "-")
    return Markup(" {}").format(name) if value is True else Markup(' {}="{}"').format(name, value)


def join(parts: Iterable[str]) -> Markup:
    """The parts one behind the other: text escaped, Markup as it is."""
    return Markup("").join(parts)


def inline(text: str) -> Markup:
    """Text with `code` in code style and its line breaks kept."""
    marked = [element("code", part) if at % 2 else escape(part) for at, part in enumerate(text.split("`"))]
    return Markup(join(marked).replace("\n", BREAK))
