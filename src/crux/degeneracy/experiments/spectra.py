"""Experiment: spectra and ranks of the activation Gram G and the Jacobian Gram K along a network, and the free directions they imply.

For a perceptron, whose linear maps are known, the ranks also give a budget: an upper bound on 2λ_B.
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
from crux.degeneracy.budget import Budget, Layer, degeneracy_budget, draw_free_change
from crux.degeneracy.checks import measures_language_model
from crux.degeneracy.experiments.perceptrons import Perceptron, load_or_train_perceptron
from crux.degeneracy.figures.spectra import gram_spectra
from crux.degeneracy.gram_ranks import GramRank, gram_eigenvalues, ranks_at_thresholds
from crux.degeneracy.grams import Target, jacobian_gram, moments
from crux.degeneracy.networks.network import Network
from crux.degeneracy.options import MeasuredNetwork, Spectra, SpectraJob
from crux.degeneracy.synchronised import measure_synchrony, relu_layers, synchronised_blocks
from crux.runs.experiment import Experiment, last_row_of_history
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.sae.loading import check_embedding, load_model, load_tokens, write_text_report
from crux.subjects.subject import FINAL, Subject
from crux.text.held_out import spread_batches
from crux.training.devices import choose_device

MAX_PARAMETERS_FOR_HESSIAN = 4000
"""Largest network whose full Hessian is computed, to compare its rank with the budget."""

SEQUENCES_PER_BATCH = 8

EXACT_THRESHOLD = 1e-13
"""Relative threshold of the budget's ranks, at float64's rounding error: only exactly free directions may be counted."""

CHANGE_NORM = 1e-7
"""Norm of the changes of all weights that test the budget; it is small, so that few gates change."""

PROBES_PER_SEQUENCE = 1
"""Random probes for a language model's Jacobian Grams. Too few sequences can only make the estimated rank too low."""


class Grams(dict[str, tuple[Tensor, Tensor]]):
    """The Gram matrices (G, K) at each hook point, where K is that of the Jacobian to the network's output; float64."""


def result(job: SpectraJob, run: ActiveRun) -> Result:
    """Compute G and K at every hook point, their ranks, and the free directions of linear maps between consecutive hook points."""
    options = job.degeneracy
    if measures_language_model(options, job.model):
        text = load_tokens(job.data, model=job.model, cache=job.cache)
        write_text_report(text, run.folder.path)
        subject = load_model(job.model, device=choose_device(job.trainer.accelerator), dtype=torch.float32)
        check_embedding(text, subject)
        context = job.model.context
        batches = spread_batches(
            text.train, context=context, batch=SEQUENCES_PER_BATCH, n_tokens=context * options.sequences
        )
        on_device = [tokens.to(subject.device) for tokens in batches]
        return measure_language_model(subject, on_device, hook_points=job.hook_points, options=options, run=run)
    path = None if options.network is MeasuredNetwork.mlp else job.model.path
    return measure_perceptron(load_or_train_perceptron(options, path=path, run=run), options, run)


def measure_language_model(
    subject: Subject, batches: list[Tensor], *, hook_points: list[str] | None, options: Spectra, run: ActiveRun
) -> Result:
    """Measure a language model on training text, with K to the residual stream after the final norm."""
    last = f"blocks.{subject.n_layers - 1}.hook_resid_post"
    hooks = hook_points or [*(f"blocks.{layer}.hook_resid_pre" for layer in range(subject.n_layers)), last]
    grams = compute_grams(
        subject, batches, hooks, width=subject.d_model, output=FINAL, probes=PROBES_PER_SEQUENCE, run=run
    )
    ranks, lines = tabulate_ranks(grams, list(itertools.pairwise(hooks)), options.thresholds)
    n = sum(len(tokens) for tokens in batches)
    lines.insert(0, f"{subject.name}: {n} sequences of {batches[0].shape[1]} tokens, K to {FINAL}\n")
    checks = []
    if isinstance(subject.parts.final_norm, nn.LayerNorm):
        residual_ranks = [
            by_threshold[0].rank for name, by_threshold in ranks.items() if name.startswith("K/") and "resid" in name
        ]
        checks.append(
            Check(
                "rank of K in the residual stream: LayerNorms subtract its mean",
                max(residual_ranks, default=0),
                0,
                subject.d_model - 1,
            )
        )
    figures = {"spectra": plot_spectra(grams, options.thresholds)}
    return Result(collect_rank_metrics(ranks), checks, figures, compute_eigenvalues(grams), "\n".join(lines))


