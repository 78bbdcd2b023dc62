"""Turn the files of a package into documents: one small reader per file format.

A reader takes a file's name and its bytes and yields `(document name, text)` pairs. Paragraphs in the text are
separated by blank lines. Readers take markup away; judging what is prose is left to `recipes.cleaning`.
"""

import csv
import email
import email.policy
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import PurePosixPath

Document = tuple[str, str]

_BLOCKS = re.compile(
    "p|div|li|dd|dt|ul|ol|dl|h[1-6]|title|section|blockquote|article|main|body|page|item|steps|note|br"
)
_SKIPPED_TAGS = re.compile(
    "head|script|style|pre|table|nav|header|footer|svg|info|screen|media|code-block|synopsis|keyseq|comment"
)
_SKIPPED_CLASSES = re.compile(
    "nav|menu|toc|search|footer|copyright|legalnotice|highlight|programlisting|screen|figure|caption|mediaobject"
    "|revhistory|author|sphinxsidebar|refnamediv|synopsis|headerlink"
)


class _Blocks(HTMLParser):
    """Collects running text, with a blank line at each block and without the parts that are no prose."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._skipping: str | None = None  # the tag whose content is being left out
        self._depth = 0  # how many of that tag are open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipping:
            self._depth += tag == self._skipping
        elif _SKIPPED_TAGS.fullmatch(tag) or (
            tag in ("div", "a", "ul", "span") and _SKIPPED_CLASSES.search(dict(attrs).get("class") or "")
        ):
            self._skipping, self._depth = tag, 1
        elif _BLOCKS.fullmatch(tag):
            self.parts.append("\n\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # an empty element has no text, and must not open a skipped region

    def handle_endtag(self, tag: str) -> None:
        if self._skipping == tag:
            self._depth -= 1
            self._skipping = self._skipping if self._depth else None
        elif not self._skipping and _BLOCKS.fullmatch(tag):
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.parts.append(re.sub(r"\s+", " ", data))


def strip_markup(markup: str) -> str:
    """The running text of an HTML or XML page, without code, tables and navigation."""
    parser = _Blocks()
    parser.feed(markup)
    parser.close()
    return "".join(parser.parts)


def read_html(name: str, data: bytes) -> Iterator[Document]:
    yield PurePosixPath(name).stem, strip_markup(data.decode("utf-8", "replace"))


def read_plain(name: str, data: bytes) -> Iterator[Document]:
    yield PurePosixPath(name).stem, data.decode("utf-8", "replace")


def read_titled_extracts(name: str, data: bytes) -> Iterator[Document]:
    """A JSON object of articles with `title` and `extract`."""
    for article in json.loads(data).values():
        yield article["title"], article["extract"]


def read_cookbook(name: str, data: bytes) -> Iterator[Document]:
    for recipe in json.loads(data).values():
        ingredients = "Ingredients: " + "; ".join(recipe["ingredients"]) + "."
        text = "\n\n".join([recipe["title"], ingredients, *recipe["steps"]])
        yield recipe["title"], text.replace("() ", "")  # where a conversion of units stood


def read_factbook(name: str, data: bytes) -> Iterator[Document]:
    """The full sentences of a country profile; its key figures and lists are no prose."""

    ends_or_is_long = re.compile(r"[a-z] .*[a-z]\.(\s|$)|\w{4,}(\s+\S+){14}")

    def sentences(node: object) -> Iterator[str]:
        for key, value in node.items() if isinstance(node, dict) else ():
            if key == "text" and isinstance(value, str):
                if ends_or_is_long.search(value) and "++" not in value:  # which stands between the items of a list
                    yield strip_markup(value)
            else:
                yield from sentences(value)

    yield PurePosixPath(name).stem, "\n\n".join(sentences(json.loads(data)))


def read_constitution(name: str, data: bytes) -> Iterator[Document]:
    for article in json.loads(data):
        yield f"article {article['article']}", f"{article['title']}\n\n{article['description']}"


def read_tales(name: str, data: bytes) -> Iterator[Document]:
    """A tab-separated table with three header lines, one tale a row, its text in the longest field."""
    csv.field_size_limit(10**7)
    rows = list(csv.reader(io.StringIO(data.decode("utf-8")), delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in filter(None, rows[3:]):
        yield " ".join(row)[:60], re.sub(r" {2,}", "\n\n", max(row, key=len).strip('"'))


def read_sentence_list(name: str, data: bytes) -> Iterator[Document]:
    """A JSON list of unrelated sentences; a dozen make a document."""
    sentences = json.loads(data)
    for start in range(0, len(sentences), 12):
        yield f"{PurePosixPath(name).stem}-{start}", "\n\n".join(sentences[start : start + 12])


def read_brown(name: str, data: bytes) -> Iterator[Document]:
    """Undo the Brown corpus's tagging (`The/at jury/nn`) and its spacing of punctuation."""
    paragraphs = []
    for block in re.split(r"\n\s*\n\s*\n", data.decode("latin-1")):
        text = " ".join(token.rpartition("/")[0] for token in block.split())
        text = re.sub(r"`` ?", "“", text)
        text = re.sub(r" ?''", "”", text)
        text = re.sub(r"([;?!])(?: \1)+", r"\1", text)  # the tagging doubles some
        text = re.sub(r" ([,.;:?!)])", r"\1", text)
        text = re.sub(r"”([,.?!])", r"\1”", text)
        paragraphs.append(re.sub(r"\( ", "(", text).replace(" '", "'"))
    yield PurePosixPath(name).name, "\n\n".join(paragraphs)


