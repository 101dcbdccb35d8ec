"""Files outside of docs/ as pages of the site: README.md is its first page, and what pages link to comes along."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = "docs/"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for file in list(files.documentation_pages()):
        for _, target in LINK.findall(file.content_string):
            linked = in_repository(target, in_site(file.src_uri))
            place = place_of(linked)
            if files.get_file_from_path(place) is None and (ROOT / linked).is_file():
                files.append(File.generated(config, place, abs_src_path=str(ROOT / linked)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Its links, which are those of the repository, as those of the site."""

    def link(match: re.Match[str]) -> str:
        place = place_of(in_repository(match[2], in_site(page.file.src_uri)))
        return match[1] + posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(link, markdown)


def in_site(place: str) -> str:
    """Where a file of the site lies in the repository."""
    of_pages = {page: source for source, page in PAGES.items()}
    if place in of_pages:
        return of_pages[place]
    return DOCS + place if (ROOT / DOCS / place).exists() else place


def in_repository(target: str, source: str) -> str:
    """What a link of a file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def place_of(path: str) -> str:
    """Where a file of the repository lies in the site."""
    return PAGES.get(path, path.removeprefix(DOCS))
