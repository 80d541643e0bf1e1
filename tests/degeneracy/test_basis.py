"""Tests of the interaction basis's identities, to 1e-8 in float64, and of the baseline bases."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.degeneracy.basis import Basis, dictionary_basis, neuron_basis, pca_basis, random_basis
from crux.degeneracy.grams import Target, jacobian_gram, moments
from crux.degeneracy.interaction_basis import interaction_bases
from crux.degeneracy.networks.chain import Chain
from crux.degeneracy.networks.network import Network
from crux.degeneracy.rewrite import rewrite_in_bases
from crux.subjects.subject import FINAL
from tests.support.small_networks import inputs, perceptron, random_subject
from tests.support.tiny_subjects import TOKENS

HOOKS = ("input", "post0", "post1", "output")
AHEAD = (1, 2, None)
"""Number of hook points ahead: the local basis, the next-2 basis and, with None, the global basis."""


def find_bases_at(
    network: Network, batches: list[Tensor], *, ahead: int | None, hooks: tuple[str, ...] = HOOKS
) -> list[Basis]:
    return interaction_bases(
        network, batches, hooks=hooks, ahead=ahead, last=None, probes=None, threshold=1e-12, seed=0
    )


@pytest.fixture
def chain() -> Chain:
    return perceptron([5, 8, 6, 3], activation=nn.GELU, seed=0)


@pytest.fixture
def batches() -> list[Tensor]:
    return inputs((100, 5), seed=1)


class MixPositions(nn.Module):
    """A map that mixes positions and coordinates."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.same_position, self.all_positions = nn.Linear(n_in, n_out), nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.same_position(x) + self.all_positions(x.mean(1, keepdim=True)))


def build_cases() -> dict[str, Callable[[], tuple[Network, list[Tensor], tuple[str, ...]]]]:
    """Return functions that build a network, batches for it, and its hook points, by the kind of network."""

    def build_network_with_positions() -> tuple[Network, list[Tensor], tuple[str, ...]]:
        torch.manual_seed(0)
        network = Chain({"input": nn.Identity(), "a": MixPositions(4, 6), "b": MixPositions(6, 3)}).double()
        return network, inputs((20, 3, 4), seed=0), ("input", "a", "b")

    def build_language_model() -> tuple[Network, list[Tensor], tuple[str, ...]]:
        hooks = ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_resid_pre", FINAL)
        return random_subject("gpt2").to(dtype=torch.float64), [TOKENS[:, :7], TOKENS[:, 7:14]], hooks

    return {
        "perceptron": lambda: (perceptron([5, 8, 6, 3], activation=nn.GELU, seed=0), inputs((100, 5), seed=1), HOOKS),
        "positions": build_network_with_positions,
        "language model": build_language_model,
    }


@pytest.mark.parametrize("kind", build_cases())
@pytest.mark.parametrize("ahead", AHEAD)
def test_covariance_and_jacobian_gram_are_diagonal(kind: str, ahead: int | None) -> None:
    """E[f̂ᵀf̂] = Λ, also with a constant coordinate, which stays separate, and C⁺ M' C⁺ᵀ is the identity."""
    network, batches, hooks = build_cases()[kind]()
    bases = find_bases_at(network, batches, ahead=ahead, hooks=hooks)
    found = moments(network, batches, hooks=hooks)
    for place, basis in enumerate(bases):
        covariance = basis.C.T @ found[basis.hook].covariance @ basis.C
        scale = float(basis.strength[0])
        assert torch.allclose(covariance, basis.strength.diag(), rtol=0, atol=1e-8 * scale)
        augmented = basis.augmented.T @ found[basis.hook].augmented @ basis.augmented
        expected = torch.block_diag(torch.ones(1, 1).double(), basis.strength.diag())
        assert torch.allclose(augmented, expected, rtol=0, atol=1e-8 * max(1, scale))
        assert torch.allclose(basis.C_pinv @ basis.C, torch.eye(basis.size).double(), atol=1e-8)
        assert (basis.gaps >= 0).all()
        if place < len(bases) - 1:
            later = bases[-1 if ahead is None else min(place + ahead, len(bases) - 1)]
            M = jacobian_gram(
                network, batches, start=basis.hook, targets=[Target(later.hook, later.C)], probes=None, seed=0
            )
            assert torch.allclose(basis.C_pinv @ M @ basis.C_pinv.T, torch.eye(basis.size).double(), rtol=0, atol=1e-8)
            products = torch.linalg.eigvals(found[basis.hook].covariance @ M).real.sort(descending=True).values
            assert torch.allclose(products[: basis.size], basis.strength, rtol=0, atol=1e-8 * scale)
            assert (products[basis.size :].abs() < 1e-8 * scale).all()


