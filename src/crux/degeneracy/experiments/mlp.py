"""Experiment: comparison of bases on a perceptron trained on a structured task, and checks on two networks with known graphs."""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crux.degeneracy.basis import Basis
from crux.degeneracy.basis_options import MlpBases, SmallPerceptron
from crux.degeneracy.comparison import AblationLoss
from crux.degeneracy.edges import interaction_edges
from crux.degeneracy.experiments.compare_bases import compare_bases
from crux.degeneracy.experiments.fitting import fit_by_adam
from crux.degeneracy.interaction_basis import interaction_bases
from crux.degeneracy.networks.chain import Chain
from crux.runs.experiment import Experiment, last_row_of_history
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

N_INPUTS, N_READ, N_OUTPUTS = 12, 6, 4
"""Sizes of the task: dimensions of the input, those of them on which the outputs depend, and outputs."""

GENERATOR = "generator"
"""Name of the random generator's state among the saved weights of a trained network."""


class Task(NamedTuple):
    """A regression task of two independent halves, whose inputs are rotated.

    x = z R with z uniform on [−1, 1]¹²; y = (z₀ z₁, |z₂ + z₃|, z₄ z₅, |z₆ + z₇|), each scaled to variance 1. The outputs
    depend on six of the twelve dimensions: z₀, z₁, z₄, z₅ and the two sums.
    """

    rotation: Float[Tensor, "n n"]

    @classmethod
    def draw(cls, generator: torch.Generator) -> "Task":
        """Return a task with a random rotation."""
        return cls(torch.linalg.qr(torch.randn(N_INPUTS, N_INPUTS, dtype=torch.float64, generator=generator)).Q)

    def inputs(self, n: int, generator: torch.Generator) -> Float[Tensor, "n inputs"]:
        """Draw n inputs x."""
        return (2 * torch.rand(n, N_INPUTS, dtype=torch.float64, generator=generator) - 1) @ self.rotation

    def outputs(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        """Return the correct outputs y."""
        z = x @ self.rotation.T
        products, sums = z[:, [0, 4]] * z[:, [1, 5]], (z[:, [2, 6]] + z[:, [3, 7]]).abs()
        return torch.stack([3 * products, (sums - 2 / 3) * 4.5**0.5], 2).flatten(1)  # variances 1/9 and 2/9


def build_perceptron(widths: list[int], *, activation: type[nn.Module], generator: torch.Generator) -> Chain:
    """Build a perceptron in float64 with He initialisation; its hook points are `input`, `post0`, `post1`, ... and `output`."""
    stages: dict[str, nn.Module] = {"input": nn.Identity()}
    for k, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        linear = nn.Linear(n_in, n_out, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.normal_(0, (2 / n_in) ** 0.5, generator=generator)
            linear.bias.zero_()
        last = k == len(widths) - 2
        stages["output" if last else f"post{k}"] = linear if last else nn.Sequential(linear, activation())
    return Chain(stages)


def train_on_task(task: Task, options: SmallPerceptron, *, generator: torch.Generator, run: ActiveRun) -> Chain:
    """Train a perceptron by Adam on new samples in every step.

    The generator ends in the same state whether the perceptron is trained or loaded from an earlier start of the run.
    """
    chain = build_perceptron([N_INPUTS, *options.hidden, N_OUTPUTS], activation=nn.ReLU, generator=generator)

    def train() -> dict[str, Tensor]:
        def loss() -> Tensor:
            x = task.inputs(256, generator)
            return (chain(x) - task.outputs(x)).square().mean()

        fit_by_adam(loss, chain.parameters(), lr=options.lr, steps=options.steps, run=run)
        return {**chain.state_dict(), GENERATOR: generator.get_state()}

    saved = compute_once(run.folder, "perceptron", train)
    generator.set_state(saved.pop(GENERATOR))
    chain.load_state_dict(saved)
    return chain.requires_grad_(False)


def result(options: MlpBases, run: ActiveRun) -> Result:
    """Compare bases on the trained perceptron, check that they find the unread inputs, and check two networks with known graphs."""
    compare = options.compare
    generator = torch.Generator().manual_seed(run.seed)
    task = Task.draw(generator)
    chain = train_on_task(task, options.perceptron, generator=generator, run=run)
    found_on, held_out = (
        list(task.inputs(n, generator).split(compare.batch)) for n in (compare.samples, compare.judged)
    )

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return (y - task.outputs(x)).square().mean(1)

    comparison, report = compare_bases(
        chain,
        options=options,
        found_on=found_on,
        loss=AblationLoss("MSE, as a share of the outputs' variance", loss, "output", held_out),
        language=None,
        run=run,
        last_step=options.perceptron.steps,
    )
    needed = {name: curves[0].needed for name, curves in comparison.nodes.items()}  # at the input
    checks = [
        *report.checks,
        Check("loss of the trained network", comparison.clean, 0, 0.1),
        Check(
            "global basis: directions needed at the input, where 6 of 12 are read", needed["global"] or 99, 1, N_READ
        ),
        Check("principal components: the same", needed["pca"] or 99, N_READ + 1, N_INPUTS),
        *check_known_networks(run.seed),
    ]
    return report._replace(checks=checks)


def check_known_networks(seed: int) -> list[Check]:
    """Check that linear networks have diagonal edges E_ii = Λ_i, and that disconnected blocks have no edges between them.

    Deviations are given as shares of the largest edge.
    """
    generator = torch.Generator().manual_seed(seed)

    def find_bases_and_edges(
        chain: Chain, batches: list[Tensor], points: int | None
    ) -> tuple[list[Basis], list[Tensor]]:
        bases = interaction_bases(
            chain, batches, hooks=chain.hooks, ahead=1, last=None, probes=None, threshold=1e-12, seed=seed
        )
        return bases, [
            edges.strength
            for edges in interaction_edges(
                chain, batches, bases=bases, points=points, probes=None, mode=None, seed=seed
            )
        ]

    linear = build_perceptron([6, 5, 7, 4], activation=nn.Identity, generator=generator)
    bases, between = find_bases_and_edges(linear, [torch.randn(200, 6, dtype=torch.float64, generator=generator)], None)
    deviation = max(float((E - bases[-1].strength.diag()).abs().max() / E.max()) for E in between)

    blocks = build_perceptron([8, 8, 8, 8, 8], activation=nn.ReLU, generator=generator)
    block = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).double()
    for name, weight in blocks.named_parameters():
        if name.endswith("weight"):
            weight.data *= block
    halves = torch.randn(2, 20, 4, dtype=torch.float64, generator=generator)
    # all pairs of the two halves, so that the halves have zero covariance in the sample too
    x = torch.cat([halves[0].repeat_interleave(20, 0), halves[1].repeat(20, 1)], 1)
    bases, between = find_bases_and_edges(blocks, [x], 8)
    in_first_block = [basis.C_pinv[:, :4].square().sum(1) > 0.5 * basis.C_pinv.square().sum(1) for basis in bases]
    largest_cross_edge = max(
        float((E * (b[:, None] != a[None])).max() / E.max())
        for E, (a, b) in zip(between, itertools.pairwise(in_first_block), strict=True)
    )
    return [
        Check("linear network: edges off the diagonal, and E_ii − Λ_i", deviation, 0, 1e-8),
        Check("two blocks, width 8, 4 layers: edges between the blocks", largest_cross_edge, 0, 1e-8),
    ]


EXPERIMENT = Experiment(MlpBases, result, last_row_of_history)
