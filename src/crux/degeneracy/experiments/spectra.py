"""Spectra of the activation Gram G and the Jacobian Gram K along a network, their ranks, and the free directions between hook points.

Of a perceptron the linear maps are known, and the ranks add up to a budget that 2λ_B stays below.
"""

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from crux.config.markdown import markdown_table
from crux.config.progress import track
from crux.degeneracy.behavioural_hessian import behavioural_hessian
from crux.degeneracy.budget import Budget, Layer, degeneracy_budget, random_free_change
from crux.degeneracy.checks import measures_language_model
from crux.degeneracy.experiments.perceptrons import Perceptron, perceptron
from crux.degeneracy.figures.spectra import gram_spectra
from crux.degeneracy.gram_ranks import GramRank, gram_eigenvalues, ranks_at_thresholds
from crux.degeneracy.grams import Target, jacobian_gram, moments
from crux.degeneracy.networks.network import Network
from crux.degeneracy.options import MeasuredNetwork, Spectra, SpectraJob
from crux.degeneracy.synchronised import measure_synchrony, relu_layers, synchronised_blocks
from crux.runs.experiment import Experiment, keep_all_rows
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.sae.loading import load_model, load_tokens
from crux.subjects.subject import FINAL, Subject
from crux.text.held_out import spread_batches
from crux.training.devices import choose_device

FULL = 4000
"""Up to so many parameters the Hessian is formed, and its rank set beside the budget."""

BATCH = 8
"""Sequences in a pass."""

EXACT = 1e-13
"""Share of the largest eigenvalue below which there is only float64's rounding: what the budget counts as free must be, not nearly."""

STEP = 1e-7
"""Norm of the changes that the budget is tried with: few gates turn."""

PROBES = 1
"""Random signs a sequence, for a language model's Jacobian Grams: a rank can only come out too low, with too few sequences."""


class Grams(dict[str, tuple[Tensor, Tensor]]):
    """By hook point: G, and K to the network's output; float64."""


def result(job: SpectraJob, run: ActiveRun) -> Result:
    """Find G and K at every hook point; between each and the next, the free directions of a linear map."""
    options = job.degeneracy
    if measures_language_model(options, job.model):
        subject = load_model(job.model, device=choose_device(job.trainer.accelerator), dtype=torch.float32)
        text = load_tokens(job.data, model=job.model, cache=job.cache).train
        context = job.model.context
        batches = spread_batches(text, context=context, batch=BATCH, n_tokens=context * options.sequences)
        on_device = [tokens.to(subject.device) for tokens in batches]
        return of_language_model(subject, on_device, hook_points=job.hook_points, options=options, run=run)
    path = None if options.network is MeasuredNetwork.mlp else job.model.path
    return of_perceptron(perceptron(options, path=path, run=run), options, run)


def of_language_model(
    subject: Subject, batches: list[Tensor], *, hook_points: list[str] | None, options: Spectra, run: ActiveRun
) -> Result:
    """Find G and K on training text, K to the residual stream after the final norm."""
    last = f"blocks.{subject.n_layers - 1}.hook_resid_post"
    hooks = hook_points or [*(f"blocks.{layer}.hook_resid_pre" for layer in range(subject.n_layers)), last]
    grams = grams_at(subject, batches, hooks, width=subject.d_model, output=FINAL, probes=PROBES, run=run)
    ranks, lines = ranked(grams, list(itertools.pairwise(hooks)), options.thresholds)
    n = sum(len(tokens) for tokens in batches)
    lines.insert(0, f"{subject.name}: {n} sequences of {batches[0].shape[1]} tokens, K to {FINAL}\n")
    checks = []
    if isinstance(subject.parts.final_norm, nn.LayerNorm):
        seen = [found[0].rank for name, found in ranks.items() if name.startswith("K/") and "resid" in name]
        checks.append(
            Check(
                "rank of K in the residual stream: LayerNorms take off its mean",
                max(seen, default=0),
                0,
                subject.d_model - 1,
            )
        )
    figures = {"spectra": figure(grams, options.thresholds)}
    return Result(metrics_of(ranks), checks, figures, arrays_of(grams), "\n".join(lines))


