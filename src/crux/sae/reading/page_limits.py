"""How much a page of latents shows of each, so that the page of a large dictionary can still be sent by mail."""

from typing import NamedTuple

from crux.sae.reading.contexts import ContextCounts


class PageLimits(NamedTuple):
    """Largest numbers of things that are shown of a latent."""

    contexts: ContextCounts
    rules: int
    measured: int
    """Tokens with measured effects, promoted and suppressed each."""
    lens: int
    """Tokens with direct effects, promoted and suppressed each."""
    neighbours: int
    bins: int
    """Bins of the histogram of its codes."""
    near_misses: int
    """Contexts in which its rules predict a code and it is silent, and as many in which it fires and they do not."""


DETAILED = PageLimits(ContextCounts(6, 5, 2, 4), rules=10, measured=10, lens=8, neighbours=5, bins=20, near_misses=3)
BRIEF = PageLimits(ContextCounts(2, 4, 1, 1), rules=5, measured=5, lens=3, neighbours=3, bins=12, near_misses=0)

LARGE = 8192
"""Number of latents up to which a page is detailed."""


def choose_limits(n_latents: int) -> PageLimits:
    """Return the limits of a page of so many latents: about 0.4 kB per latent up to 8,192, and 0.24 kB above, in a page with everything."""
    return DETAILED if n_latents <= LARGE else BRIEF
