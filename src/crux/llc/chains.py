"""The Markov chains of an estimate: their settings, the loop that moves them, and its checkpoints."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.checked_tensors import DamagedTensorsError, read_checked_tensors, write_checked_tensors
from crux.config.errors import UserError
from crux.config.progress import track
from crux.llc.curvature import largest_curvature
from crux.llc.landscape import Landscape
from crux.llc.noise import Noise
from crux.llc.samplers.interface import ChainState, Posterior, Sampler
from crux.llc.step_size import check_step_size, stiffness

MAX_TRACE_POINTS = 500
"""Largest number of evenly spaced draws per chain in the result's trace."""

STEPS_PER_CHECK = 1000
"""Steps between two checks that every loss is finite."""


class ChainSettings(NamedTuple):
    """Sampler, number and length of the chains."""

    sampler: Sampler
    n_chains: int
    """Number of chains per case."""
    burn_in: int
    """Steps discarded at the start of each chain."""
    draws: int
    """Draws kept per chain."""
    every: int
    """Steps between two draws."""
    step_size: Float[Tensor, "case"] | None
    """ε. None chooses it from the largest curvature a_max at w*: 0.1 / (nβ a_max + γ), or 0.5 / (nβ a_max + γ) for a Metropolis-corrected
    sampler, or 0.5 for a whitened one (step_size.py)."""

    @property
    def steps(self) -> int:
        """Number of steps of each chain."""
        return self.burn_in + self.draws * self.every

    @property
    def trace_draws(self) -> list[int]:
        """Indices of the draws in the result's trace, in order."""
        return sorted(set(torch.linspace(0, self.draws - 1, min(self.draws, MAX_TRACE_POINTS)).long().tolist()))


class Checkpoint(NamedTuple):
    """The file in which chains are saved so that an interrupted estimate can continue; it is kept after the estimate."""

    path: Path
    seconds: float
    """Time between two writes of the file."""


@dataclass
class Chains:
    """The current state of all chains, and the measurements of their draws so far."""

    state: ChainState
    acceptance: Float[Tensor, "row"]
    """Sum of the acceptance probability over draws."""
    square_distance: Float[Tensor, "row"]
    """Sum of ‖w − w*‖² over draws."""
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    """L(w) on the evaluation data, one tensor [row] per draw."""
    distances: list[Tensor] = field(default_factory=list)
    """‖w − w*‖, one tensor [row] per draw in the trace."""

    def add_draw(self, loss: Float[Tensor, "row"], *, centre: Float[Tensor, "row n"], kept: Collection[int]) -> None:
        """Add the current state as a draw; `kept` are the indices of the draws whose distance is kept."""
        square_distance = (self.state.w - centre).square().sum(1)
        self.acceptance += self.state.acceptance
        self.square_distance += square_distance
        if len(self.losses) in kept:
            self.distances.append(square_distance.sqrt())
        self.losses.append(loss)

    def check_finite(self, n_chains: int) -> None:
        """Raise UserError if a chain's loss or position is no longer finite."""
        broken = (~(self.state.loss.isfinite() & self.state.w.isfinite().all(1))).nonzero().flatten().tolist()
        if broken:
            case, chain = divmod(broken[0], n_chains)
            raise UserError(
                f"case {case}, chain {chain}: the loss is no longer finite at step {self.step}; the step size "
                "diverges there: use a smaller one, or a larger gamma to keep the chains near w*"
            )

    def save(self, path: Path, *, identity: Float[Tensor, "_"]) -> None:
        """Write a checkpoint atomically; `identity` identifies the estimate."""
        path.parent.mkdir(parents=True, exist_ok=True)
        no_draws = self.acceptance.new_zeros(len(self.acceptance), 0)
        state = {f"state/{name}": value for name, value in self.state._asdict().items() if value is not None}
        write_checked_tensors(
            path,
            state
            | {
                "identity": identity,
                "step": torch.tensor(self.step),
                "acceptance": self.acceptance,
                "square_distance": self.square_distance,
                "losses": torch.stack(self.losses, 1) if self.losses else no_draws,
                "distances": torch.stack(self.distances, 1)
                if self.distances
                else no_draws.clone(),  # tensors in a file must not share memory
            },
        )


