"""Spectra of the activation Gram G and the Jacobian Gram K along a network, their ranks, and the free directions between hook points.

Of a perceptron the linear maps are known, and the ranks add up to a budget that 2λ_B stays below.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from crux import assemble
from crux.data.held_out import spread_batches
from crux.degeneracy.behavioural_hessian import behavioural_hessian
from crux.degeneracy.budget import Budget, Layer, budget
from crux.degeneracy.grams import Target, jacobian_gram, moments
from crux.degeneracy.ranks import Rank, eigenvalues, rank_report
from crux.degeneracy.synchronised import blocks, relu_layers, synchrony
from crux.experiments.degeneracy.perceptrons import Perceptron, perceptron
from crux.experiments.result import Check, Result
from crux.experiments.run import AddRow
from crux.figures.spectra import gram_spectra
from crux.schema import Config
from crux.schema_degeneracy import Network
from crux.subjects.addition_folder import addition_folder
from crux.subjects.network import Network as Hooked
from crux.subjects.subject import FINAL
from crux.tracking.run_folder import RunFolder

FULL = 4000
"""Up to so many parameters the Hessian is formed, and its rank set beside the budget."""

BATCH = 8
"""Sequences in a pass."""

PROBES = 1
"""Random signs a sequence, for a language model's Jacobian Grams: a rank can only come out too low, with too few sequences."""


class Grams(dict[str, tuple[Tensor, Tensor]]):
    """By hook point: G, and K to the network's output; float64."""


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """At every hook point G and K; between each and the next, the free directions of a linear map."""
    assert config.degeneracy is not None
    trained = config.degeneracy.network is Network.mlp or (
        config.model.path is not None and addition_folder(Path(config.model.path)) is not None
    )
    return of_perceptron(config) if trained else of_language_model(config)


def of_language_model(config: Config) -> Result:
    """On training text, to the residual stream after the final norm."""
    assert config.degeneracy is not None
    subject = assemble.load(config, torch.float32)
    context = config.model.context
    text = assemble.load_tokens(config).train
    batches = list(spread_batches(text, context=context, batch=BATCH, n_tokens=context * config.degeneracy.sequences))
    batches = [tokens.to(subject.device) for tokens in batches]
    last = f"blocks.{subject.n_layers - 1}.hook_resid_post"
    hooks = config.hook_points or [*(f"blocks.{layer}.hook_resid_pre" for layer in range(subject.n_layers)), last]
    grams = grams_at(subject, batches, hooks, width=subject.d_model, output=FINAL, probes=PROBES, seed=config.seed)
    ranks, lines = ranked(grams, config.degeneracy.thresholds)
    n = sum(len(tokens) for tokens in batches)
    lines.insert(0, f"{subject.name}: {n} sequences of {context} tokens, K to {FINAL}\n")
    return Result(metrics_of(ranks), [], {"spectra": figure(grams, config)}, arrays_of(grams), "\n".join(lines))


def of_perceptron(config: Config) -> Result:
    """On the training samples, to the outputs, with nothing drawn at random."""
    assert config.degeneracy is not None
    of = perceptron(config)
    width = of.network(of.train.inputs[:1]).shape[1]
    hooks = [hook for hook in of.network.hooks if hook != of.network.output]
    grams = grams_at(of.network, [of.train.inputs], hooks, width=width, output=of.network.output, probes=None, seed=0)
    ranks, lines = ranked(grams, config.degeneracy.thresholds)
    found = budget_of(of, grams, width=width, threshold=config.degeneracy.thresholds[0])
    metrics = metrics_of(ranks) | {"parameters": float(found.parameters), "free_by_ranks": float(found.by_ranks)}
    metrics |= {"free_by_rescaling": float(found.by_rescaling), "free_by_blocks": float(found.by_blocks)}
    metrics |= {"bound": float(found.bound)}
    checks = []
    arrays = arrays_of(grams)
    lines += ["", *told(found)]
    if found.parameters == sum(p.numel() for p in of.network.parameters()) <= FULL:
        spectrum = eigenvalues(behavioural_hessian(of.network, of.train.inputs))
        reached = rank_report(spectrum, thresholds=config.degeneracy.thresholds)
        metrics |= {"hessian_rank": float(reached[0].rank)}
        arrays["hessian"] = spectrum
        checks.append(Check("rank of the behavioural Hessian, at most the bound", reached[0].rank, 0, found.bound))
        each = ", ".join(f"{r.rank} above {r.threshold:g}" for r in reached)
        lines.append(
            f"Rank of the behavioural loss's Hessian, which 2λ_B is not below: {each} of its largest eigenvalue."
        )
    lines.insert(0, f"{of.name}: {len(of.train.inputs)} training samples, K to the {width} outputs\n")
    return Result(metrics, checks, {"spectra": figure(grams, config)}, arrays, "\n".join(lines))


def grams_at(
    network: Hooked, batches: list[Tensor], hooks: list[str], *, width: int, output: str, probes: int | None, seed: int
) -> Grams:
    """G and K at each hook point."""
    found = moments(network, batches, hooks=hooks)
    whole = torch.eye(width, dtype=torch.float64, device=batches[0].device)
    grams = Grams()
    for hook in hooks:
        targets = [Target(output, whole)]
        k = jacobian_gram(network, batches, start=hook, targets=targets, probes=probes, seed=seed)
        grams[hook] = found[hook].gram, k
    return grams


