"""The effective number of parameters of a small perceptron, sampled and from the Gauss–Newton spectrum of its behavioural loss.

The ReLU perceptron was trained, but not to convergence, on classes drawn from the output distributions of a random perceptron. Its outputs
are compared directly (MSE) and as logits (KL).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from crux.llc.calibration import MAX_ERRORS
from crux.llc.coordinates import stack_parameters
from crux.llc.effective import EffectiveParameters, effective_parameters, quadratic_n_eff, spectrum_rank
from crux.llc.experiments.sampling import (
    chain_checkpoint,
    chain_settings,
    estimate_arrays,
    estimate_rows,
    estimate_table,
    explain_cases,
    nbeta_tensor,
)
from crux.llc.figures.effective_parameters import effective_parameters_figure
from crux.llc.losses import Batch, FixedData, map_over_chains
from crux.llc.options import Behavioural
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

INPUTS, CLASSES = 4, 3
STEPS, RATE = 300, 1e-2
"""Number of Adam steps on all data, and their learning rate."""

RELATIVE_THRESHOLD = 1e-9
"""Eigenvalues below this share of the largest count as zero."""

MAX_DIFFERENCE = 0.05
"""Largest difference of the two curves at the smallest ε, as a share of the parameters, besides three standard errors."""


def build_classifier(hidden: Sequence[int]) -> nn.Sequential:
    """Build an untrained ReLU perceptron in float64."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip((INPUTS, *hidden), hidden, strict=False):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], CLASSES)).double()


def train_classifier(
    hidden: Sequence[int], *, samples: int
) -> tuple[nn.Sequential, Float[Tensor, "sample input"], float]:
    """Train a perceptron; return it with its training inputs and its cross-entropy on them, in nats.

    Random numbers come from torch's global generator.
    """
    teacher, student = build_classifier(hidden), build_classifier(hidden)
    x = torch.randn(samples, INPUTS, dtype=torch.float64)
    with torch.no_grad():
        logits = teacher(x)
        normalised = (logits - logits.mean(0)) / logits.std(0)  # for balanced classes with label noise
        label = normalised.softmax(1).multinomial(1)[:, 0]
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)
    loss = torch.zeros(())
    for _ in range(STEPS):
        loss = F.cross_entropy(student(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student, x, float(loss.detach())


def result(options: Behavioural, run: ActiveRun) -> Result:
    """Compute both curves of N_eff and check that they agree at the smallest ε."""
    model, x, loss = train_classifier(options.hidden, samples=options.samples)
    params, nbeta = stack_parameters([model]), nbeta_tensor(options).sort().values
    n = sum(value[0].numel() for value in params.values())

    def outputs(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return functional_call(model, p, (batch,))

    about = f"{n} parameters, cross-entropy {loss:.3g} nats on its {options.samples} training samples"
    rows, checks, metrics, arrays, explanations = [], [], {"parameters": float(n), "cross_entropy": loss}, {}, []
    sampled, quadratic, ranks = {}, {}, {}
    fine_nbeta = torch.logspace(float(nbeta[0].log10()) - 1, float(nbeta[-1].log10()) + 1, 100, dtype=torch.float64)
    for behaviour in options.behaviours:
        name = behaviour.value
        effective = effective_parameters(
            map_over_chains(outputs),
            params,
            data=FixedData(x),
            divergence=behaviour,
            nbeta=nbeta,
            gamma=options.gamma,
            chains=chain_settings(options, default_step_size=None, cases=len(nbeta)),
            seed=run.seed,
            checkpoint=chain_checkpoint(run, name),
        )
        label, names = name.upper(), [name.upper()] * len(nbeta)
        rank = float(spectrum_rank(effective.spectrum, relative=RELATIVE_THRESHOLD)[0])
        fine_gamma = torch.full_like(fine_nbeta, options.gamma)
        curve = quadratic_n_eff(effective.spectrum, nbeta=fine_nbeta, gamma=fine_gamma)[0]
        sampled[label] = tuple(v.tolist() for v in (effective.epsilon, effective.n_eff, effective.standard_error))
        quadratic[label], ranks[label] = ((1 / fine_nbeta).tolist(), curve.tolist()), rank
        checks += curve_checks(label, effective, n=n, rank=rank, hidden=options.hidden)
        for i, value in enumerate(effective.n_eff.tolist()):
            metrics[f"n_eff/{name}/{float(nbeta[i]):.0e}"] = value
            run.add_row(len(metrics), {"n_eff": value, "quadratic": float(effective.quadratic[i])})
        predicted = (effective.quadratic / 2).tolist()
        rows += estimate_rows(names, effective.llc, predicted=predicted, known=[rank / 2] * len(nbeta))
        explanations += explain_cases(names, effective.llc)
        arrays |= estimate_arrays(effective.llc, f"{name}/")
        arrays[f"{name}/eigenvalues"] = effective.spectrum.values[0].contiguous()
        metrics[f"rank/{name}"] = rank
    figure = effective_parameters_figure(sampled, quadratic, ranks=ranks, n=n)
    report = "\n".join([about, "", "N_eff = 2 λ̂:", "", estimate_table(rows), "", *explanations]).rstrip()
    return Result(metrics, checks, {"effective_parameters": figure}, arrays, report)


def curve_checks(
    label: str, effective: EffectiveParameters, *, n: int, rank: float, hidden: Sequence[int]
) -> list[Check]:
    """Return the checks of one behavioural loss: agreement of the curves at the smallest ε, and the Gauss–Newton rank."""
    gap = float((effective.n_eff[-1] - effective.quadratic[-1]).abs())
    max_gap = MAX_DIFFERENCE * n + MAX_ERRORS * float(effective.standard_error[-1])
    return [
        Check(f"{label}: distance of the curves at ε = {float(effective.epsilon[-1]):.0e}", gap, 0, max_gap),
        Check(f"{label}: rank of Gauss–Newton, of {n} parameters", rank, 1, n - sum(hidden)),
    ]


EXPERIMENT = Experiment(Behavioural, result)