@pytest.mark.parametrize("ahead", AHEAD)
def test_jacobians_in_new_coordinates_have_unit_columns(ahead: int | None, chain: Chain, batches: list[Tensor]) -> None:
    """The Jacobians are those of the rewritten network, by torch.func."""
    bases = find_bases_at(chain, batches, ahead=ahead)
    rewritten = rewrite_in_bases(chain, bases)
    for place, basis in enumerate(bases[:-1]):
        end = bases[-1 if ahead is None else min(place + ahead, len(bases) - 1)].hook
        data = torch.cat(batches)
        clean = rewritten.clean(data, capture=[basis.hook], final=False)

        def run(value: Tensor, clean=clean, start=basis.hook, end=end) -> Tensor:
            return rewritten.continue_from(clean, start, value, ends=[end])[end]

        J = torch.func.vmap(torch.func.jacrev(run))(clean.activations[basis.hook])
        assert torch.allclose(J.square().sum(1).mean(0), torch.ones(basis.size).double(), rtol=0, atol=1e-8)
        assert torch.allclose(torch.einsum("nij,nik->jk", J, J) / len(J), torch.eye(basis.size).double(), atol=1e-8)


def test_strengths_do_not_depend_on_the_coordinates_of_the_activations(chain: Chain, batches: list[Tensor]) -> None:
    """At the inner hook points f is replaced by f A + a, which the next map undoes."""
    stages = dict(zip(chain.hooks, chain.stages.values(), strict=True))
    torch.manual_seed(3)
    for hook, after in (("post0", "pre1"), ("post1", "output")):
        d = chain.get_submodule(f"stages.{after}").get_parameter("weight").shape[1]
        to_new, to_old = nn.Linear(d, d).double(), nn.Linear(d, d).double()
        with torch.no_grad():
            to_old.weight.copy_(torch.linalg.inv(to_new.weight))
            to_old.bias.copy_(-to_new.bias @ to_old.weight.T)
        stages[hook] = nn.Sequential(stages[hook], to_new)
        stages[after] = nn.Sequential(to_old, stages[after])
    rewritten = Chain(stages)
    assert torch.allclose(rewritten(batches[0]), chain(batches[0]), atol=1e-10)
    for ahead in AHEAD:
        for a, b in zip(
            find_bases_at(chain, batches, ahead=ahead), find_bases_at(rewritten, batches, ahead=ahead), strict=True
        ):
            assert torch.allclose(a.strength, b.strength, rtol=0, atol=1e-8 * float(a.strength[0]))


@pytest.mark.parametrize("ahead", AHEAD)
def test_deep_linear_networks_have_the_same_spectrum_in_every_layer(ahead: int | None) -> None:
    """In every layer, Λ are the eigenvalues of the output's covariance, with no more directions than the output has."""
    chain = perceptron([6, 5, 7, 4], activation=nn.Identity, seed=0)
    batches = inputs((50, 6), seed=2)
    output = torch.cov(chain(torch.cat(batches)).detach().T, correction=0)
    expected = torch.linalg.eigvalsh(output).flip(0)
    for basis in find_bases_at(chain, batches, ahead=ahead):
        assert basis.size == 4
        assert torch.allclose(basis.strength, expected, rtol=0, atol=1e-8 * float(expected[0]))


@pytest.mark.parametrize("ahead", AHEAD)
@pytest.mark.parametrize("hooks", [HOOKS, ("pre0", "post1", "output"), ("input", "pre1", "post1")])
def test_rewritten_network_is_the_same_function(
    ahead: int | None, hooks: tuple[str, ...], chain: Chain, batches: list[Tensor]
) -> None:
    bases = find_bases_at(chain, batches, ahead=ahead, hooks=hooks)
    rewritten = rewrite_in_bases(chain, bases)
    clean = chain.clean(batches[0], capture=hooks, final=True)
    found = rewritten.clean(batches[0], capture=hooks, final=True)
    for basis in bases:
        expected = basis.coordinates(clean.activations[basis.hook])
        assert torch.allclose(found.activations[basis.hook], expected, atol=1e-8)
    assert found.final is not None
    assert clean.final is not None
    final = bases[-1].activations(found.final) if hooks[-1] == "output" else found.final
    assert torch.allclose(final, clean.final, atol=1e-8)
    assert isinstance(rewritten.stages["pre1"], nn.Linear)  # the basis maps are merged into it


def test_baseline_bases_represent_all_activations(chain: Chain, batches: list[Tensor]) -> None:
    moments_at = moments(chain, batches, hooks=HOOKS)
    torch.manual_seed(0)
    for build_basis in (
        lambda hook: neuron_basis(hook, moments_at[hook]),
        lambda hook: pca_basis(hook, moments_at[hook], threshold=1e-12),
        lambda hook: random_basis(hook, moments_at[hook], seed=0),
        lambda hook: dictionary_basis(hook, moments_at[hook], directions=torch.randn(20, len(moments_at[hook].mean))),
    ):
        bases = [build_basis(hook) for hook in HOOKS]
        rewritten = rewrite_in_bases(chain, bases)
        assert torch.allclose(bases[-1].activations(rewritten(batches[0])), chain(batches[0]), atol=1e-8)
        f = chain.clean(torch.cat(batches), capture=HOOKS, final=False).activations
        for basis in bases:
            coordinates = basis.coordinates(f[basis.hook])
            assert torch.allclose(coordinates.square().mean(0), basis.strength, atol=1e-8)
            assert torch.equal(basis.strength, basis.strength.sort(descending=True).values)


