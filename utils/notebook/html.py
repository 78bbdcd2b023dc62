"""HTML that escapes by default: text is data, and only `Markup` is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable

from markupsafe import Markup

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


_EMPHASIS = re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+)(?<=\S)\*(?![\w*])")


def inline(text: str) -> Markup:
    """Text with `code` in code style, *emphasis* in italics, and its line breaks kept."""
    marked = [element("code", part) if at % 2 else _emphasised(part) for at, part in enumerate(text.split("`"))]
    return Markup(join(marked).replace("\n", BREAK))


def _emphasised(text: str) -> Markup:
    parts = _EMPHASIS.split(text)  # plain, emphasised, plain, ...
    return join(element("em", part) if at % 2 else part for at, part in enumerate(parts))
