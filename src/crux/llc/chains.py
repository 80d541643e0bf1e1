"""The chains of an estimate: how many and how long, the loop that moves them, and its checkpoints."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crux.config.errors import UserError
from crux.config.files import write_tensors
from crux.config.progress import track
from crux.llc.curvature import stiffest_there
from crux.llc.landscape import Landscape
from crux.llc.noise import Noise
from crux.llc.samplers.interface import Posterior, Sampler, State
from crux.llc.step_size import check_step_size, stiffness

KEPT = 500
"""Points of each chain's trace in the result, evenly spaced."""

LOOK = 1000
"""Steps between two checks that every loss is still a number."""


class ChainSettings(NamedTuple):
    """How chains move, how many, and how long."""

    sampler: Sampler
    n_chains: int
    """Per case, all next to each other."""
    burn_in: int
    """Steps of each chain that are discarded."""
    draws: int
    """Kept of each chain."""
    every: int
    """Steps from one draw to the next."""
    step_size: Float[Tensor, "case"] | None
    """ε; None: 0.1 / (nβ a_max + γ), 0.5 for a sampler that accepts and refuses, and 0.5 for one that is whitened."""

    @property
    def steps(self) -> int:
        """Steps of each chain."""
        return self.burn_in + self.draws * self.every

    @property
    def kept_draws(self) -> list[int]:
        """Numbers of the draws that are in the result's trace, in order."""
        return sorted(set(torch.linspace(0, self.draws - 1, min(self.draws, KEPT)).long().tolist()))


class Checkpoint(NamedTuple):
    """Where the chains are saved, so that an interrupted estimate continues. It stays when the estimate is finished."""

    path: Path
    seconds: float
    """Between two writes."""


@dataclass
class Chains:
    """Chains on their way, and what was measured of them so far."""

    state: State
    acceptance: Float[Tensor, "row"]
    """Sum over draws."""
    square_distance: Float[Tensor, "row"]
    """Sum of ‖w − w*‖² over draws."""
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    """L(w) [row] of each draw, on the evaluation data."""
    distances: list[Tensor] = field(default_factory=list)
    """‖w − w*‖ [row] of the draws that are kept."""

    def add_draw(self, loss: Float[Tensor, "row"], *, centre: Float[Tensor, "row n"], kept: Collection[int]) -> None:
        """Measure the chains where they are; `kept` are the numbers of the draws whose distance is kept."""
        away = (self.state.w - centre).square().sum(1)
        self.acceptance += self.state.acceptance
        self.square_distance += away
        if len(self.losses) in kept:
            self.distances.append(away.sqrt())
        self.losses.append(loss)

    def check_finite(self, n_chains: int) -> None:
        """Raise a UserError if the loss of a chain is no number any more."""
        broken = (~(self.state.loss.isfinite() & self.state.w.isfinite().all(1))).nonzero().flatten().tolist()
        if broken:
            case, chain = divmod(broken[0], n_chains)
            raise UserError(
                f"case {case}, chain {chain}: the loss is not a finite number any more by step {self.step}; the step size "
                "diverges there, give a smaller one, or a larger gamma to hold the chains near w*"
            )

    def save(self, path: Path, *, identity: Float[Tensor, "_"]) -> None:
        """Write a checkpoint, whole or not at all; `identity` tells the estimate from others."""
        path.parent.mkdir(parents=True, exist_ok=True)
        none = self.acceptance.new_zeros(len(self.acceptance), 0)
        state = {f"state/{name}": value for name, value in self.state._asdict().items() if value is not None}
        write_tensors(
            path,
            state
            | {
                "identity": identity,
                "step": torch.tensor(self.step),
                "acceptance": self.acceptance,
                "square_distance": self.square_distance,
                "losses": torch.stack(self.losses, 1) if self.losses else none,
                "distances": torch.stack(self.distances, 1) if self.distances else none.clone(),
            },
        )


