"""Every citation and link resolves: to a section of a page in docs/, to a paper, or to a file and heading."""

import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

import crux

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") if (ROOT / name).is_file()),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SOURCES = [
    *(path for folder in ("src", "tests") for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)),
    *(path for folder in ("conf", "sweeps") for path in sorted((ROOT / folder).rglob("*.yaml"))),
]
DOCS_FILE = r"docs/[\w./-]*\w\.\w+"
SECTION = r"§§?\s?(\d+(?:\.\d+)*)"
PAPER = r"\d{4}\.\d{4,5}|et al\.|[A-Z]\w+ (?:19|20)\d\d\b"


def headings(page: Path) -> list[str]:
    """Return the text of each heading, without those in code blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"^#+ +(.*?)\s*$", text, flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading.lower())).replace(" ", "-")


def cited_sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each mentioned file in docs/ and the sections that follow it, as in `docs/x.md §2 and §4.5`."""
    for found in re.finditer(rf"({DOCS_FILE})((?:,?\s+(?:and\s+)?(?:#\s*)?{SECTION})*)", text):
        yield found[1], re.findall(SECTION, found[2])


def broken_citations(text: str, *, root: Path) -> list[str]:
    """Return the citations of files in docs/ that do not exist, and of sections that those files do not have."""
    broken = []
    for name, sections in cited_sections(text):
        page = root / name
        if not page.is_file():
            broken.append(f"{name} does not exist")
            continue
        numbers = {heading.split(" ")[0].rstrip(".") for heading in headings(page)} if sections else set()
        broken += [f"{name} has no section {section}" for section in sections if section not in numbers]
    return broken


def relative_links(page: Path) -> list[str]:
    """Return the targets of a Markdown page's links within the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^()\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a Markdown page whose file or heading does not exist."""
    broken = []
    for target in relative_links(page):
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            broken.append(f"{target}: no such file")
        elif fragment and fragment not in {anchor(heading) for heading in headings(file)}:
            broken.append(f"{target}: no such heading")
    return broken


def unnamed_sections(text: str) -> list[str]:
    """Return citations such as "§3" or "reference 1.3" in a paragraph that names neither a paper nor a page in docs/."""
    citation = rf"{SECTION}|\breference (?:[A-C]\.)?\d+\.\d"
    paragraphs = re.split(r"\n\s*\n", text)
    return [p.strip() for p in paragraphs if re.search(citation, p) and not re.search(rf"{PAPER}|{DOCS_FILE}", p)]


def failures(paths: list[Path], check: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    return {str(path.relative_to(ROOT)): found for path in paths if (found := check(path))}


def test_cited_files_and_sections_exist() -> None:
    assert not failures([*SOURCES, *PAGES], lambda path: broken_citations(path.read_text(), root=ROOT))


def test_links_resolve() -> None:
    assert not failures(PAGES, broken_links)


def test_every_page_is_reachable_from_the_index() -> None:
    reached, to_visit = set(), [ROOT / "docs" / "README.md"]
    while to_visit:
        page = to_visit.pop()
        reached.add(page)
        linked = {(page.parent / target.partition("#")[0]).resolve() for target in relative_links(page)}
        to_visit += [found for found in linked & set(PAGES) if found not in reached]
    assert set((ROOT / "docs").rglob("*.md")) <= reached


def test_the_citation_file_is_complete_and_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == crux.__version__


def test_sections_belong_to_a_named_source() -> None:
    """A § without a paper or a page in the same paragraph tells the reader nothing."""
    assert not failures(SOURCES, lambda path: unnamed_sections(path.read_text()))


def test_files_named_in_the_documentation_exist() -> None:
    """Except those of the made-up plug-in, whose option is called `absolute`."""
    missing = []
    for page in PAGES:
        named = re.findall(r"(?<![\w/])(?:src|tests|conf|sweeps|docs)/[\w./]*[\w/]", page.read_text())
        missing += [name for name in named if not (ROOT / name).exists() and "absolute" not in name]
    assert not missing


def test_python_names_in_the_documentation_exist() -> None:
    missing = []
    for page in PAGES:
        for name in set(re.findall(r"`(crux(?:\.\w+)+)", page.read_text())) if page.name != "CHANGELOG.md" else ():
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                missing.append(f"{page.relative_to(ROOT)}: {name}")
    assert not missing


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text(
        "# Page\n\n## 1. One `thing`\n\n[a](#1-one-thing) [b](#2-two) [c](other.md) [d](page.md#page) [e](https://x.org)\n"
    )
    assert broken_citations("see docs/page.md §1 and §2, docs/none.md", root=tmp_path) == [
        "docs/page.md has no section 2",
        "docs/none.md does not exist",
    ]
    assert broken_citations("docs/page.md §1.", root=tmp_path) == []
    assert broken_links(page) == ["#2-two: no such heading", "other.md: no such file"]
    assert unnamed_sections("As in §3.\n\nAs in Gao et al., §2.3.\n\n(reference 1.3)") == [
        "As in §3.",
        "(reference 1.3)",
    ]
