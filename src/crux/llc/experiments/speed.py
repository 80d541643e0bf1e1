"""Measure the gain of one batched program: chain-steps per second of all chains together, compared with a Python loop over chains.

The sampler is SGLD on a 6-2-6 toy model with 1,024 samples. The two are timed alternately, so that a busy machine slows down both. A step
includes gradient, noise and move.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.llc.coordinates import Coordinates
from crux.llc.losses import Batch, FixedData, compute_loss_and_gradient, map_over_chains
from crux.llc.noise import Noise
from crux.llc.options import Speed
from crux.llc.samplers.interface import Posterior
from crux.llc.samplers.sgld import SGLD
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

CHAINS = (8, 32, 128)
"""Numbers of chains of the batched program."""
STEPS = 20
"""Steps per measurement, in the batch and in the loop."""
ROUNDS = 15
"""Measurements, whose median is reported."""
LOOP_CHAINS = 4
"""Chains of the loop; its chain-steps per second do not depend on their number."""
SAMPLES = 1024


def toy_error(p: dict[str, Tensor], x: Batch) -> Tensor:
    """Return Σ_i (x_i − ReLU(Wᵀ W x + b)_i)² of one network, one value per sample."""
    return (x - (x @ p["W"].mT @ p["W"] + p["b"]).relu()).square().sum(1)


def result(options: Speed, run: ActiveRun) -> Result:
    """Measure the median gain over rounds, for several numbers of chains."""
    rng = torch.Generator().manual_seed(run.seed)
    x = torch.rand(SAMPLES, 6, generator=rng) * (torch.rand(SAMPLES, 6, generator=rng) < 0.1)
    params = {"W": torch.randn(1, 2, 6, generator=rng) / 2, "b": torch.zeros(1, 6)}
    gains, rates, rows = [], [], []
    for n in CHAINS:
        batched_steps = chain_stepper(params, FixedData(x), n_chains=n, seed=run.seed)
        loop_steps = [chain_stepper(params, FixedData(x), n_chains=1, seed=run.seed + i) for i in range(LOOP_CHAINS)]
        rounds = []
        for _ in range(ROUNDS):
            batch_rate = n * STEPS / seconds_per_call(batched_steps)
            rounds.append((batch_rate, LOOP_CHAINS * STEPS / sum(map(seconds_per_call, loop_steps))))
        batch_rates, loop_rates = (torch.tensor(column) for column in zip(*rounds, strict=True))
        gains.append(float((batch_rates / loop_rates).median()))
        rates.append((float(batch_rates.median()), float(loop_rates.median())))
        run.add_row(n, {"gain": gains[-1]})
        rows.append([n, f"{rates[-1][0]:,.0f}", f"{rates[-1][1]:,.0f}", f"{gains[-1]:.1f}"])
    # with the fewest chains, the gain is measured but not checked
    return Result(
        metrics={f"gain/{n}": gain for n, gain in zip(CHAINS, gains, strict=True)},
        checks=[Check(f"gain of {n} chains as one program", gains[CHAINS.index(n)], 4, torch.inf) for n in CHAINS[1:]],
        figures={},
        arrays={"chains": torch.tensor(CHAINS), "gain": torch.tensor(gains), "rates": torch.tensor(rates)},
        report=markdown_table(["chains", "one program, chain-steps/s", "loop, chain-steps/s", "gain"], rows),
    )


def chain_stepper(params: dict[str, Tensor], data: FixedData, *, n_chains: int, seed: int) -> Callable[[], None]:
    """Return a function that runs STEPS more steps of the chains; the first STEPS have already been run to warm up."""
    coordinates, loss, sampler = Coordinates(params, free=None), map_over_chains(toy_error), SGLD()
    w = coordinates.start(n_chains)
    noise = Noise([seed], n_chains=n_chains, n=coordinates.n, like=w)
    batch = data.get_batch(0, noise.rows)
    ones = torch.ones(n_chains)
    posterior = Posterior(w, 100 * ones, ones, lambda w, step: compute_loss_and_gradient(loss, coordinates, w, batch))
    state, step = sampler.start(w, posterior), 0

    def run_steps() -> None:
        nonlocal state, step
        for _ in range(STEPS):
            step += 1
            state = sampler.step(state, step, posterior=posterior, size=1e-5 * ones, noise=noise)

    run_steps()
    return run_steps


def seconds_per_call(run_steps: Callable[[], None]) -> float:
    """Return the duration of one call in seconds."""
    begin = time.perf_counter()
    run_steps()
    return time.perf_counter() - begin


EXPERIMENT = Experiment(Speed, result)
