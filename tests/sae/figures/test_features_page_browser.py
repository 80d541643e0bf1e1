"""The page of latents in a real browser, from the disk: links, order, search, filters, two SAEs, no error and no request."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from crux.sae.figures.features_page import render_features_page
from crux.sae.figures.features_page_data import FeaturesPage, PageContexts, SaeFeatures, make_column
from crux.sae.figures.packed_arrays import pack_arrays, unpack_arrays
from crux.subjects.token_texts import TokenTexts
from crux.subjects.tokenizer import load_tokenizer
from tests.support.browser import Tab, find_chromium, open_browser
from tests.support.feature_pages import make_large_page, make_page, read_tokens

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (apt-get install chromium)")

N = 300
CARD = "document.querySelector('.card')?.textContent"
ROWS = "[...document.querySelectorAll('.latents tbody th')].map((e) => e.textContent)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "one.html").write_text(render_features_page(make_page(n=N), read_tokens=read_tokens), "utf-8")
    (folder / "two.html").write_text(render_features_page(make_page(n=N, two=True), read_tokens=read_tokens), "utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.resize(1400, 900)
        yield tab


@pytest.fixture
def tab(browser: Tab) -> Iterator[Tab]:
    """Yield the tab; the page that was open in it must have had no error and must have asked for nothing but itself."""
    yield browser
    assert browser.errors == []
    assert len(browser.requests) == 1
    assert browser.requests[0].startswith("file://")


def column(name: str, *, second: bool = False) -> np.ndarray:
    page = make_page(n=N, two=second)
    sae = page.second if second else page.first
    assert sae is not None
    types = [("x", "f12")]  # as the page has it
    values = next(c.values for c in sae.columns if c.key == name)
    return unpack_arrays(b"".join(pack_arrays({"x": values}, types)), types)["x"]


def open_page(tab: Tab, path: Path, state: str = "") -> None:
    tab.open(f"file://{quote(str(path))}{state}")
    tab.wait("document.querySelector('.cards').dataset.shown !== undefined")


def wait_for_card(tab: Tab, shown: str) -> None:
    tab.wait(f"document.querySelector('.cards').dataset.shown === '{shown}'")


def test_a_link_opens_a_latent_with_its_order_and_search(tab: Tab, folder: Path) -> None:
    open_page(tab, folder / "one.html", "#a/17?sort=influence&q=w2")
    wait_for_card(tab, "a17")
    card = tab.evaluate(CARD)
    assert card.startswith("latent 17")
    assert "reads" in card
    assert "writes, measured" in card
    assert "random firing tokens" in card
    assert tab.evaluate("document.title") == "latent 17 · made up & <b>bold</b>"
    assert tab.evaluate("document.getElementById('plain').hidden")
    assert tab.evaluate("document.querySelector('input[type=search]').value") == "w2"


def test_the_list_is_sorted_by_any_column_in_both_directions(tab: Tab, folder: Path) -> None:
    open_page(tab, folder / "one.html")
    influence = np.argsort(-column("influence"), kind="stable")
    wait_for_card(tab, f"a{influence[0]}")  # the most influential latent, as none is asked for
    shown = tab.evaluate(ROWS)
    assert 20 < len(shown) <= 60  # of 300: only what is seen is in the document
    assert shown == [str(i) for i in influence[: len(shown)]]
    for key in ("density", "rho10", "rho10_percentile", "max"):
        for order in (-1, 1):
            tab.evaluate(f"document.querySelector('th[data-key={key}] button').click()")
            assert tab.evaluate(ROWS)[:20] == [str(i) for i in np.argsort(order * column(key), kind="stable")[:20]]
    assert "sort=max&order=up" in tab.evaluate("location.hash")


def test_filters_keep_latents_between_two_bounds(tab: Tab, folder: Path) -> None:
    open_page(tab, folder / "one.html", "#a/3?sort=latent&order=up&rho10=0.5..0.7&density=..0.01")
    rho, density = column("rho10"), column("density")
    kept = np.flatnonzero((rho >= 0.5) & (rho <= 0.7) & (density <= 0.01))
    assert tab.evaluate(ROWS)[:10] == [str(i) for i in kept[:10]]
    assert tab.evaluate("document.querySelector('.count').textContent") == f"{len(kept)} of {N}"
    tab.evaluate(
        "(() => { const e = document.querySelector('input[data-filter=rho10][data-bound=\"0\"]'); "
        "e.value = '0.6'; e.dispatchEvent(new Event('change')); })()"
    )
    kept = kept[rho[kept] >= 0.6]
    assert tab.evaluate("document.querySelector('.count').textContent") == f"{len(kept)} of {N}"
    assert "rho10=0.6..0.7" in tab.evaluate("location.hash")


def test_search_finds_tokens_of_rules_and_promoted_tokens(tab: Tab, folder: Path) -> None:
    open_page(tab, folder / "one.html")
    page = make_page(n=N).first
    assert page.rules is not None
    assert page.measured is not None
    tab.evaluate("document.querySelector('input[type=search]').focus()")
    tab.type(" W11")
    tokens = [t for t in range(500) if " w11" in read_tokens([t])[0].text]
    hits = [
        i
        for i in range(N)
        if any(part in tokens for rule in page.rules[i] for part in rule.parts) or set(page.measured.promoted[i].tolist()) & set(tokens)
    ]  # fmt: skip
    assert 5 < len(hits) < N
    assert tab.evaluate("document.querySelector('.count').textContent") == f"{len(hits)} of {N}"
    assert sorted(map(int, tab.evaluate(ROWS)))[:10] == [i for i in hits if str(i) in tab.evaluate(ROWS)][:10]
    tab.evaluate("location.hash = '#a?q=within+the+last'")  # the words of rules are not searched
    tab.wait("document.querySelector('.count').textContent.startsWith('0 of')")
    assert "No latent passes" in tab.evaluate("document.querySelector('.cards').textContent")


def test_keys_select_the_next_latent(tab: Tab, folder: Path) -> None:
    order = np.argsort(-column("influence"), kind="stable")
    open_page(tab, folder / "one.html", f"#a/{order[4]}")
    tab.press("ArrowDown")
    wait_for_card(tab, f"a{order[5]}")
    tab.press("ArrowUp")
    tab.press("ArrowUp")
    wait_for_card(tab, f"a{order[3]}")
    assert tab.evaluate("location.hash").startswith(f"#a/{order[3]}")
    tab.evaluate("document.querySelector('.list').scrollTop = 100 * 27")
    tab.wait(f"{ROWS}.includes('{order[104]}')")


def test_text_of_the_data_is_never_markup(tab: Tab, folder: Path) -> None:
    open_page(tab, folder / "one.html", "#a/17")
    assert "</script><script>alert(1)</script>" in tab.evaluate(CARD)
    assert tab.evaluate("document.querySelectorAll('#app script, #app img, #app b:not(.contexts b)').length") == 0


def test_two_saes(tab: Tab, folder: Path) -> None:
    open_page(tab, folder / "two.html", "#a/18?view=pairs&sort=density")
    tab.wait("document.querySelectorAll('.card').length === 2")
    cards = tab.evaluate("[...document.querySelectorAll('.card')].map((e) => e.textContent)")
    assert cards[0].startswith("e2e · latent 18")
    assert cards[1].startswith(f"local · latent {N - 1 - 18}")
    first, second = column("density"), column("density", second=True)
    even = np.arange(0, N, 2)
    by_ratio = even[np.argsort(-np.abs(np.log2(second[N - 1 - even] / first[even])), kind="stable")]
    tab.evaluate("document.querySelector('.list').scrollTop = 0")
    tab.wait(f"{ROWS}[0] === '{by_ratio[0]} | {N - 1 - by_ratio[0]}'")
    assert tab.evaluate(ROWS)[:15] == [f"{i} | {N - 1 - i}" for i in by_ratio[:15]]
    assert tab.evaluate("document.querySelector('.count').textContent") == "150 of 150"
    tab.evaluate(
        "[...document.querySelectorAll('.tabs button')].find((e) => e.textContent === 'only in local').click()"
    )
    influence = column("influence", second=True)
    odd = np.array([i for i in np.argsort(-influence, kind="stable") if (N - 1 - i) % 2])
    tab.wait(f"document.querySelector('.cards').dataset.shown === 'b{odd[0]}'")
    assert tab.evaluate(ROWS)[:15] == [str(i) for i in odd[:15]]
    assert "It has no partner in e2e" in tab.evaluate(CARD)
    assert tab.evaluate("location.hash").startswith(f"#b/{odd[0]}?view=only")


def test_a_drag_over_the_scatter_filters(tab: Tab, folder: Path) -> None:
    open_page(tab, folder / "one.html", "#a/17?plot=rho10,rho10_percentile")
    left, top, width, height = tab.evaluate(
        "(() => { const r = document.querySelector('.area').getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"
    )
    tab.drag((left + width / 2, top + 10), (left + width - 14, top + height - 34))
    tab.wait("location.hash.includes('rho10=')")
    rho = column("rho10")
    middle = rho.min() + np.ptp(rho) * (width / 2 - 56) / (width - 70)
    kept = int(tab.evaluate("document.querySelector('.count').textContent").split()[0])
    assert abs(kept - (rho >= middle).sum()) <= 3  # bounds are rounded to three digits, places to pixels


def test_characters_of_several_tokens_are_shown_once(tab: Tab, tmp_path: Path) -> None:
    """Of the two tokens of each letter the first fires: it is the left stripe of é and the right one of ש."""
    tokenizer = load_tokenizer("tiny").tokenizer
    text = "a你é b ש क्षत्रिय"
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
    codes = np.zeros((2, len(ids)), np.uint8)
    peaks = [tokenizer.encode(text[:n], add_special_tokens=False).ids for n in (2, 6)]
    peaks = [len(peak) for peak in peaks]  # the first token of é, and of ש with its space
    codes[[0, 1], peaks] = 255
    contexts = PageContexts(
        ids[None], np.array([0, 2]), np.array([0, 0]), np.array([0, 0]), np.full(2, len(ids)), np.array(peaks), codes.reshape(-1),
        np.array([2.0]), ("strongest",),
    )  # fmt: skip
    features = SaeFeatures("s", {}, np.array([0]), [make_column("density", np.array([0.1]))], contexts)
    html = render_features_page(FeaturesPage("scripts", {}, features), read_tokens=TokenTexts(tokenizer))
    (tmp_path / "scripts.html").write_text(html, "utf-8")
    open_page(tab, tmp_path / "scripts.html")
    shown = tab.evaluate("[...document.querySelectorAll('.text')].map((e) => e.textContent)")
    assert shown == ["⊢" + text] * 2
    marks = tab.evaluate(
        "[...document.querySelectorAll('mark')].map((e) => [e.textContent, e.style.getPropertyValue('--peak')])"
    )
    assert marks[0] == ["é", "0"]
    assert marks[1][0].strip() == "ש"


def test_contexts_show_what_rules_predict_and_what_ablation_costs(tab: Tab, tmp_path: Path) -> None:
    """Every other latent has the changes of its strongest contexts, alternately +1 and −0.5 nats."""
    page = make_page(n=N)
    contexts = page.first.contexts
    assert contexts is not None
    owners = np.repeat(np.arange(N), np.diff(contexts.offsets))
    known = (contexts.groups == 0) & (owners % 2 == 0)
    changes = np.where(np.arange(contexts.lengths[known].sum()) % 2, -0.5, 1.0)
    predicted = np.arange(len(owners)) / 7
    contexts = contexts._replace(predicted=predicted, ce_known=known, ce_changes=changes)
    page = page._replace(first=page.first._replace(contexts=contexts))
    (tmp_path / "ce.html").write_text(render_features_page(page, read_tokens=read_tokens), "utf-8")
    open_page(tab, tmp_path / "ce.html", "#a/10")
    texts = tab.evaluate("[...document.querySelectorAll('.contexts b small')].map((e) => e.textContent)")
    assert texts == [f"rules {value:.2g}" for value in predicted[owners == 10]]
    count = "document.querySelectorAll('.show-ce .with-ce .{}').length"
    assert tab.evaluate(count.format("helps")) == 0
    first = "getComputedStyle(document.querySelector('.with-ce .text span')).backgroundColor"
    before = tab.evaluate(first)
    tab.evaluate("document.querySelector('.contexts .switch button').click()")
    lengths = contexts.lengths[known & (owners == 10)]
    shown = [tab.evaluate(count.format(name)) for name in ("helps", "hurts")]
    assert shown == [lengths.sum() // 2] * 2
    assert tab.evaluate(first) != before
    titles = tab.evaluate("[...document.querySelectorAll('.with-ce .hurts')].map((e) => e.title)")
    assert all(title.endswith("ΔCE −0.5") for title in titles)
    tab.press("ArrowDown")  # the state is kept; latents without changes have no switch
    tab.evaluate("location.hash = '#a/11'")
    wait_for_card(tab, "a11")
    assert tab.evaluate("document.querySelectorAll('.switch').length") == 0
    tab.evaluate("location.hash = '#a/12'")
    wait_for_card(tab, "a12")
    assert tab.evaluate(count.format("helps")) > 0


def test_notes_are_kept(tab: Tab, folder: Path) -> None:
    open_page(tab, folder / "one.html", "#a/17")
    tab.evaluate("document.querySelector('textarea').focus()")
    tab.type("fires on numbers")
    open_page(tab, folder / "one.html", "#a/17")
    assert tab.evaluate("document.querySelector('textarea').value") == "fires on numbers"


def test_light_dark_and_print(tab: Tab, folder: Path) -> None:
    open_page(tab, folder / "one.html", "#a/17")
    paper = "getComputedStyle(document.body).backgroundColor"
    tab.emulate(features={"prefers-color-scheme": "dark"})
    dark = tab.evaluate(paper)
    tab.emulate(features={"prefers-color-scheme": "light"})
    assert dark != tab.evaluate(paper) == "rgb(255, 255, 255)"
    tab.emulate(media="print")
    assert tab.evaluate("getComputedStyle(document.querySelector('.left')).display") == "none"
    assert tab.evaluate("document.querySelector('.card').offsetHeight") > 100
    tab.emulate()


@pytest.mark.slow
def test_fifty_thousand_latents_open_within_three_seconds(tab: Tab, tmp_path: Path) -> None:
    """On a machine that does nothing else; the browser gets its share of one that other tests keep busy."""
    page = make_large_page()
    (tmp_path / "big.html").write_text(render_features_page(page, read_tokens=read_tokens), "utf-8")
    started = time.monotonic()
    open_page(tab, tmp_path / "big.html", "#a/17")
    wait_for_card(tab, "a17")
    busy = max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))
    assert time.monotonic() - started <= 3 * busy