def of_perceptron(of: Perceptron, options: Spectra, run: ActiveRun) -> Result:
    """Find G and K on the training samples, K to the outputs, with nothing drawn at random."""
    width = of.network(of.train.inputs[:1]).shape[1]
    hooks = [hook for hook in of.network.hooks if hook != of.network.output]
    grams = grams_at(of.network, [of.train.inputs], hooks, width=width, output=of.network.output, probes=None, run=run)
    pairs = [(of.network.hooks[of.network.hooks.index(hook) - 1], hook) for hook in of.maps if hook in grams]
    ranks, lines = ranked(grams, pairs, options.thresholds)
    layers, shared = linear_maps(of, grams, width=width)
    found = degeneracy_budget(layers, blocks=shared, threshold=EXACT)
    metrics = metrics_of(ranks) | {"parameters": float(found.parameters), "free_by_ranks": float(found.by_ranks)}
    metrics |= {"free_by_rescaling": float(found.by_rescaling), "free_by_blocks": float(found.by_blocks)}
    metrics |= {"bound": float(found.bound), "loss": of.test.loss(of.network(of.test.inputs))}
    felt = share_felt(of, layers, found, seed=run.seed)
    checks = [Check("outputs moved along free directions, share of what chance directions do", felt, 0, 1e-5)]
    arrays = arrays_of(grams)
    lines += ["", *budget_lines(found)]
    if found.parameters == sum(p.numel() for p in of.network.parameters()) <= FULL:
        spectrum = compute_once(
            run.folder,
            "hessian",
            lambda: {"eigenvalues": gram_eigenvalues(behavioural_hessian(of.network, of.train.inputs))},
        )["eigenvalues"]
        reached = ranks_at_thresholds(spectrum, thresholds=[EXACT, *options.thresholds])
        metrics |= {"hessian_rank": float(reached[0].rank)}
        arrays["hessian"] = spectrum
        checks.append(Check("rank of the behavioural Hessian, at most the bound", reached[0].rank, 0, found.bound))
        each = ", ".join(f"{r.rank} above {r.threshold:g}" for r in reached)
        lines.append(
            f"Rank of the behavioural loss's Hessian, which 2λ_B is not below: {each} of its largest eigenvalue."
        )
    lines.insert(0, f"{of.name}: {len(of.train.inputs)} training samples, K to the {width} outputs\n")
    return Result(metrics, checks, {"spectra": figure(grams, options.thresholds)}, arrays, "\n".join(lines))


def grams_at(
    network: Network,
    batches: list[Tensor],
    hooks: list[str],
    *,
    width: int,
    output: str,
    probes: int | None,
    run: ActiveRun,
) -> Grams:
    """Return G and K at each hook point."""
    found = moments(network, batches, hooks=hooks)
    whole = torch.eye(width, dtype=torch.float64, device=batches[0].device)

    def jacobian(hook: str) -> dict[str, Tensor]:
        targets = [Target(output, whole)]
        return {"K": jacobian_gram(network, batches, start=hook, targets=targets, probes=probes, seed=run.seed)}

    grams = Grams()
    for hook in track(hooks, "Jacobian Grams"):
        kept = compute_once(run.folder, f"K_{hook}", partial(jacobian, hook))
        grams[hook] = found[hook].gram, kept["K"].to(whole.device)
    return grams


def ranked(
    grams: Grams, pairs: list[tuple[str, str]], thresholds: list[float]
) -> tuple[dict[str, list[GramRank]], list[str]]:
    """Ranks of `G/<hook>` and `K/<hook>` at the thresholds, and the tables of the report; free directions between the pairs."""
    ranks: dict[str, list[GramRank]] = {}
    of_hooks, of_pairs = [], []
    for hook, (g, k) in grams.items():
        ranks[f"G/{hook}"], ranks[f"K/{hook}"] = (
            ranks_at_thresholds(gram_eigenvalues(gram), thresholds=thresholds) for gram in (g, k)
        )
        cells = [f"{r.rank} ({r.trace_left_out:.0e})" for r in (*ranks[f"G/{hook}"], *ranks[f"K/{hook}"])]
        of_hooks.append([hook, len(g), *cells])
    for a, b in pairs:
        size = len(grams[a][0]) * len(grams[b][1])
        free = [size - g.rank * k.rank for g, k in zip(ranks[f"G/{a}"], ranks[f"K/{b}"], strict=True)]
        of_pairs.append([a, b, size, *free])
    cutoffs = [f"> {t:g}" for t in thresholds]
    return ranks, [
        "Rank above a share of the largest eigenvalue, and the share of the trace that it leaves out:",
        "",
        markdown_table(["hook point", "width", *(f"{name} {cut}" for name in "GK" for cut in cutoffs)], of_hooks),
        "",
        "Free directions d_in · d_out − rank G · rank K of a linear map between two hook points:",
        "",
        markdown_table(["from", "to", "d_in · d_out", *cutoffs], of_pairs),
    ]


