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

from crux.llc.calibration import ERRORS
from crux.llc.coordinates import stacked
from crux.llc.effective import Effective, effective_parameters, quadratic_n_eff, rank
from crux.llc.experiments.sampling import (
    arrays,
    chain_settings,
    checkpoint,
    explain_cases,
    nbeta_tensor,
    table,
    table_rows,
)
from crux.llc.figures.effective_parameters import effective_parameters_figure
from crux.llc.losses import Batch, Fixed, over_chains
from crux.llc.options import Behavioural
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

INPUTS, CLASSES = 4, 3
STEPS, RATE = 300, 1e-2
"""Of Adam on all data."""

RELATIVE = 1e-9
"""Eigenvalues below this share of the largest are zero."""

AT_MOST = 0.05
"""Share of the parameters by which the two curves may differ at the smallest ε, in addition to three standard errors."""


def perceptron(hidden: Sequence[int]) -> nn.Sequential:
    """Return an untrained perceptron with ReLUs, float64."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip((INPUTS, *hidden), hidden, strict=False):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], CLASSES)).double()


def trained(hidden: Sequence[int], *, samples: int) -> tuple[nn.Sequential, Float[Tensor, "sample input"], float]:
    """Return a perceptron, the data that it was trained on, and its cross-entropy there, nats. Draws from torch's global generator."""
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


def result(options: Behavioural, run: ActiveRun) -> Result:
    """Check that the two curves meet at the smallest ε; the curves themselves are the finding."""
    model, x, loss = trained(options.hidden, samples=options.samples)
    params, nbeta = stacked([model]), nbeta_tensor(options).sort().values
    n = sum(value[0].numel() for value in params.values())

    def outputs(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return functional_call(model, p, (batch,))

    about = f"{n} parameters, cross-entropy {loss:.3g} nats on the {options.samples} samples that it was trained on"
    rows, checks, metrics, kept, explanations = [], [], {"parameters": float(n), "cross_entropy": loss}, {}, []
    sampled, quadratic, ranks = {}, {}, {}
    fine = torch.logspace(float(nbeta[0].log10()) - 1, float(nbeta[-1].log10()) + 1, 100, dtype=torch.float64)
    for behaviour in options.behaviours:
        name = behaviour.value
        effective = effective_parameters(
            over_chains(outputs),
            params,
            data=Fixed(x),
            divergence=behaviour,
            nbeta=nbeta,
            gamma=options.gamma,
            chains=chain_settings(options, default_step_size=None, cases=len(nbeta)),
            seed=run.seed,
            checkpoint=checkpoint(run, name),
        )
        label, names = name.upper(), [name.upper()] * len(nbeta)
        counted = float(rank(effective.spectrum, relative=RELATIVE)[0])
        curve = quadratic_n_eff(effective.spectrum, nbeta=fine, gamma=torch.full_like(fine, options.gamma))[0]
        sampled[label] = tuple(v.tolist() for v in (effective.epsilon, effective.n_eff, effective.standard_error))
        quadratic[label], ranks[label] = ((1 / fine).tolist(), curve.tolist()), counted
        checks += curve_checks(label, effective, n=n, counted=counted, hidden=options.hidden)
        for i, value in enumerate(effective.n_eff.tolist()):
            metrics[f"n_eff/{name}/{float(nbeta[i]):.0e}"] = value
            run.add_row(len(metrics), {"n_eff": value, "quadratic": float(effective.quadratic[i])})
        predicted = (effective.quadratic / 2).tolist()
        rows += table_rows(names, effective.llc, predicted=predicted, known=[counted / 2] * len(nbeta))
        explanations += explain_cases(names, effective.llc)
        kept |= arrays(effective.llc, f"{name}/")
        kept[f"{name}/eigenvalues"] = effective.spectrum.values[0].contiguous()
        metrics[f"rank/{name}"] = counted
    figure = effective_parameters_figure(sampled, quadratic, ranks=ranks, n=n)
    report = "\n".join([about, "", "N_eff = 2 λ̂:", "", table(rows), "", *explanations]).rstrip()
    return Result(metrics, checks, {"effective_parameters": figure}, kept, report)


def curve_checks(label: str, effective: Effective, *, n: int, counted: float, hidden: Sequence[int]) -> list[Check]:
    """Return the checks of one behaviour: that the curves meet at the smallest ε, and the rank of Gauss–Newton."""
    gap = float((effective.n_eff[-1] - effective.quadratic[-1]).abs())
    most = AT_MOST * n + ERRORS * float(effective.standard_error[-1])
    return [
        Check(f"{label}: distance of the curves at ε = {float(effective.epsilon[-1]):.0e}", gap, 0, most),
        Check(f"{label}: rank of Gauss–Newton, of {n} parameters", counted, 1, n - sum(hidden)),
    ]


EXPERIMENT = Experiment(Behavioural, result)
