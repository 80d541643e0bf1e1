import re
from collections.abc import Sequence
from html import unescape
from html.parser import HTMLParser

import numpy as np

from crux.sae.figures.latents_page import render_latents_page
from crux.sae.figures.visible_text import make_visible
from crux.subjects.token_texts import TokenText, TokenTexts
from crux.subjects.tokenizer import load_tokenizer

VOCABULARY = {0: "", 1: " the", 2: "<script>alert(1)</script>", 3: '"&\n', 4: "⟨e4⟩"}


def read_tokens(ids: Sequence[int]) -> list[TokenText]:
    return [TokenText(VOCABULARY[token], joined=False) for token in ids]


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
        if self.open and self.open[-1] == "mark" and data:
            self.marked.append(data)


def page() -> str:
    return render_latents_page(
        title="e2e <b>L6</b>",
        facts={"L0": "12 & more"},
        read_tokens=read_tokens,
        latents=np.array([7, 3]),
        densities=np.array([0.5, 0.0]),
        tokens=np.array([[[1, 2, 3], [-1, 0, 4]], [[-1, -1, -1], [-1, -1, -1]]]),
        activations=np.array([[[0.0, 4.0, 1.0], [0.0, 2.0, 0.0]], [[0.0] * 3] * 2]),
        peak=1,
        margin=0,
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
    assert reader.marked == ["<script>alert(1)</script>", "⟨token 0⟩"]  # the peaks; a token without text by its number
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


def context(text: str, *, peak: int, margin: int) -> str:
    """Return the HTML of one context: all tokens of a text in the packaged tokenizer, with the peak at a token."""
    tokenizer = load_tokenizer("tiny").tokenizer
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
    codes = np.zeros(len(ids))
    codes[peak] = 3.0
    none = np.zeros((1, 0), dtype=int)
    html = render_latents_page(
        title="", facts={}, read_tokens=TokenTexts(tokenizer), latents=[0], densities=[0.5],
        tokens=ids[None, None], activations=codes[None, None], peak=peak, margin=margin,
        promoted=none, promoted_effects=none, suppressed=none, suppressed_effects=none,
    )  # fmt: skip
    (found,) = re.findall(r'<span class="text" dir="auto">(.*?)</span></p>', html)
    return found


def plain(html: str) -> str:
    return unescape(re.sub("<[^>]*>", "", html))


def test_a_character_of_several_tokens_is_shown_once_with_its_tokens_joined() -> None:
    assert context("a你b", peak=2, margin=0) == (
        "<span>a</span>"
        '<mark class="joined" style="--n:3;--codes:linear-gradient(90deg,rgba(var(--hot),0.00) 0% 33.33%,'
        'rgba(var(--hot),1.00) 33.33% 66.67%,rgba(var(--hot),0.00) 66.67% 100%);--peak:1" title="3 tokens: 0 · 3 · 0">你</mark>'
        "<span>b</span>"
    )


def test_the_stripes_of_a_letter_are_in_the_direction_of_its_script() -> None:
    """Of the two tokens of each letter the first fires: it is the left stripe of é and the right one of ש."""
    assert "--peak:0" in context("é", peak=0, margin=0)
    assert "--peak:1" in context("ש", peak=0, margin=0)


def test_the_first_and_the_last_character_are_completed_from_the_margin() -> None:
    # of 8 tokens, a | e4 bd a0 | e5 a5 bd | b, those at 2 to 5 are shown: a character is whole or not there
    assert plain(context("a你好b", peak=3, margin=2)) == "你好"
    assert plain(context("a你好b", peak=3, margin=1)) == "你好"
    assert plain(context("a你好b", peak=3, margin=0)) == "a你好b"


def test_text_in_many_scripts_is_readable() -> None:
    text = "你好 👨‍👩‍👧‍👦 🇩🇪 שלום مرحبا क्षत्रिय e\u0301 naïve"
    assert plain(context(text, peak=5, margin=0)) == text


def test_what_is_invisible_has_a_symbol_or_a_name() -> None:
    assert make_visible("a\n\tb\x00\x7f\x85") == "a↵⇥b␀⟨U+007F⟩⟨U+0085⟩"
    assert make_visible("a\u202eb") == "a⟨U+202E⟩b"  # it would reverse the rest of the line
    assert make_visible("\u200b\u200d") == "⟨U+200B⟩⟨U+200D⟩"
    assert make_visible("👩\u200d💻") == "👩\u200d💻"  # a joiner between characters does its work
    assert make_visible("\u0301s") == "◌\u0301s"
    assert make_visible("") == ""


def test_a_token_without_text_is_named_by_its_number() -> None:
    html = render_latents_page(
        title="", facts={}, read_tokens=read_tokens, latents=[0], densities=[0.5],
        tokens=np.zeros((1, 0, 1), dtype=int), activations=np.zeros((1, 0, 1)), peak=0, margin=0,
        promoted=[[0]], promoted_effects=[[1.0]], suppressed=[[4]], suppressed_effects=[[-1.0]],
    )  # fmt: skip
    assert "⟨token 0⟩" in html
    assert "⟨e4⟩</code>" in html  # a byte