def linear_maps(of: Perceptron, grams: Grams, *, width: int) -> tuple[list[Layer], list[list[tuple[int, ...]]]]:
    """The perceptron's maps on its training samples, and of each hidden layer the neurons that agree on all of them."""
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
            found = measure_synchrony([values[hook]])
            on = found.on_share
            shared.append([block.members for block in synchronised_blocks(found.distance, threshold=1e-15)])
        weight = torch.cat([stage.bias[:, None], stage.weight], 1).detach()
        layers.append(Layer(hook, weight, f.T @ f / len(f), k, 1, on))
    return layers, shared


@torch.no_grad()
def share_felt(of: Perceptron, layers: list[Layer], found: Budget, *, seed: int) -> float:
    """Change of the outputs along free directions, over that along a random one of the same length."""
    generator = torch.Generator().manual_seed(seed)
    free = random_free_change(layers, cut=found.cut, threshold=EXACT, generator=generator)
    drawn = [torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) for layer in layers]
    length = sum(float(change.square().sum()) for change in drawn) ** 0.5
    stages = dict(zip(of.network.hooks, of.network.stages.values(), strict=True))
    before, moved = of.network(of.train.inputs), []
    for changes, scale in ((free, STEP), (drawn, STEP / length)):
        for sign in (1, -1):
            for layer, change in zip(layers, changes, strict=True):
                stage = stages[layer.name]
                assert isinstance(stage, nn.Linear)
                stage.bias.add_(change[:, 0], alpha=sign * scale)
                stage.weight.add_(change[:, 1:], alpha=sign * scale)
            if sign == 1:
                moved.append(float((of.network(of.train.inputs) - before).norm()))
    return moved[0] / moved[1]


def budget_lines(found: Budget) -> list[str]:
    """Return the budget for people, with what it is and is not."""
    rows = [[x.name, f"{x.d_in} · {x.d_out}", x.rank_gram, x.rank_jacobian, x.directions] for x in found.layers]
    return [
        "Linear maps with their biases, each by itself:",
        "",
        markdown_table(["map", "d_in · d_out", "rank G", "rank K", "free"], rows),
        "",
        f"Of {found.parameters} parameters {found.by_ranks} directions are free together by the ranks (map "
        f"{found.layers[found.cut].name} by both), {found.by_rescaling} more by rescaling neurons, {found.by_blocks} more by synchronised "
        f"blocks and neurons always on: 2λ_B ≤ {found.bound}.",
        "This bounds the learning coefficient of the behavioural loss on these samples, as cutoffs go to 0: small changes along the free "
        "directions leave every output on them as it is. It says nothing of other samples, nor of directions that are nearly free. Free "
        f"is what has less than {EXACT:g} of the largest eigenvalue: where a spectrum falls on and on below that, the bound holds to "
        "float64's rounding, not exactly.",
    ]


def metrics_of(ranks: dict[str, list[GramRank]]) -> dict[str, float]:
    """`rank/G/<hook>` at the first threshold."""
    return {f"rank/{name}": float(found[0].rank) for name, found in ranks.items()}


def arrays_of(grams: Grams) -> dict[str, Tensor]:
    """The eigenvalues of all Gram matrices."""
    return {
        f"{name}/{hook}": gram_eigenvalues(gram)
        for hook, pair in grams.items()
        for name, gram in zip("GK", pair, strict=True)
    }


def figure(grams: Grams, thresholds: Sequence[float]) -> Figure:
    """Draw the spectra."""
    found = arrays_of(grams)
    g, k = ({hook: found[f"{name}/{hook}"].cpu().numpy() for hook in grams} for name in "GK")
    return gram_spectra(g, k, thresholds=thresholds)


EXPERIMENT = Experiment(SpectraJob, result, keep_all_rows)