def test_keeping_all_directions_leaves_later_activations_unchanged() -> None:
    """In a language model the basis is a projection C C⁺ that later layers do not notice; keeping no direction leaves the mean."""
    network, batches, hooks = build_cases()["language model"]()
    for basis in find_bases_at(network, batches, ahead=1, hooks=hooks)[:-1]:
        clean = network.clean(batches[0], capture=[basis.hook], final=True)
        f = clean.activations[basis.hook]
        found = network.continue_from(clean, basis.hook, basis.keep_strongest(f, basis.size), ends=[FINAL])[FINAL]
        assert clean.final is not None
        assert torch.allclose(found, clean.final, atol=1e-8)
        assert torch.equal(basis.keep_strongest(f, 0), basis.mean.expand_as(f))


def test_irrelevant_directions_are_left_out_and_reported() -> None:
    """Of three inputs, the second is not read and the third does not vary."""
    reads = nn.Linear(3, 2).double()
    with torch.no_grad():
        reads.weight[:, 1] = 0
    chain = Chain({"input": nn.Identity(), "output": reads})
    data = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data[:, 2] = 4.0
    basis = find_bases_at(chain, [data], ahead=1, hooks=("input", "output"))[0]
    assert basis.size == 1
    assert basis.C[2].abs().max() < 1e-12
    assert torch.allclose(basis.activations(basis.coordinates(data))[:, 0], data[:, 0])
    assert basis.dropped < 1e-12
    assert basis.unused < 1e-12
    coarse = interaction_bases(
        perceptron([5, 8, 3], activation=nn.GELU, seed=0), inputs((50, 5), seed=1),
        hooks=("input", "output"), ahead=1, last=None, probes=None, threshold=0.05, seed=0,
    )[0]  # fmt: skip
    # the variances that are below 0.05 of the largest one
    found = moments(perceptron([5, 8, 3], activation=nn.GELU, seed=0), inputs((50, 5), seed=1), hooks=["input"])
    values = torch.linalg.eigvalsh(found["input"].covariance)
    assert coarse.dropped == pytest.approx(float(values[values <= 0.05 * values[-1]].sum() / values.sum()))
    assert coarse.size < 5


def test_random_probes_find_almost_the_same_strengths(chain: Chain) -> None:
    batches = inputs((4000, 5), seed=1)
    for exact, estimated in zip(
        find_bases_at(chain, batches, ahead=1),
        interaction_bases(chain, batches, hooks=HOOKS, ahead=1, last=None, probes=1, threshold=1e-12, seed=0),
        strict=True,
    ):
        assert torch.allclose(exact.strength, estimated.strength, rtol=0, atol=0.05 * float(exact.strength[0]))


def test_invalid_arguments_are_rejected(chain: Chain, batches: list[Tensor]) -> None:
    with pytest.raises(UserError, match="output, input: the second must come after the first"):
        find_bases_at(chain, batches, ahead=1, hooks=("output", "input"))
    with pytest.raises(UserError, match="post0, post0: the second must come after"):
        find_bases_at(chain, batches, ahead=1, hooks=("post0", "post0"))
    with pytest.raises(UserError, match="no data"):
        find_bases_at(chain, [], ahead=1)
    with pytest.raises(UserError, match="ahead=0"):
        find_bases_at(chain, batches, ahead=0)
    with pytest.raises(UserError, match="needs two or more"):
        find_bases_at(chain, batches, ahead=1, hooks=("input",))
    with pytest.raises(UserError, match="the basis is empty, because the activations do not vary"):
        find_bases_at(chain, [torch.ones(10, 5).double()], ahead=1)
    dead = Chain({"input": nn.Identity(), "dead": nn.Threshold(1e9, 0.0), "output": nn.Linear(5, 5)}).double()
    last = neuron_basis("output", moments(chain, batches, hooks=["input"])["input"])
    with pytest.raises(UserError, match=r"input: the basis is empty, because nothing at the later hook point depends"):
        interaction_bases(
            dead, batches, hooks=("input", "output"), ahead=1, last=last, probes=None, threshold=1e-12, seed=0
        )
    with pytest.raises(UserError, match="the dictionary has no non-zero direction"):
        dictionary_basis("input", moments(chain, batches, hooks=["input"])["input"], directions=torch.zeros(3, 5))
    bases = find_bases_at(chain, batches, ahead=1)
    with pytest.raises(UserError, match="two bases"):
        rewrite_in_bases(chain, [bases[0], bases[0]])
