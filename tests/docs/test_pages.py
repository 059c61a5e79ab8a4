"""README.md and the pages of docs/: links lead somewhere, and the first page stays short."""

import re
from pathlib import Path

import pytest

from ccnet_hf.recipes import zoo_recipes


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCED = re.compile(r"^```.*?^```", re.M | re.S)
_LINK = re.compile(r"\]\((?P<target>[^)\s#:]*)(?:#(?P<anchor>[^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    broken = []
    for match in _LINK.finditer(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        target = (page.parent / match["target"]).resolve() if match["target"] else page
        if not target.exists() or (match["anchor"] and match["anchor"] not in anchors(target)):
            broken.append(match[0])
    assert not broken


def test_readme_is_short_and_begins_with_pictures():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1300 and len(text.splitlines()) <= 130
    pictures = [line for line in text.splitlines()[:15] if re.fullmatch(r"!\[.+\]\(docs/images/.+\)", line)]
    assert len(pictures) >= 2


def test_every_page_is_in_the_navigation_and_from_readme_or_home_one_gets_there():
    navigation = set(re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert navigation == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]}
    linked = {match["target"] for page in PAGES for match in _LINK.finditer(page.read_text(encoding="utf-8"))}
    assert {Path(name).name for name in navigation - {"index.md", "api.md"}} <= {Path(name).name for name in linked}


def test_the_table_of_the_zoo_has_every_variant(monkeypatch):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from hooks import zoo_table

    rows = zoo_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [recipe.name for recipe in zoo_recipes()]
    assert all(
        f"| {recipe.reported['mean_iou']:.2f} |" in row for recipe, row in zip(zoo_recipes(), rows, strict=True)
    )
    assert "<!-- the table of the zoo -->" in (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