def ranked(grams: Grams, thresholds: list[float]) -> tuple[dict[str, list[Rank]], list[str]]:
    """Ranks of `G/<hook>` and `K/<hook>` at the thresholds, and the tables of the report."""
    ranks: dict[str, list[Rank]] = {}
    head = " | ".join(f"G > {t:g}" for t in thresholds) + " | " + " | ".join(f"K > {t:g}" for t in thresholds)
    lines = [
        "Rank above a share of the largest eigenvalue, and the share of the trace that it leaves out:",
        "",
        f"| hook point | width | {head} |",
        "|---" * (2 + 2 * len(thresholds)) + "|",
    ]
    for hook, (g, k) in grams.items():
        ranks[f"G/{hook}"], ranks[f"K/{hook}"] = (
            rank_report(eigenvalues(gram), thresholds=thresholds) for gram in (g, k)
        )
        cells = [f"{r.rank} ({r.energy_left:.0e})" for r in (*ranks[f"G/{hook}"], *ranks[f"K/{hook}"])]
        lines.append(f"| {hook} | {len(g)} | {' | '.join(cells)} |")
    lines += [
        "",
        "Free directions d_in · d_out − rank G · rank K of a linear map between two hook points:",
        "",
        f"| from | to | d_in · d_out | {' | '.join(f'> {t:g}' for t in thresholds)} |",
        "|---" * (3 + len(thresholds)) + "|",
    ]
    hooks = list(grams)
    for a, b in zip(hooks, hooks[1:], strict=False):
        size = len(grams[a][0]) * len(grams[b][1])
        free = [size - g.rank * k.rank for g, k in zip(ranks[f"G/{a}"], ranks[f"K/{b}"], strict=True)]
        lines.append(f"| {a} | {b} | {size} | {' | '.join(str(n) for n in free)} |")
    return ranks, lines


def budget_of(of: Perceptron, grams: Grams, *, width: int, threshold: float) -> Budget:
    """What of the perceptron's parameters is free on its training samples."""
    network, inputs = of.network, of.train.inputs
    stages = dict(zip(network.hooks, network.stages.values(), strict=True))
    values = network.clean(inputs, capture=network.hooks, final=False).activations
    gates = relu_layers(network)
    layers, shared = [], []
    for hook in of.maps:
        stage = stages[hook]
        assert isinstance(stage, nn.Linear)
        before = values[network.hooks[network.hooks.index(hook) - 1]]
        f = torch.cat([torch.ones_like(before[:, :1]), before], 1)
        k = torch.eye(width).double() if hook == network.output else grams[hook][1]
        on = torch.ones(len(stage.weight)).double()
        if hook in gates.values():
            found = synchrony([values[hook]])
            on = found.alive
            shared.append([block.members for block in blocks(found.distance, threshold=1e-15)])
        weight = torch.cat([stage.bias[:, None], stage.weight], 1).detach()
        layers.append(Layer(hook, weight, f.T @ f / len(f), k, 1, on))
    return budget(layers, blocks=shared, threshold=threshold)


def told(found: Budget) -> list[str]:
    """The budget for people, with what it is and is not."""
    lines = ["Linear maps with their biases, each by itself:", "", "| map | d_in · d_out | rank G | rank K | free |"]
    lines.append("|---" * 5 + "|")
    lines += [
        f"| {x.name} | {x.d_in} · {x.d_out} | {x.rank_gram} | {x.rank_jacobian} | {x.directions} |"
        for x in found.layers
    ]
    lines += [
        "",
        f"Of {found.parameters} parameters {found.by_ranks} directions are free together by the ranks (map {found.layers[found.cut].name} by "
        f"both), {found.by_rescaling} more by rescaling neurons, {found.by_blocks} more by synchronised blocks and neurons always on: "
        f"2λ_B ≤ {found.bound}.",
        "This bounds the learning coefficient of the behavioural loss on these samples, as cutoffs go to 0: small changes along the free "
        "directions leave every output on them as it is. It says nothing of other samples, nor of directions that are nearly free.",
    ]
    return lines


def metrics_of(ranks: dict[str, list[Rank]]) -> dict[str, float]:
    """`rank/G/<hook>` at the first threshold."""
    return {f"rank/{name}": float(found[0].rank) for name, found in ranks.items()}


def arrays_of(grams: Grams) -> dict[str, Tensor]:
    """The eigenvalues of all Gram matrices."""
    return {
        f"{name}/{hook}": eigenvalues(gram)
        for hook, pair in grams.items()
        for name, gram in zip("GK", pair, strict=True)
    }


def figure(grams: Grams, config: Config) -> Figure:
    """The spectra."""
    assert config.degeneracy is not None
    found = arrays_of(grams)
    g, k = ({hook: found[f"{name}/{hook}"].cpu().numpy() for hook in grams} for name in "GK")
    return gram_spectra(g, k, thresholds=config.degeneracy.thresholds)
