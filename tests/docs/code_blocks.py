"""The fenced blocks of README.md and docs/. `python tests/docs/code_blocks.py` lists those that not every test runs.

A comment on the line before a block says where it is not run, and does not show on the page:

    <!-- not run: needs a GPU -->     never
    <!-- nightly: takes long -->      only by `make nightly`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"(?P<when>not run|nightly): (?P<reason>.+)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of the page in the repository.
        line: of its first line of code.
        language: `"python"`, `"bash"` or another.
        code: its text.
        when: `"test"`, `"nightly"` or `"not run"`.
        reason: why it is not run in every test.
    """

    page: str
    line: int
    language: str
    code: str
    when: str = "test"
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(text: str, page: str) -> list[Block]:
    """The fenced blocks of a page, in order. Raises ValueError for a mark that is none."""
    blocks = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        when, reason = "test", ""
        if match["mark"] is not None:
            mark = _MARK.fullmatch(match["mark"])
            if mark is None:
                raise ValueError(f"{page}:{line}: not a mark of a block: {match['mark']!r}")
            when, reason = mark["when"], mark["reason"]
        blocks.append(Block(page, line, match["language"], match["code"], when, reason))
    return blocks


def all_blocks() -> dict[str, list[Block]]:
    """The blocks of every page that has some, by the page's path."""
    found = {}
    for path in PAGES:
        page = path.relative_to(ROOT).as_posix()
        if blocks := blocks_of(path.read_text(encoding="utf-8"), page):
            found[page] = blocks
    return found


if __name__ == "__main__":
    for blocks in all_blocks().values():
        for block in blocks:
            if block.when != "test":
                print(f"{block}: {block.language}, {block.when}: {block.reason}")
