"""The documentation builds without a warning, and its reference has every word of the docstrings."""

import html
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import icr_kernels
from frameworks import need

for package in ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers"):
    need(package)

ROOT = Path(__file__).parents[2]
REFERENCE = re.findall(r"^::: (icr_kernels[\w.]+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *options]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    result = build(folder)
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr
    return folder


def words(text: str) -> str:
    """Without what is markup in a docstring, in Markdown or in HTML."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    text = html.unescape(re.sub(r"</?[a-z][^<>]*>", "", text))
    return "".join(re.findall(r"\w+", text)).lower()


@pytest.fixture(scope="module")
def reference(site) -> str:
    return words((site / "api.html").read_text())


def named(path: str):
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


@pytest.mark.parametrize("path", REFERENCE)
def test_reference_has_the_whole_docstring(reference, path):
    """One that is put together at import as well. What an argument or an error is called stands by itself there."""
    if ".mmdet." in path:
        need("mmengine")
    lines = (inspect.getdoc(named(path)) or "").splitlines()
    assert lines
    for line in lines:
        said = re.sub(r"^ +[\w, ]+: |^(Args|Returns|Raises):$|``|<", "", line)
        assert words(said) in reference, line


def test_reference_has_everything_public():
    listed = {path.rpartition(".")[2] for path in REFERENCE}
    assert set(icr_kernels.__all__) - listed == set()


def test_every_page_has_a_place(site):
    """Those outside of docs/ and the pictures beside the measurements, too."""
    for name in ("index.html", "contributing.html", "changelog.html", "CITATION.cff"):
        assert (site / name).stat().st_size > 100
    for name in ("index", "performance"):
        pictures = re.findall(r'<img[^>]* src="([^"]+)"', (site / f"{name}.html").read_text())
        assert pictures and all((site / each).exists() for each in pictures)


def test_nothing_is_fetched_by_who_reads_it(site):
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)\b[^>]* src="([^"]+)"', page.read_text())
        loaded += re.findall(r'<link\b[^>]* href="([^"]+)" rel="(?:stylesheet|preconnect)"', page.read_text())
        loaded += re.findall(r'<link rel="(?:stylesheet|preconnect)" href="([^"]+)"', page.read_text())
        assert loaded and not any(each.startswith(("http", "//")) for each in loaded), page.name


@pytest.mark.parametrize("link", ["nowhere.md", "numerics.md#nowhere", "../nowhere.txt", "../CONTRIBUTING.md#nowhere"])
def test_link_that_leads_nowhere_is_an_error(link, tmp_path):
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).write_text("# Page\n")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "numerics.md").write_text(f"# Page\n\n[there]({link})\n")
    hook = docs / "site" / "repository.py"
    hook.parent.mkdir()
    hook.write_text((ROOT / "docs/site/repository.py").read_text())
    settings = (ROOT / "mkdocs.yml").read_text()
    settings = re.sub(r"^nav:\n.*?\n\n", "", settings, flags=re.DOTALL | re.MULTILINE)
    settings = re.sub(r"^plugins:\n.*?\n\n", "plugins: []\n\n", settings, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(settings)
    result = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert result.returncode == 1 and "nowhere" in result.stderr, result.stderr