def measure_perceptron(perceptron: Perceptron, options: Spectra, run: ActiveRun) -> Result:
    """Measure a perceptron on its training samples, with exact K to the outputs, and compute its budget."""
    width = perceptron.network(perceptron.train.inputs[:1]).shape[1]
    hooks = [hook for hook in perceptron.network.hooks if hook != perceptron.network.output]
    grams = compute_grams(
        perceptron.network,
        [perceptron.train.inputs],
        hooks,
        width=width,
        output=perceptron.network.output,
        probes=None,
        run=run,
    )
    pairs = [
        (perceptron.network.hooks[perceptron.network.hooks.index(hook) - 1], hook)
        for hook in perceptron.maps
        if hook in grams
    ]
    ranks, lines = tabulate_ranks(grams, pairs, options.thresholds)
    layers, blocks = collect_linear_maps(perceptron, grams, width=width)
    budget = degeneracy_budget(layers, blocks=blocks, threshold=EXACT_THRESHOLD)
    metrics = collect_rank_metrics(ranks) | {
        "parameters": float(budget.parameters),
        "free_by_ranks": float(budget.by_ranks),
    }
    metrics |= {"free_by_rescaling": float(budget.by_rescaling), "free_by_blocks": float(budget.by_blocks)}
    metrics |= {"bound": float(budget.bound), "loss": perceptron.test.loss(perceptron.network(perceptron.test.inputs))}
    change = measure_relative_output_change(perceptron, layers, budget, seed=run.seed)
    checks = [Check("change of the outputs along free directions, relative to random directions", change, 0, 1e-5)]
    arrays = compute_eigenvalues(grams)
    lines += ["", *describe_budget(budget)]
    if budget.parameters == sum(p.numel() for p in perceptron.network.parameters()) <= MAX_PARAMETERS_FOR_HESSIAN:
        spectrum = compute_once(
            run.folder,
            "hessian",
            lambda: {"eigenvalues": gram_eigenvalues(behavioural_hessian(perceptron.network, perceptron.train.inputs))},
        )["eigenvalues"]
        hessian_ranks = ranks_at_thresholds(spectrum, thresholds=[EXACT_THRESHOLD, *options.thresholds])
        metrics |= {"hessian_rank": float(hessian_ranks[0].rank)}
        arrays["hessian"] = spectrum
        checks.append(
            Check("rank of the behavioural Hessian, at most the bound", hessian_ranks[0].rank, 0, budget.bound)
        )
        ranks_text = ", ".join(f"{r.rank} above {r.threshold:g}" for r in hessian_ranks)
        lines.append(
            f"Rank of the behavioural loss's Hessian, a lower bound on 2λ_B: {ranks_text} of its largest eigenvalue."
        )
    lines.insert(0, f"{perceptron.name}: {len(perceptron.train.inputs)} training samples, K to the {width} outputs\n")
    return Result(metrics, checks, {"spectra": plot_spectra(grams, options.thresholds)}, arrays, "\n".join(lines))


def compute_grams(
    network: Network,
    batches: list[Tensor],
    hooks: list[str],
    *,
    width: int,
    output: str,
    probes: int | None,
    run: ActiveRun,
) -> Grams:
    """Return G and K at each hook point; each K is computed once per run."""
    moments_at = moments(network, batches, hooks=hooks)
    identity = torch.eye(width, dtype=torch.float64, device=batches[0].device)

    def compute_jacobian_gram(hook: str) -> dict[str, Tensor]:
        targets = [Target(output, identity)]
        return {"K": jacobian_gram(network, batches, start=hook, targets=targets, probes=probes, seed=run.seed)}

    grams = Grams()
    for hook in track(hooks, "Jacobian Grams"):
        tensors = compute_once(run.folder, f"K_{hook}", partial(compute_jacobian_gram, hook))
        grams[hook] = moments_at[hook].gram, tensors["K"].to(identity.device)
    return grams


def tabulate_ranks(
    grams: Grams, pairs: list[tuple[str, str]], thresholds: list[float]
) -> tuple[dict[str, list[GramRank]], list[str]]:
    """Return the ranks of `G/<hook>` and `K/<hook>` at the thresholds, and the report's tables of ranks and of free directions."""
    ranks: dict[str, list[GramRank]] = {}
    hook_rows, pair_rows = [], []
    for hook, (g, k) in grams.items():
        ranks[f"G/{hook}"], ranks[f"K/{hook}"] = (
            ranks_at_thresholds(gram_eigenvalues(gram), thresholds=thresholds) for gram in (g, k)
        )
        cells = [f"{r.rank} ({r.trace_left_out:.0e})" for r in (*ranks[f"G/{hook}"], *ranks[f"K/{hook}"])]
        hook_rows.append([hook, len(g), *cells])
    for source, target in pairs:
        size = len(grams[source][0]) * len(grams[target][1])  # d_in · d_out
        free = [size - g.rank * k.rank for g, k in zip(ranks[f"G/{source}"], ranks[f"K/{target}"], strict=True)]
        pair_rows.append([source, target, size, *free])
    cutoffs = [f"> {t:g}" for t in thresholds]
    return ranks, [
        "Rank at thresholds relative to the largest eigenvalue, and in brackets the share of the trace left out:",
        "",
        markdown_table(["hook point", "width", *(f"{name} {cut}" for name in "GK" for cut in cutoffs)], hook_rows),
        "",
        "Free directions d_in · d_out − rank G · rank K of a linear map between two hook points:",
        "",
        markdown_table(["from", "to", "d_in · d_out", *cutoffs], pair_rows),
    ]


