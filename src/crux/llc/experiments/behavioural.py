"""How many parameters a small perceptron has, at a cutoff of its behavioural loss: sampled at every nβ, and by the Gauss–Newton spectrum.

A ReLU perceptron that was trained, not to its minimum, on classes drawn from a random one's distributions. Its outputs are compared
as they are (MSE) and as the logits that they are (KL).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from crux.config.schema import Config
from crux.llc.behavioural import Divergence
from crux.llc.calibration import ERRORS
from crux.llc.coordinates import stacked
from crux.llc.effective import effective_parameters, quadratic_n_eff, rank
from crux.llc.experiments.sampling import arrays, explained, keys, nbetas, sampler_of, table, table_rows
from crux.llc.figures.effective_parameters import effective_parameters_figure
from crux.llc.losses import Batch, Fixed, over_chains
from crux.runs.experiment import AddRow
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder

INPUTS, CLASSES = 4, 3
STEPS, RATE = 300, 1e-2
"""Of Adam on all data."""

RELATIVE = 1e-9
"""Eigenvalues below this share of the largest are zero."""

AT_MOST = 0.05
"""Share of the parameters by which the two curves may differ where ε is smallest, beside three standard errors."""


def perceptron(hidden: Sequence[int]) -> nn.Sequential:
    """ReLU, float64."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip((INPUTS, *hidden), hidden, strict=False):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], CLASSES)).double()


def trained(hidden: Sequence[int], *, samples: int) -> tuple[nn.Sequential, Float[Tensor, "sample input"], float]:
    """A perceptron, the data that it was trained on, and its cross-entropy there, nats. Draws from torch's global generator."""
    teacher, student = perceptron(hidden), perceptron(hidden)
    x = torch.randn(samples, INPUTS, dtype=torch.float64)
    with torch.no_grad():
        label = teacher(x)
        label = (
            ((label - label.mean(0)) / label.std(0)).softmax(1).multinomial(1)[:, 0]
        )  # as many of each class, and noise
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)
    loss = torch.zeros(())
    for _ in range(STEPS):
        loss = F.cross_entropy(student(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student, x, float(loss.detach())


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """Where ε is smallest the two curves meet; the curves themselves are the finding."""
    llc = keys(config)
    assert llc.hidden is not None
    assert llc.samples is not None
    assert llc.behaviours is not None
    assert llc.gamma is not None
    assert llc.chains is not None
    assert llc.burn_in is not None
    assert llc.draws is not None
    assert llc.every is not None
    model, x, loss = trained(llc.hidden, samples=llc.samples)
    params, nbeta = stacked([model]), nbetas(llc).sort().values
    n = sum(value[0].numel() for value in params.values())

    def outputs(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return functional_call(model, p, (batch,))

    about = f"{n} parameters, cross-entropy {loss:.3g} nats on the {llc.samples} samples that it was trained on"
    rows, checks, metrics, kept, told = [], [], {"parameters": float(n), "cross_entropy": loss}, {}, []
    sampled, quadratic, ranks = {}, {}, {}
    fine = torch.logspace(float(nbeta[0].log10()) - 1, float(nbeta[-1].log10()) + 1, 100, dtype=torch.float64)
    for behaviour in llc.behaviours:
        name = behaviour.value
        found = effective_parameters(
            over_chains(outputs),
            params,
            data=Fixed(x),
            divergence=Divergence(name),
            nbeta=nbeta,
            gamma=llc.gamma,
            step_size=None if llc.step_size is None else torch.full_like(nbeta, llc.step_size),
            sampler=sampler_of(llc),
            n_chains=llc.chains,
            burn_in=llc.burn_in,
            draws=llc.draws,
            every=llc.every,
            seed=config.seed,
        )
        label = name.upper()
        counted = float(rank(found.spectrum, relative=RELATIVE)[0])
        curve = quadratic_n_eff(found.spectrum, nbeta=fine, gamma=torch.full_like(fine, llc.gamma))[0]
        sampled[label] = tuple(v.tolist() for v in (found.epsilon, found.n_eff, found.standard_error))
        quadratic[label], ranks[label] = ((1 / fine).tolist(), curve.tolist()), counted
        gap = float((found.n_eff[-1] - found.quadratic[-1]).abs())
        most = AT_MOST * n + ERRORS * float(found.standard_error[-1])
        checks.append(Check(f"{label}: distance of the curves at ε = {float(found.epsilon[-1]):.0e}", gap, 0, most))
        checks.append(Check(f"{label}: rank of Gauss–Newton, of {n} parameters", counted, 1, n - sum(llc.hidden)))
        for i, value in enumerate(found.n_eff.tolist()):
            metrics[f"n_eff/{name}/{float(nbeta[i]):.0e}"] = value
            add_row(len(metrics), {"n_eff": value, "quadratic": float(found.quadratic[i])})
        names = [label] * len(nbeta)
        rows += table_rows(names, found.llc, predicted=(found.quadratic / 2).tolist(), known=[counted / 2] * len(nbeta))
        told += explained(names, found.llc)
        kept |= arrays(found.llc, f"{name}/") | {f"{name}/eigenvalues": found.spectrum.values[0].contiguous()}
        metrics[f"rank/{name}"] = counted
    figure = effective_parameters_figure(sampled, quadratic, ranks=ranks, n=n)
    report = "\n".join([about, "", "N_eff = 2 λ̂:", "", table(rows), "", *told]).rstrip()
    return Result(metrics, checks, {"effective_parameters": figure}, kept, report)