def read_mail(name: str, data: bytes) -> Iterator[Document]:
    """What the sender of a mail wrote: no headers, quoted lines, addresses, signature or list footer."""
    message = email.message_from_bytes(data, policy=email.policy.default)
    try:
        body = message.get_body(("plain",))
        text = body.get_content() if body else ""
    except (LookupError, ValueError, KeyError, AttributeError, TypeError):  # broken headers, as in real mail
        return
    text = re.split(r"(?m)^(?:-- ?|_{5,}|-{5,}|={5,}|\*{5,}|-----BEGIN PGP.*)$", text)[0]
    not_the_senders = re.compile(r"\s*(>|\||[A-Za-z]{0,3}>|.*\bwrote:|.*\bwrites:|.*\S@\S)")
    yield PurePosixPath(name).stem, "\n".join(line for line in text.splitlines() if not not_the_senders.match(line))


_SKY_NAMES = {"ship": "Meridian", "first": "Robin", "last": "Hale", "origin": "the port", "planet": "that world"}


def read_endless_sky(name: str, data: bytes) -> Iterator[Document]:
    """Narration and dialogue of a space game's missions: the quoted strings of each top-level entry."""
    for entry in re.split(r"\n(?=\S)", data.decode("utf-8", "replace")):
        quoted = re.findall(r"`([^`]+)`|(?:description|spaceport|dialog) \"([^\"]+)\"", entry)
        lines = [
            re.sub(r"<(\w+)>", lambda m: _SKY_NAMES.get(m[1], m[0]), a or b).strip()
            for a, b in quoted
            if not (a or b).lstrip().startswith("(")  # a choice on a menu, not prose
        ]
        heading = entry.split("\n", 1)[0]
        yield f"{PurePosixPath(name).stem}: {heading}", "\n\n".join(line for line in lines if "<" not in line)


def _zlib_blocks(data: bytes, before: str) -> Iterator[bytes]:
    """Compressed streams that follow one another, each after bytes that match `before`."""
    while len(data := re.sub(rb"\A" + before.encode(), b"", data, count=1, flags=re.DOTALL)):
        stream = zlib.decompressobj()
        yield stream.decompress(data)
        data = stream.unused_data


def read_sword(name: str, data: bytes) -> Iterator[Document]:
    """A SWORD module: one compressed stream of OSIS markup a book; a chapter is a document."""
    for book in _zlib_blocks(data, before=r"\0*"):
        text = re.sub(r"(?s)<note\b.*?</note>|<title\b.*?</title>", " ", book.decode("utf-8", "replace"))
        chapters = re.split(r'<chapter [^>]*osisID="([^"]+)" sID[^>]*>', text)[1:]
        for chapter, verses in zip(chapters[::2], chapters[1::2], strict=True):
            paragraphs = re.sub(r'<div [^>]*type="x-p"[^>]*>', "\n\n", verses)
            words = re.sub(r"<[^>]+>", " ", paragraphs)
            yield chapter, re.sub(r" +([,.;:?!’”)])", r"\1", re.sub(r"([“‘(]) +", r"\1", words))


def read_r_strings(name: str, data: bytes) -> Iterator[Document]:
    """An R data base of character vectors, each a novel by lines; a chapter is a document."""
    string = re.compile(rb"\x00[\x04\x00][\x00\x80]\x09(.{4})", re.DOTALL)  # R's header of a string: type, then length
    for index, block in enumerate(_zlib_blocks(data, before=".{4}")):
        lines, at = [], 0
        while found := string.search(block, at):
            at = found.end() + int.from_bytes(found[1], "big")
            lines.append(block[found.end() : at].decode("utf-8", "replace"))
        for number, chapter in enumerate(re.split(r"(?im)^\s*chapter\s+[ivxlc\d]+\W*$", "\n".join(lines))):
            yield f"novel {index} chapter {number}", chapter


READERS: dict[str, Callable[[str, bytes], Iterator[Document]]] = {
    name.removeprefix("read_"): function for name, function in list(globals().items()) if name.startswith("read_")
}