def collect_linear_maps(
    perceptron: Perceptron, grams: Grams, *, width: int
) -> tuple[list[Layer], list[list[tuple[int, ...]]]]:
    """Return the perceptron's linear maps, and for each hidden layer the blocks of neurons that agree on all training samples."""
    network, inputs = perceptron.network, perceptron.train.inputs
    stages = dict(zip(network.hooks, network.stages.values(), strict=True))
    values = network.clean(inputs, capture=network.hooks, final=False).activations
    relu_inputs = set(relu_layers(network).values())
    layers, blocks = [], []
    for hook in perceptron.maps:
        stage = stages[hook]
        assert isinstance(stage, nn.Linear)
        before = values[network.hooks[network.hooks.index(hook) - 1]]
        f = torch.cat([torch.ones_like(before[:, :1]), before], 1)  # the constant coordinate belongs to the bias
        k = torch.eye(width).double() if hook == network.output else grams[hook][1]
        on_share = torch.ones(len(stage.weight)).double()
        if hook in relu_inputs:
            synchrony = measure_synchrony([values[hook]])
            on_share = synchrony.on_share
            blocks.append([block.members for block in synchronised_blocks(synchrony.distance, threshold=1e-15)])
        weight = torch.cat([stage.bias[:, None], stage.weight], 1).detach()
        layers.append(Layer(hook, weight, f.T @ f / len(f), k, 1, on_share))
    return layers, blocks


@torch.no_grad()
def measure_relative_output_change(perceptron: Perceptron, layers: list[Layer], budget: Budget, *, seed: int) -> float:
    """Return the change of the outputs along a free direction, relative to that along a random direction of the same length."""
    generator = torch.Generator().manual_seed(seed)
    free = draw_free_change(layers, cut=budget.cut, threshold=EXACT_THRESHOLD, generator=generator)
    drawn = [torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) for layer in layers]
    length = sum(float(change.square().sum()) for change in drawn) ** 0.5
    stages = dict(zip(perceptron.network.hooks, perceptron.network.stages.values(), strict=True))
    before = perceptron.network(perceptron.train.inputs)
    output_changes = []
    for changes, scale in ((free, CHANGE_NORM), (drawn, CHANGE_NORM / length)):
        for sign in (1, -1):  # change the weights, and then change them back
            for layer, change in zip(layers, changes, strict=True):
                stage = stages[layer.name]
                assert isinstance(stage, nn.Linear)
                stage.bias.add_(change[:, 0], alpha=sign * scale)
                stage.weight.add_(change[:, 1:], alpha=sign * scale)
            if sign == 1:
                output_changes.append(float((perceptron.network(perceptron.train.inputs) - before).norm()))
    return output_changes[0] / output_changes[1]


def describe_budget(budget: Budget) -> list[str]:
    """Return the budget as text and a table, with an explanation."""
    rows = [[x.name, f"{x.d_in} · {x.d_out}", x.rank_gram, x.rank_jacobian, x.directions] for x in budget.layers]
    return [
        "Free directions of each linear map (with its bias) when only this map changes:",
        "",
        markdown_table(["map", "d_in · d_out", "rank G", "rank K", "free"], rows),
        "",
        f"Among {budget.parameters} parameters, {budget.by_ranks} directions are jointly free by the ranks (the map "
        f"{budget.layers[budget.cut].name} by both G and K), {budget.by_rescaling} more by rescaling neurons, and "
        f"{budget.by_blocks} more by synchronised blocks and neurons that are always on: 2λ_B ≤ {budget.bound}.",
        "This bounds the learning coefficient of the behavioural loss on these samples in the limit of small cutoffs: small changes "
        "along the free directions leave every output unchanged. It does not hold for other samples, and ignores directions that are "
        f"only nearly free. A direction counts as free below {EXACT_THRESHOLD:g} of the largest eigenvalue. If a spectrum continues to "
        "decrease below that, the bound holds only up to float64's rounding.",
    ]


def collect_rank_metrics(ranks: dict[str, list[GramRank]]) -> dict[str, float]:
    """Return the ranks at the first threshold as metrics `rank/G/<hook>` and `rank/K/<hook>`."""
    return {f"rank/{name}": float(by_threshold[0].rank) for name, by_threshold in ranks.items()}


def compute_eigenvalues(grams: Grams) -> dict[str, Tensor]:
    """Return the eigenvalues of all Gram matrices, as arrays `G/<hook>` and `K/<hook>`."""
    return {
        f"{name}/{hook}": gram_eigenvalues(gram)
        for hook, pair in grams.items()
        for name, gram in zip("GK", pair, strict=True)
    }


def plot_spectra(grams: Grams, thresholds: Sequence[float]) -> Figure:
    """Plot the eigenvalues of G and of K at every hook point."""
    arrays = compute_eigenvalues(grams)
    g, k = ({hook: arrays[f"{name}/{hook}"].cpu().numpy() for hook in grams} for name in "GK")
    return gram_spectra(g, k, thresholds=thresholds)


EXPERIMENT = Experiment(SpectraJob, result, last_row_of_history)
