from html.parser import HTMLParser

import numpy as np

from crux.sae.figures.latents_page import render_latents_page

VOCABULARY = {0: "", 1: " the", 2: "<script>alert(1)</script>", 3: '"&\n', 4: "�"}


class _Reader(HTMLParser):
    """Checks that tags are nested correctly, and collects everything that a browser would run or load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.marked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "mark":
            self.marked.append(data)


def page() -> str:
    return render_latents_page(
        title="e2e <b>L6</b>",
        facts={"L0": "12 & more"},
        decode=VOCABULARY.__getitem__,
        latents=np.array([7, 3]),
        densities=np.array([0.5, 0.0]),
        tokens=np.array([[[1, 2, 3], [-1, 0, 4]], [[-1, -1, -1], [-1, -1, -1]]]),
        activations=np.array([[[0.0, 4.0, 1.0], [0.0, 2.0, 0.0]], [[0.0] * 3] * 2]),
        peak=1,
        promoted=np.array([[2], [1]]),
        promoted_effects=np.array([[1.25], [0.5]]),
        suppressed=np.array([[3], [4]]),
        suppressed_effects=np.array([[-1.5], [-0.5]]),
    )


def test_well_formed_self_contained_and_escaped() -> None:
    reader = _Reader()
    reader.feed(page())
    assert reader.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in reader.seen}
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in reader.seen)
    assert not any(name.startswith("on") or name == "src" for _, attributes in reader.seen for name in attributes)
    assert "<b>L6" not in page()
    assert "12 &amp; more" in page()


def test_contents() -> None:
    reader = _Reader()
    reader.feed(page())
    assert reader.marked == ["<script>alert(1)</script>", "⟨0⟩"]  # the peaks; a token without text by its number
    shades = [
        attributes["style"] for tag, attributes in reader.seen if tag in ("mark", "span") and "style" in attributes
    ]
    assert shades == ["--a:1.00", "--a:0.25", "--a:0.50"]
    text = page()
    assert "fires on 50 % of tokens" in text
    assert "fires on no token" in text
    assert "does not fire in the held-out text" in text
    assert "+1.25" in text
    assert "-1.50" in text
    assert "↵" in text  # a line break within a token is shown as a symbol
    assert "prefers-color-scheme: dark" in text
