"""From raw text to paragraphs of English prose, each once."""

import re
import unicodedata
import zlib
from collections.abc import Iterable

_FUNCTION_WORDS = re.compile(
    "the|of|and|to|in|a|is|that|it|for|you|was|on|are|as|with|be|this|at|by|not|or|from|have|i|he|she|they|we|an|if|can|but"
)
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff\ufffd\ue000-\uf8ff]")
_BOILERPLATE = re.compile(
    r"all rights reserved|copyright (©|\(c\))|permission is (hereby )?granted|without any warranty|project gutenberg"
    r"|general public licen[cs]e|free documentation license|^\W*(table of contents|previous|next|chapter \w+)\W*$",
    re.IGNORECASE,
)


def paragraphs(text: str) -> list[str]:
    """Blocks between blank lines, each on one line, in composed Unicode without control characters."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [re.sub(r" +([,.;:?!])(?= |$)", r"\1", block) for block in blocks if block]


def is_prose(paragraph: str) -> bool:
    """Four words or more, mostly letters, no boilerplate: not code, a table row, a menu, dashes or a list of names."""
    letters = sum(map(str.isalpha, paragraph)) + paragraph.count(" ")
    words = paragraph.split()
    long_words = sum(len(word) > 25 for word in words)
    function_words = sum(bool(_FUNCTION_WORDS.fullmatch(word.lower())) for word in words)
    return (
        len(words) >= 4
        and (len(words) < 20 or function_words >= len(words) / 20)
        and letters >= 0.8 * len(paragraph)
        and long_words <= 0.04 * len(words)
        and not _BOILERPLATE.search(paragraph)
    )


def is_english(text: str) -> bool:
    """Common English function words are at least an eighth of the words, and letters are Latin."""
    words = re.findall(r"[a-z']+", text.lower())
    ascii_share = len(text.encode("ascii", "ignore")) / max(1, len(text))
    return ascii_share > 0.9 and sum(bool(_FUNCTION_WORDS.fullmatch(word)) for word in words) >= len(words) / 8


def clean(text: str) -> list[str]:
    kept = [paragraph for paragraph in paragraphs(text) if is_prose(paragraph)]
    return kept if is_english(" ".join(kept)) else []


def shingles(paragraph: str, width: int = 8) -> set[int]:
    """Hashes of all runs of `width` words, case and punctuation aside (of the whole paragraph when it is shorter)."""
    words = re.findall(r"\w+", paragraph.lower())
    runs = range(max(1, len(words) - width + 1))
    return {zlib.crc32(" ".join(words[start : start + width]).encode()) for start in runs}


class Repeats:
    """Remembers what was seen, to leave out paragraphs that come again, word for word or nearly."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._seen: set[int] = set()
        self._reserved: set[int] = set()
        for paragraph in reserved:
            if len(paragraph.split()) >= 8:  # shorter ones are common turns of phrase
                self._reserved |= shingles(paragraph)

    def is_new(self, paragraph: str) -> bool:
        """Whether fewer than half of its word runs were seen before, and at most one stands in reserved text."""
        runs = shingles(paragraph)
        # Of a long paragraph a quarter of the runs, chosen by their hashes, is enough, and saves most of the memory.
        sample = {run for run in runs if run % 4 == 0} if len(runs) > 32 else runs
        repeated = len(sample & self._seen) >= 0.5 * len(sample) or len(runs & self._reserved) > 1
        self._seen |= sample
        return not repeated
