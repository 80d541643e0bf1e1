"""Made-up pages of latents, of any size."""

from collections.abc import Sequence

import numpy as np

from crux.sae.figures.features_page_data import (
    FeaturesPage,
    MatchedPairs,
    Neighbours,
    PageColumn,
    PageContexts,
    PageRule,
    SaeFeatures,
    TokenEffects,
    make_column,
)
from crux.sae.reading.page_limits import BRIEF
from crux.subjects.token_texts import TokenText

SPECIAL = {
    0: "<|endoftext|>", 1: "</script><script>alert(1)</script>", 2: "\n", 3: "\x00", 4: " the", 5: "⟨e4⟩",
    6: "<img src=x onerror=alert(1)>",
}  # fmt: skip


def read_tokens(ids: Sequence[int]) -> list[TokenText]:
    """Return made-up texts: some that a careless page would run, and words for the rest."""
    return [TokenText(SPECIAL.get(token, f" w{token}" if token % 3 else f"s{token}"), joined=False) for token in ids]


def draw_tokens(rng: np.random.Generator, shape: tuple[int, ...], vocab: int) -> np.ndarray:
    """Return tokens with frequencies as in a language: the n-th most common one has a share that is proportional to 1 / n."""
    weights = 1 / np.arange(1, vocab + 1)
    return rng.choice(vocab, shape, p=weights / weights.sum())


def make_features(
    *,
    n: int,
    seed: int,
    windows: np.ndarray,
    vocab: int,
    name: str = "e2e",
    n_contexts: int = 8,
    n_rules: int = 3,
    top: int = 5,
    full: bool = True,
) -> SaeFeatures:
    """Return features with random numbers; `full`: with everything that a page can show."""
    rng = np.random.default_rng(seed)
    density = np.exp(rng.normal(-6, 1.5, n)).clip(0, 1)
    columns = [make_column("density", density), make_column("max", rng.gamma(3, 1, n))]
    lens = _make_effects(rng, n, vocab, top, errors=False)
    if not full:
        return SaeFeatures(
            name,
            {},
            np.arange(n),
            columns,
            make_contexts(rng, n, windows, n_contexts),
            rng.poisson(30, (n, 12)),
            lens=lens,
        )
    influence = np.exp(rng.normal(-9, 2, n))
    columns += [
        make_column("rho10", rng.beta(2, 3, n)),
        make_column("influence", influence),
        make_column("rho10_percentile", rng.uniform(0, 100, n)),
        make_column("influence_percentile", rng.uniform(0, 100, n)),
        PageColumn("literal", "literal", "share of ρ² that the current token explains alone", rng.uniform(0, 1, n)),
    ]
    tokens = draw_tokens(rng, (n, n_rules, 3), vocab)
    lengths = rng.integers(1, 4, (n, n_rules))
    counts = rng.integers(3, 300, (n, n_rules))
    means, shares = rng.gamma(2, 0.5, (n, n_rules)), rng.beta(1, 9, (n, n_rules))
    rules = [
        [
            PageRule(_make_parts(tokens[i, k, : lengths[i, k]].tolist(), k), means[i, k], int(counts[i, k]), shares[i, k], k == 2)
            for k in range(n_rules)
        ]
        for i in range(n)
    ]  # fmt: skip
    neighbours = Neighbours(rng.integers(0, n, (n, 3)), rng.uniform(0, 1, (n, 3)), rng.uniform(0, 1, (n, 3)))
    return SaeFeatures(
        name, {"loss": name}, np.arange(n), columns, make_contexts(rng, n, windows, n_contexts), rng.poisson(30, (n, 12)), rules,
        _make_effects(rng, n, vocab, top, errors=True), lens, neighbours,
    )  # fmt: skip


def make_contexts(rng: np.random.Generator, n: int, windows: np.ndarray, per_latent: int) -> PageContexts:
    """Return random contexts of 24 tokens in which about two tokens fire, as for a TopK SAE."""
    context, width, total = windows.shape[1], 24, n * per_latent
    within = rng.integers(0, context - width + 1, total)
    codes = rng.integers(1, 256, (total, width)) * (rng.random((total, width)) < 0.035)
    codes[:, 15] = rng.integers(1, 256, total)
    return PageContexts(
        windows, np.arange(n + 1) * per_latent, np.tile(np.sort(np.arange(per_latent) % 3), n),
        rng.integers(0, len(windows), total) * context + within, np.full(total, width), np.full(total, 15),
        codes.reshape(-1).astype(np.uint8), rng.gamma(3, 1, n), ("strongest", "codes of rank 0 to 20 %", "random firing tokens"),
    )  # fmt: skip


def make_page(
    *,
    n: int = 200,
    full: bool = True,
    two: bool = False,
    vocab: int = 500,
    n_contexts: int = 8,
    n_rules: int = 3,
    top: int = 5,
) -> FeaturesPage:
    """Return a page of one or two SAEs; of two, latent i of the first is matched with latent n − 1 − i of the second, for even i."""
    rng = np.random.default_rng(0)
    windows = draw_tokens(rng, (max(20, n // 50), 128), vocab)

    def features(seed: int, name: str) -> SaeFeatures:
        return make_features(
            n=n, seed=seed, windows=windows, vocab=vocab, name=name, n_contexts=n_contexts, n_rules=n_rules, top=top, full=full
        )  # fmt: skip

    first = features(1, "e2e")
    if not two:
        return FeaturesPage("made up & <b>bold</b>", {"subject": "none"}, first)
    second = features(2, "local")
    even = np.arange(0, n, 2)
    pairs = MatchedPairs(even, n - 1 - even, rng.uniform(0.1, 1, len(even)), rng.uniform(0, 1, len(even)))
    return FeaturesPage("two made up", {"subject": "none"}, first, second, pairs)


def _make_parts(tokens: list[int], kind: int) -> tuple[int | str, ...]:
    return tuple(tokens) if kind < 2 else ("within the last 8 tokens:", tokens[0])


def _make_effects(rng: np.random.Generator, n: int, vocab: int, top: int, *, errors: bool) -> TokenEffects:
    up, down = -np.sort(-rng.gamma(2, 0.5, (n, top))), np.sort(-rng.gamma(2, 0.5, (n, top)))
    error = rng.gamma(2, 0.05, (2, n, top)) if errors else None
    return TokenEffects(
        draw_tokens(rng, (n, top), vocab), up, error[0] if error is not None else None,
        draw_tokens(rng, (n, top), vocab), down, error[1] if error is not None else None,
        "Δ log-probability at a KL of 0.1 nats, ± standard error" if errors else "logits per unit of direction",
    )  # fmt: skip


def make_large_page() -> FeaturesPage:
    """Return a page of 50,000 latents with as much of each as a page of that size shows (`page_limits.BRIEF`)."""
    n_contexts = BRIEF.contexts.top + BRIEF.contexts.quantiles * BRIEF.contexts.per_quantile + BRIEF.contexts.random
    page = make_page(n=50_000, vocab=50_000, n_contexts=n_contexts, n_rules=BRIEF.rules, top=BRIEF.measured)
    lens, neighbours = page.first.lens, page.first.neighbours
    assert lens is not None
    assert neighbours is not None
    lens = lens._replace(
        promoted=lens.promoted[:, : BRIEF.lens], promoted_effects=lens.promoted_effects[:, : BRIEF.lens],
        suppressed=lens.suppressed[:, : BRIEF.lens], suppressed_effects=lens.suppressed_effects[:, : BRIEF.lens],
    )  # fmt: skip
    neighbours = neighbours._replace(correlations=None)
    return page._replace(first=page.first._replace(lens=lens, neighbours=neighbours))
