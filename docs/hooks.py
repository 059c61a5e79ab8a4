"""What the site has beside the pages: files of the repository that pages link to, and tables made from data."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from ccnet_hf.recipes import zoo_recipes
from ccnet_hf.zoo.listing import describe


_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_ELSEWHERE = "repository/"  # where the site has what lies outside docs/


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        uri = waiting.pop()
        text = (_ROOT / _in_repository(uri)).read_text(encoding="utf-8")
        for match in _LINK.finditer(text):
            linked = _on_site(uri, match["target"])
            if linked.startswith(_ELSEWHERE) and files.get_file_from_path(linked) is None:
                source = _ROOT / _in_repository(linked)
                if source.is_file():
                    files.append(File.generated(config, linked, abs_src_path=str(source)))
                    waiting += [linked] if linked.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at where the site has the files, and fill in the table of the zoo."""

    def pointed(match: re.Match[str]) -> str:
        linked = _on_site(page.file.src_uri, match["target"])
        if files.get_file_from_path(linked) is None:
            return match[0]  # MkDocs complains
        return f"]({posixpath.relpath(linked, posixpath.dirname(page.file.src_uri))}{match['anchor'] or ''})"

    return _LINK.sub(pointed, markdown.replace("<!-- the table of the zoo -->", zoo_table()))


def _in_repository(uri: str) -> str:
    """Path in the repository of a file of the site."""
    return uri.removeprefix(_ELSEWHERE) if uri.startswith(_ELSEWHERE) else f"docs/{uri}"


def _on_site(uri: str, target: str) -> str:
    """The site's file that `target` names in the file `uri`."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_in_repository(uri)), target))
    return path.removeprefix("docs/") if path.startswith("docs/") else _ELSEWHERE + path


def zoo_table() -> str:
    """The variants of the zoo as Markdown, from what `python -m ccnet_hf.zoo list` lists."""
    lines = [
        "| variant, and its short name | classes | inference | mIoU | multi-scale + flip |",
        "|---|---|---|---|---|",
    ]
    for variant in map(describe, zoo_recipes()):
        short_name = f"<br>`{variant['short_name']}`" if variant["short_name"] else ""
        reported = variant["reported"]
        lines.append(
            f"| `{variant['name']}`{short_name} | {variant['num_labels']} | {variant['inference']['mode']} "
            f"| {reported['mean_iou']:.2f} | {reported['mean_iou_multi_scale_flip']:.2f} |"
        )
    return "\n".join(lines)
