"""What the site takes from outside of ``docs/``, and the links that lead there (hooks of MkDocs).

The pages are written for two places: the repository's host, where a relative link may lead to any file,
and the site, which holds ``docs/`` alone. So the files that pages link to become pages too, below
``repository/``, and links are turned there. Code becomes a page with a block of code.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Beside what is linked, these: the navigation names them.
NAMED = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/results/*.md")
CODE_PAGE = """\
---
hide: [navigation, toc]
search: {{exclude: true}}
---
# {}

````python
{}````
"""
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
NAME = re.compile(r"<code>(torchjac(?:\.\w+)+)</code>")


def outside() -> Iterator[str]:
    """The files outside of ``docs/`` that become pages, as paths in the repository."""
    pages = [path for pattern in ("docs/**/*.md", *NAMED) for path in sorted(ROOT.glob(pattern))]
    queue, seen = [path.relative_to(ROOT).as_posix() for path in pages], set()
    while queue:
        path = queue.pop(0)
        if path in seen or not (ROOT / path).is_file():
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            yield path
        if path.endswith(".md"):
            prose = "".join(CODE.split((ROOT / path).read_text(encoding="utf-8")))
            queue += [target_of(link[1], path) for link in LINK.finditer(prose)]


def target_of(link: str, page: str) -> str:
    """Where a relative link of a page leads, both as paths in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def to_site(path: str) -> str:
    """Where a file of the repository is in the site's sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" + (".md" if path.endswith(".py") else "")


def to_repository(path: str) -> str:
    """Where a page of the site is in the repository; the inverse of `to_site`."""
    if not path.startswith("repository/"):
        return f"docs/{path}"
    return path.removeprefix("repository/").replace(".py.md", ".py")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside, and list the examples."""
    for path in outside():
        name, source, text = to_site(path), str(ROOT / path), None
        if path.endswith(".py"):
            source, text = None, CODE_PAGE.format(path, (ROOT / path).read_text(encoding="utf-8"))
        file = File.generated(config, name, content=text, abs_src_path=source)
        file.inclusion = InclusionLevel.NOT_IN_NAV  # but for those that it names
        files.append(file)
    config.nav = _listed(config.nav, files)
    return files


def _listed(part: Any, files: Files) -> Any:
    """A part of the navigation; a folder in it stands for its pages, its own first, code left out."""
    if isinstance(part, dict):
        return {title: _listed(inner, files) for title, inner in part.items()}
    if isinstance(part, list):
        return [listed for inner in part if _is_full(listed := _listed(inner, files))]
    if not part.endswith("/"):
        return part
    pages = [file.src_uri for file in files if file.src_uri.startswith(part)]
    first = {f"{part}index.md", f"{part}README.md"}
    pages = [page for page in pages if page.endswith(".md") and not page.endswith(".py.md")]
    return sorted(pages, key=lambda page: (page not in first, page))


def _is_full(part: Any) -> bool:
    return part != [] and not (isinstance(part, dict) and [] in part.values())


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the relative links of a page to where their targets are in the site."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # it would list the page itself
    here, there = posixpath.dirname(page.file.src_uri), to_repository(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        return posixpath.relpath(to_site(target_of(link[1], there)), here or ".")

    # Code between fences is left as it is.
    prose = CODE.split(markdown)
    code = [*CODE.findall(markdown), ""]
    return "".join(LINK.sub(turned, text) + block for text, block in zip(prose, code, strict=True))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the public names that are written in full to the reference."""
    return NAME.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', html)