def load_chains(path: Path, *, identity: Float[Tensor, "_"], device: torch.device) -> Chains:
    """Return the chains of a checkpoint.

    Raises:
        UserError: if it is damaged, or of another estimate.
    """
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and its chains start again") from error
    known = saved.pop("identity")
    if known.shape != identity.shape or not torch.allclose(known, identity, rtol=1e-6, atol=0):
        raise UserError(f"{path} is the checkpoint of another estimate; remove it, or name another file")
    saved = {name: value.to(device) for name, value in saved.items()}
    state = {name: saved.get(f"state/{name}") for name in State._fields}
    return Chains(
        State(**state),  # pyright: ignore[reportArgumentType]
        acceptance=saved["acceptance"],
        square_distance=saved["square_distance"],
        step=int(saved["step"]),
        losses=list(saved["losses"].unbind(1)),
        distances=list(saved["distances"].unbind(1)),
    )


def sample(
    landscape: Landscape,
    posterior: Posterior,
    *,
    settings: ChainSettings,
    size: Float[Tensor, "row"],
    noise: Noise,
    checkpoint: Checkpoint | None,
) -> Chains:
    """Move all chains from w* to their last step, or from the checkpoint on.

    Exact on resuming: noise and minibatches are functions of (seed, chain, step), and the checkpoint holds everything else.

    Args:
        size: ε.

    Raises:
        UserError: for a step size that diverges where the chains went, or a loss that stopped being a number.
    """
    sampler, burn_in, every = settings.sampler, settings.burn_in, settings.every
    identity = _identity(settings, posterior, size, noise)
    if checkpoint is not None and checkpoint.path.exists():
        chains = load_chains(checkpoint.path, identity=identity, device=size.device)
    else:
        chains = Chains(sampler.start(posterior.centre, posterior), torch.zeros_like(size), torch.zeros_like(size))
    kept = frozenset(settings.kept_draws)
    saved = time.monotonic()
    for step in track(range(chains.step + 1, settings.steps + 1), "sampling around w*"):
        chains.state = sampler.step(chains.state, step, posterior=posterior, size=size, noise=noise)
        chains.step = step
        if step % LOOK == 0 or step in (burn_in, settings.steps):
            chains.check_finite(settings.n_chains)
        if step == burn_in and not sampler.corrected:
            _check_curvature_there(landscape, posterior, chains, size * sampler.scale(chains.state, step).amax(1))
        if step > burn_in and (step - burn_in) % every == 0:
            loss = chains.state.loss if landscape.same_data else landscape.evaluate(chains.state.w)
            chains.add_draw(loss, centre=posterior.centre, kept=kept)
        last = step == settings.steps
        if checkpoint is not None and (last or time.monotonic() - saved >= checkpoint.seconds):
            chains.check_finite(settings.n_chains)
            chains.save(checkpoint.path, identity=identity)
            saved = time.monotonic()
    return chains


def _check_curvature_there(
    landscape: Landscape, posterior: Posterior, chains: Chains, longest: Float[Tensor, "row"]
) -> None:
    """Check that the longest steps are short enough for the curvature where the chains are now."""
    there = stiffest_there(landscape, chains.state.w)
    h = stiffness(there, nbeta=posterior.nbeta.double().cpu(), gamma=posterior.gamma.double().cpu())
    check_step_size(longest.double().cpu(), h, where="where the chains went")


def _identity(
    settings: ChainSettings, posterior: Posterior, size: Float[Tensor, "row"], noise: Noise
) -> Float[Tensor, "_"]:
    """Return numbers by which a checkpoint of these very chains is known."""
    counts = [settings.burn_in, settings.draws, settings.every, *settings.sampler.name.encode()]
    counts += [n for row in noise.rows for n in row]
    parts = (torch.tensor(counts), size, posterior.nbeta, posterior.gamma, posterior.centre.norm(dim=1))
    return torch.cat([part.double().cpu() for part in parts])
