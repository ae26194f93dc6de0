"""Every block of code in the documentation, and what it is.

The convention. A block says its language on the fence (``sh``, ``json``, ``http``, ``python``,
``yaml``, ``prometheus``, ``mermaid``, or ``files`` for a list of files); of an indented block, or a
bare fence, it is read off the text. A comment before a block says what else a test has to know::

    <!-- service: keys -->        which service the commands run against (tests/docs/services.py)
    <!-- made by: bool_should --> the function whose output the block shows
    <!-- values: requery -->      values of the Helm chart
    <!-- held by: tests/... -->   the test that checks the block in another way; none here does

A block of JSON or HTTP right after one of commands is the answer to the last of them, and one of
``text`` what all of them print.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"))
)
LANGUAGES = {"sh", "json", "http", "python", "yaml", "prometheus", "mermaid", "files", "text"}

_COMMENT = re.compile(r"<!--\s*([a-z ]+):\s*(.+?)\s*-->")
_SIGNS = (
    ("json", re.compile(r"[\[{]")),
    ("http", re.compile(r"HTTP/1")),
    ("yaml", re.compile(r"- \w+:")),
    ("files", re.compile(r"service/ ")),
    ("prometheus", re.compile(r"requery_\w+(\{|\s\d)")),
    (
        "sh",
        re.compile(r"(?:[A-Z_]+=\S*(?:[^\S\n]|'[^']*')*)*(make|curl|requery|python|docker|head)\b"),
    ),
)
"""What an unmarked block begins with, by language."""


@dataclass
class Block:
    """A block of code.

    Attributes:
        page: the file that it is in, from the root of the repository.
        line: the line that it begins on, from 1.
        language: one of :data:`LANGUAGES`, or ``unknown``.
        notes: what the comments before it say.
        answer: the block right after it, if that shows what comes of it.
    """

    page: str
    line: int
    language: str
    text: str
    notes: dict[str, str] = field(default_factory=dict)
    answer: Block | None = None

    @property
    def first_line(self) -> str:
        return self.text.strip().partition("\n")[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ({self.first_line[:60]})"


def language_of(text: str) -> str:
    """What an unmarked block is."""
    start = text.lstrip()
    return next((name for name, sign in _SIGNS if sign.match(start)), "unknown")


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    found = list(_read(page, (ROOT / page).read_text(encoding="utf-8")))
    for block, following in pairwise(found):
        if block.language == "sh" and following.notes.get("adjoins"):
            block.answer = following
    return found


def _read(page: str, text: str) -> Iterator[Block]:
    """The blocks of a page; one that has only white space between it and the last adjoins it."""
    notes: dict[str, str] = {}
    after_block = False
    for token in MarkdownIt().parse(text):
        if token.type == "html_block" and _COMMENT.match(token.content):
            notes |= dict(_COMMENT.findall(token.content))
            after_block = False
        elif token.type in ("fence", "code_block"):
            line = (token.map or [0])[0] + 1
            for language, offset, part in _parts(token.info.strip(), token.content):
                if after_block and language in ("json", "http", "prometheus", "text"):
                    notes["adjoins"] = "yes"
                yield Block(page, line + offset, language, part, notes)
                notes, after_block = {}, True
        elif token.nesting >= 0 and token.level == 0:
            notes, after_block = {}, False


def _parts(language: str, text: str) -> list[tuple[str, int, str]]:
    """Language, first line and text of each part; to Markdown, indented blocks in a row are one."""
    if language:
        return [(language, 0, text)]
    parts: list[tuple[str, int, str]] = []
    line = 0
    for part in re.split(r"(?<=\n)\n+", text):
        kind = language_of(part)
        if parts and kind == "unknown":
            kind, first, before = parts.pop()
            parts.append((kind, first, f"{before}\n{part}"))
        else:
            parts.append((kind, line, part))
        line += part.count("\n") + 1
    return parts