def load_chains(path: Path, *, identity: Float[Tensor, "_"], device: torch.device) -> Chains:
    """Load the chains of a checkpoint.

    Raises:
        UserError: if the file is damaged or belongs to another estimate.
    """
    try:
        saved = read_checked_tensors(path, required=True)
    except DamagedTensorsError as error:
        raise UserError(f"{error}; remove it to start its chains again") from error
    saved_identity = saved.pop("identity", torch.zeros(0))
    if saved_identity.shape != identity.shape or not torch.allclose(saved_identity, identity, rtol=1e-6, atol=0):
        raise UserError(f"{path} is the checkpoint of another estimate; remove it or name another file")
    saved = {name: value.to(device) for name, value in saved.items()}
    state = {name: saved.get(f"state/{name}") for name in ChainState._fields}
    return Chains(
        ChainState(**state),  # pyright: ignore[reportArgumentType]
        acceptance=saved["acceptance"],
        square_distance=saved["square_distance"],
        step=int(saved["step"]),
        losses=list(saved["losses"].unbind(1)),
        distances=list(saved["distances"].unbind(1)),
    )


def run_chains(
    landscape: Landscape,
    posterior: Posterior,
    *,
    settings: ChainSettings,
    size: Float[Tensor, "row"],
    noise: Noise,
    checkpoint: Checkpoint | None,
) -> Chains:
    """Move all chains from w*, or from the checkpoint, to their last step.

    Resuming is exact: noise and minibatches are functions of (seed, chain, step), and the checkpoint contains everything else.

    Args:
        size: ε of each chain.

    Raises:
        UserError: if the step size diverges at the chains' position after burn-in, or a loss is no longer finite.
    """
    sampler, burn_in, every = settings.sampler, settings.burn_in, settings.every
    identity = _identify_chains(settings, posterior, size, noise)
    if checkpoint is not None and checkpoint.path.exists():
        chains = load_chains(checkpoint.path, identity=identity, device=size.device)
    else:
        chains = Chains(sampler.start(posterior.centre, posterior), torch.zeros_like(size), torch.zeros_like(size))
    kept = frozenset(settings.trace_draws)
    last_save = time.monotonic()
    for step in track(range(chains.step + 1, settings.steps + 1), "sampling around w*"):
        chains.state = sampler.step(chains.state, step, posterior=posterior, size=size, noise=noise)
        chains.step = step
        if step % STEPS_PER_CHECK == 0 or step in (burn_in, settings.steps):
            chains.check_finite(settings.n_chains)
        if step == burn_in and not sampler.corrected:
            _check_curvature_after_burn_in(
                landscape, posterior, chains, size * sampler.scale(chains.state, step).amax(1)
            )
        if step > burn_in and (step - burn_in) % every == 0:
            loss = chains.state.loss if landscape.same_data else landscape.evaluate(chains.state.w)
            chains.add_draw(loss, centre=posterior.centre, kept=kept)
        last = step == settings.steps
        if checkpoint is not None and (last or time.monotonic() - last_save >= checkpoint.seconds):
            chains.check_finite(settings.n_chains)
            chains.save(checkpoint.path, identity=identity)
            last_save = time.monotonic()
    return chains


def _check_curvature_after_burn_in(
    landscape: Landscape, posterior: Posterior, chains: Chains, longest: Float[Tensor, "row"]
) -> None:
    """Raise UserError if `longest`, the largest step size of each chain, diverges at the chain's current position."""
    largest = largest_curvature(landscape, chains.state.w)
    h = stiffness(largest, nbeta=posterior.nbeta.double().cpu(), gamma=posterior.gamma.double().cpu())
    check_step_size(longest.double().cpu(), h, where="after burn-in")


def _identify_chains(
    settings: ChainSettings, posterior: Posterior, size: Float[Tensor, "row"], noise: Noise
) -> Float[Tensor, "_"]:
    """Return numbers that differ between estimates; a checkpoint with other numbers is not that of these chains."""
    counts = [settings.burn_in, settings.draws, settings.every, *settings.sampler.name.encode()]
    counts += [number for seed_and_chain in noise.rows for number in seed_and_chain]
    parts = (torch.tensor(counts), size, posterior.nbeta, posterior.gamma, posterior.centre.norm(dim=1))
    return torch.cat([part.double().cpu() for part in parts])
