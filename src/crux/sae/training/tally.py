"""A record of when each latent last fired, which defines dead and alive latents."""

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from crux.training import ranks


class Tally(nn.Module):
    """Records, for each latent, the number of training tokens up to the last one on which it fired; −1 if it never fired.

    The record stays on the device and is saved in checkpoints.
    """

    last_fired: Tensor
    tokens_seen: Tensor

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.register_buffer("last_fired", torch.full((n_latents,), -1, dtype=torch.long))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.long))

    def count(self, fired: Bool[Tensor, "n_latents"], *, n_tokens: int) -> None:
        """Record which latents fired in one batch, or in this process's share of it, as if they had all fired on its last token."""
        self.tokens_seen += n_tokens * ranks.n_ranks()
        self.last_fired = torch.where(ranks.any_rank(fired), self.tokens_seen, self.last_fired)

    def dead(self, *, after: int) -> Bool[Tensor, "n_latents"]:
        """Return true for latents that have not fired for more than `after` tokens, or never since the start."""
        return self.tokens_seen - self.last_fired.clamp_min(0) > after

    def alive(self, window: int) -> tuple[int, int]:
        """Return the number of latents that fired within the last N tokens, and N. This waits for the device.

        N is `window`, or the number of all tokens so far if there are fewer.
        """
        seen = int(self.tokens_seen)
        n = min(window, seen)
        return int(((self.last_fired >= 0) & (seen - self.last_fired < n)).sum()), n
