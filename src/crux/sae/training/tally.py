"""When each latent last fired."""

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from crux.training import ranks


class Tally(nn.Module):
    """Counts in training tokens, on the device; goes into the checkpoint."""

    last_fired: Tensor
    tokens_seen: Tensor

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.register_buffer("last_fired", torch.full((n_latents,), -1, dtype=torch.long))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.long))

    def count(self, fires: Bool[Tensor, "tokens n_latents"]) -> None:
        """Takes in one batch, all of whose tokens count as its last one; of several ranks, each its share of it."""
        self.tokens_seen += len(fires) * ranks.n_ranks()
        self.last_fired = torch.where(ranks.any_rank(fires.any(0)), self.tokens_seen, self.last_fired)

    def dead(self, *, after: int) -> Bool[Tensor, "n_latents"]:
        """Latents that have not fired for more than `after` tokens; one that never fired is counted from the start."""
        return self.tokens_seen - self.last_fired.clamp_min(0) > after

    def alive(self, window: int) -> tuple[int, int]:
        """How many latents fired within the last N tokens, and N (`window`, or all tokens where fewer). Waits for the device."""
        seen = int(self.tokens_seen)
        n = min(window, seen)
        return int(((self.last_fired >= 0) & (seen - self.last_fired < n)).sum()), n
