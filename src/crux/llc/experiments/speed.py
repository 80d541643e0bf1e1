"""What one batched program saves: chain-steps a second of all chains together, against a Python loop over chains of one network each.

SGLD on a 6-2-6 toy model and 1,024 samples; the two are timed in turn, so that a busy machine slows both. A step is everything:
gradient, noise, move.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.llc.coordinates import Coordinates
from crux.llc.losses import Batch, Fixed, over_chains, value_and_gradient
from crux.llc.noise import Noise
from crux.llc.options import Speed
from crux.llc.samplers.interface import Posterior
from crux.llc.samplers.sgld import SGLD
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

CHAINS = (8, 32, 128)
STEPS, ROUNDS = 20, 15
"""Of each measurement; the loop's chains take as many steps, ALONE of them."""
ALONE = 4
SAMPLES = 1024


def toy_error(p: dict[str, Tensor], x: Batch) -> Tensor:
    """Return Σ_i (x_i − ReLU(WᵀW x + b)_i)² of one network, one value per sample."""
    return (x - (x @ p["W"].mT @ p["W"] + p["b"]).relu()).square().sum(1)


def result(options: Speed, run: ActiveRun) -> Result:
    """Measure the median over rounds of the gain, for several numbers of chains."""
    rng = torch.Generator().manual_seed(run.seed)
    x = torch.rand(SAMPLES, 6, generator=rng) * (torch.rand(SAMPLES, 6, generator=rng) < 0.1)
    params = {"W": torch.randn(1, 2, 6, generator=rng) / 2, "b": torch.zeros(1, 6)}
    gains, rates, rows = [], [], []
    for n in CHAINS:
        together = stepper(params, Fixed(x), n_chains=n, seed=run.seed)
        singly = [stepper(params, Fixed(x), n_chains=1, seed=run.seed + i) for i in range(ALONE)]
        rounds = []
        for _ in range(ROUNDS):
            one = n * STEPS / seconds(together)
            rounds.append((one, ALONE * STEPS / sum(map(seconds, singly))))
        batched, alone = (torch.tensor(column) for column in zip(*rounds, strict=True))
        gains.append(float((batched / alone).median()))
        rates.append((float(batched.median()), float(alone.median())))
        run.add_row(n, {"gain": gains[-1]})
        rows.append([n, f"{rates[-1][0]:,.0f}", f"{rates[-1][1]:,.0f}", f"{gains[-1]:.1f}"])
    return Result(
        metrics={f"gain/{n}": gain for n, gain in zip(CHAINS, gains, strict=True)},
        checks=[Check(f"gain of {n} chains as one program", gains[CHAINS.index(n)], 4, torch.inf) for n in CHAINS[1:]],
        figures={},
        arrays={"chains": torch.tensor(CHAINS), "gain": torch.tensor(gains), "rates": torch.tensor(rates)},
        report=markdown_table(["chains", "one program, chain-steps/s", "loop, chain-steps/s", "gain"], rows),
    )


def stepper(params: dict[str, Tensor], data: Fixed, *, n_chains: int, seed: int) -> Callable[[], None]:
    """Return a function that makes STEPS more steps."""
    at, loss, sampler = Coordinates(params, free=None), over_chains(toy_error), SGLD()
    w = at.start(n_chains)
    noise = Noise([seed], n_chains=n_chains, n=at.n, like=w)
    batch = data.at(0, noise.rows)
    each = torch.ones(n_chains)
    posterior = Posterior(w, 100 * each, each, lambda w, step: value_and_gradient(loss, at, w, batch))
    state, step = sampler.start(w, posterior), 0

    def more() -> None:
        nonlocal state, step
        for _ in range(STEPS):
            step += 1
            state = sampler.step(state, step, posterior=posterior, size=1e-5 * each, noise=noise)

    more()
    return more


def seconds(more: Callable[[], None]) -> float:
    """Return the duration of one call."""
    begin = time.perf_counter()
    more()
    return time.perf_counter() - begin


EXPERIMENT = Experiment(Speed, result)
