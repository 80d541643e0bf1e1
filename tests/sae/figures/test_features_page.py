"""The page of latents as a file: what it holds, that it is safe, and how large it is."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from crux.sae.figures.features_page import render_features_page
from crux.sae.figures.features_page_data import FeaturesPage, PageColumn, SaeFeatures, make_column
from tests.support.feature_pages import SPECIAL, make_large_page, make_page, read_tokens
from tests.support.html_blocks import HtmlBlocks


class _Reader(HTMLParser):
    """Checks that tags are nested correctly, and collects them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read_html(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    return reader


@pytest.fixture(scope="module")
def html() -> str:
    return render_features_page(make_page(n=200), read_tokens=read_tokens)


def test_well_formed_self_contained_and_escaped(html: str) -> None:
    reader = read_html(html)
    assert reader.open == []
    assert not {"img", "iframe", "object", "embed"} & {tag for tag, _ in reader.seen}
    for tag, attributes in reader.seen:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        assert (attributes.get("href") or "#")[:5] in ("#", "data:"), tag
    assert "<b>bold" not in html
    assert html.count("<script>") == 1  # all others are data
    assert [a.get("type") for tag, a in reader.seen if tag == "script"][:-1] == ["text/plain"] * (
        html.count("<script") - 1
    )
    assert "default-src 'none'" in html
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html
    assert not re.search("[\x00\ud800-\udfff]", html)


def test_the_numbers_of_the_list_come_back(html: str) -> None:
    page, blocks = make_page(n=200), HtmlBlocks(html)
    index = blocks.index("a")
    assert index["latents"].tolist() == list(range(200))
    for column in page.first.columns:
        np.testing.assert_allclose(index[f"column/{column.key}"], column.values, rtol=2.0**-12)


def test_contexts_come_back_with_their_tokens_and_exact_codes(html: str) -> None:
    contexts, blocks = make_page(n=200).first.contexts, HtmlBlocks(html)
    assert contexts is not None
    store, tokens = blocks.store(0), np.array(blocks.manifest["pieces"]["tokens"])
    texts, flat, seen = blocks.manifest["pieces"]["texts"], contexts.windows.reshape(-1), 0
    ends = np.cumsum(contexts.lengths)
    for number in range(4):
        chunk = blocks.chunk("a", number)
        inside = 0
        for start, length, peak in zip(chunk["starts"], chunk["lengths"], chunk["peaks"], strict=True):
            pieces = store[start : start + length]
            first = contexts.starts[seen]
            assert tokens[pieces].tolist() == flat[first : first + length].tolist()
            assert peak == contexts.peaks[seen]
            codes = contexts.codes[ends[seen] - contexts.lengths[seen] : ends[seen]]
            np.testing.assert_array_equal(chunk["codes"][inside : inside + length], codes)
            inside += length
            seen += 1
        rows = slice(64 * number, 64 * number + len(chunk["contexts"]))
        assert chunk["contexts"].tolist() == np.diff(contexts.offsets)[rows].tolist()
        np.testing.assert_allclose(chunk["maxima"], contexts.maxima[rows], rtol=2.0**-12)
    assert seen == len(contexts.starts)
    assert texts[int(np.flatnonzero(tokens == 3)[0])] == "␀"
    assert SPECIAL[1] in texts


def test_rules_and_effects_come_back(html: str) -> None:
    page, blocks = make_page(n=200).first, HtmlBlocks(html)
    assert page.rules is not None
    assert page.measured is not None
    index, chunk = blocks.index("a"), blocks.chunk("a", 1)
    texts, tokens = blocks.manifest["pieces"]["texts"], blocks.manifest["pieces"]["tokens"]
    rules = [rule for rules in page.rules for rule in rules]
    parts = iter((index["rule_parts"] - 1).tolist())
    for rule, length in zip(rules, index["rule_lengths"], strict=True):
        found = [next(parts) for _ in range(length)]
        assert [tokens[p] if tokens[p] >= 0 else texts[p] for p in found] == list(rule.parts)
    shown = [rule for rules in page.rules[64:128] for rule in rules]
    assert chunk["rule_counts"].tolist() == [rule.n_tokens for rule in shown]
    assert chunk["rule_means"] == pytest.approx([rule.mean for rule in shown], rel=2.0**-7)
    assert chunk["rule_shares"] == pytest.approx([rule.share for rule in shown], rel=2.0**-6)
    assert chunk["rule_adds"].tolist() == [rule.adds for rule in shown]
    promoted = (index["measured/promoted"] - 1).reshape(200, -1)
    assert np.array(tokens)[promoted].tolist() == page.measured.promoted.tolist()
    suppressed = (chunk["measured/suppressed"] - 1).reshape(64, -1)
    assert np.array(tokens)[suppressed].tolist() == page.measured.suppressed[64:128].tolist()
    assert page.measured.promoted_errors is not None
    np.testing.assert_allclose(
        chunk["measured/promoted_effects"], page.measured.promoted_effects[64:128].reshape(-1), rtol=2.0**-7
    )
    np.testing.assert_allclose(
        chunk["measured/promoted_errors"], page.measured.promoted_errors[64:128].reshape(-1), rtol=2.0**-5
    )


def test_two_saes_share_their_text() -> None:
    page = make_page(n=100, two=True)
    blocks = HtmlBlocks(render_features_page(page, read_tokens=read_tokens))
    assert len(blocks.manifest["stores"]) == 1
    assert [sae["name"] for sae in blocks.manifest["saes"]] == ["e2e", "local"]
    assert page.second is not None
    other = page.second._replace(contexts=make_page(n=5, vocab=400).first.contexts, latents=np.arange(5), columns=(), histograms=None,
                                 rules=None, measured=None, lens=None, neighbours=None)  # fmt: skip
    blocks = HtmlBlocks(render_features_page(page._replace(second=other, pairs=None), read_tokens=read_tokens))
    assert len(blocks.manifest["stores"]) == 2
    assert blocks.manifest["pairs"] is None


def test_without_scripts_there_is_a_table_of_the_most_influential_latents(html: str) -> None:
    page = make_page(n=200).first
    influence = next(column.values for column in page.columns if column.key == "influence")
    rows = read_html(html).rows
    assert rows[0][:2] == ["latent", "density"]
    assert [int(row[0]) for row in rows[1:]] == np.argsort(-influence)[:50].tolist()
    assert page.rules is not None
    first = page.rules[int(rows[1][0])][0]
    assert rows[1][-2].startswith("".join(show(token) for token in first.parts))


def show(token: int | str) -> str:
    assert isinstance(token, int)
    text = read_tokens([token])[0].text
    return text.replace("\n", "↵").replace("\x00", "␀")


def test_a_page_with_nothing_but_numbers_and_one_without_latents() -> None:
    columns = [make_column("density", np.array([0.5, np.nan])), PageColumn("x", "x", "", np.array([1.0, 2.0]))]
    bare = SaeFeatures("s", {}, np.array([7, 3]), columns)
    html = render_features_page(FeaturesPage("t", {}, bare), read_tokens=read_tokens)
    assert read_html(html).rows[1:] == [["7", "50 %", "1"], ["3", "–", "2"]]
    none = SaeFeatures("s", {}, np.zeros(0, np.int64), [make_column("density", np.zeros(0))])
    assert "0 of 0 latents" in render_features_page(FeaturesPage("t", {}, none), read_tokens=read_tokens)


def test_the_same_page_has_the_same_bytes(html: str) -> None:
    assert render_features_page(make_page(n=200), read_tokens=read_tokens) == html


def test_the_page_of_a_default_run_is_small() -> None:
    page = make_page(n=2048, vocab=2048, full=False, n_contexts=20, top=8)
    assert len(render_features_page(page, read_tokens=read_tokens).encode()) < 1.5e6


@pytest.mark.slow
def test_fifty_thousand_latents_with_everything_take_at_most_12_mb() -> None:
    size = len(render_features_page(make_large_page(), read_tokens=read_tokens).encode())
    assert size <= 12e6
