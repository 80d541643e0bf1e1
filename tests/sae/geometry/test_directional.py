"""Single directions: a planted direction of position 0, planted correlations, and the KL of resampling."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.site import Site
from crux.sae.geometry.direction_sums import DirectionRow
from crux.sae.geometry.directional import NamedDirections, find_directions, measure_directions
from crux.sae.geometry.fisher_directions import Fisher, measure_fisher
from tests.support.small_saes import make_relu_sae, make_scaling_sae
from tests.support.toy_subject import ToySubject, make_random_toy

HOOK = "blocks.1.hook_resid_pre"
D, VOCAB, MASSIVE = 8, 300, 60.0
U = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(7))).Q
"""An orthonormal basis: the first column is the direction of position 0, the second one is what leaks into its reconstruction."""


def make_subject(scale: float = 0.05) -> ToySubject:
    """Return a subject whose tokens are white in the basis U, and whose first block adds a massive vector at position 0."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(VOCAB, D, generator=generator, dtype=torch.float64)
    white = torch.linalg.qr(white - white.mean(0)).Q * VOCAB**0.5

    def add_massive(h: Tensor) -> Tensor:
        first = torch.zeros(h.shape[1], 1)
        first[0] = MASSIVE
        return h + first * U[:, 0]

    W_U = scale * torch.randn(VOCAB, D, generator=generator)
    return ToySubject(embed=white.float() @ U.T, blocks=[add_massive, lambda h: h], W_U=W_U)


def make_planted_sae(a: float, b: float) -> ReluSAE:
    """Return an SAE with x̂·u = relu(x·u − 20) + a x·u + b x·v, and all other directions perfect: u and v are columns 0 and 1 of U."""
    u, v = U[:, 0], U[:, 1]
    reads = [u, a * u, -a * u, b * v, -b * v, *U[:, 1:].T, *-U[:, 1:].T]
    writes = [u, u, -u, u, -u, *U[:, 1:].T, *-U[:, 1:].T]
    bias = torch.zeros(len(reads))
    bias[0] = -20
    return make_relu_sae(torch.stack(reads, 1), bias, torch.stack(writes), torch.zeros(D))


def draw_batches(seed: int, *, n: int = 6, batch: int = 50, pos: int = 20, vocab: int = VOCAB) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (batch, pos), generator=generator) for _ in range(n)]


def find(toy: ToySubject, **arguments: int | None) -> NamedDirections:
    defaults: dict[str, int | None] = {"n_components": 3, "n_random": 2, "end_of_text": None, "seed": 0}
    return find_directions(toy, hook=HOOK, batches=draw_batches(0, vocab=len(toy.embed)), **defaults | arguments)  # pyright: ignore[reportArgumentType]


def measure(
    toy: ToySubject, sae: ReluSAE, directions: NamedDirections, *, end_of_text: int | None = None
) -> dict[str, DirectionRow]:
    fisher = measure_fisher(toy, hook=HOOK, batches=draw_batches(2, n=2), n_draws=2, seed=0)
    rows = measure_directions(
        toy, Site(HOOK, HOOK, sae), directions, fisher=fisher, batches=draw_batches(1), end_of_text=end_of_text, seed=0
    )
    return {row.name: row for row in rows}


def test_the_direction_of_position_0_is_found_as_the_first_component_with_its_planted_correlations() -> None:
    """After position 0 the correlation is a / √(a² + b²) = 0.6; at position 0 it is (1 + a) / √((1 + a)² + b²)."""
    toy, a, b = make_subject(), 0.3, 0.4
    directions = find(toy)
    u = U[:, 0].double()
    first = directions.vectors[directions.names.index("pca_with_pos0_0")]
    assert float(first @ u) >= 0.99
    assert float(directions.pos0_mean @ u) >= 0.99
    row = measure(toy, make_planted_sae(a, b), directions)["pca_with_pos0_0"]
    assert row.pearson == pytest.approx(0.6, abs=0.02)
    assert row.pearson_pos0 == pytest.approx(1.3 / (1.3**2 + 0.16) ** 0.5, abs=0.02)
    assert row.pos0_cosine >= 0.99
    # after position 0 the tokens are white; with it, 1/20 of the tokens lie far away along u
    assert row.variance_share == pytest.approx(1 / D, abs=0.02)
    spread = MASSIVE**2 / 20 * 19 / 20
    assert row.variance_share_with_pos0 == pytest.approx((spread + 1) / (spread + D), abs=0.02)


def test_the_first_component_without_position_0_does_not_know_of_it() -> None:
    toy = make_subject()
    toy.embed = toy.embed + toy.embed @ torch.outer(U[:, 3], U[:, 3])  # most variance along column 3
    directions = find(toy)
    assert abs(float(directions.vectors[directions.names.index("pca_0")] @ U[:, 3].double())) > 0.99
    assert float(directions.vectors[directions.names.index("pca_with_pos0_0")] @ U[:, 0].double()) > 0.99
    assert len(directions.names) == len(set(directions.names)) == len(directions.vectors) == 3 + 3 + 1 + 2
    torch.testing.assert_close(directions.vectors.norm(dim=1), torch.ones(9).double())


def test_the_kl_of_resampling_is_that_of_full_logits() -> None:
    """With two ordinary tokens in a batch, each takes the other's place: nothing is left to chance."""
    toy = make_subject(scale=0.4)
    tokens = torch.tensor([[5, 17], [250, 33]])
    vectors = U[:, :2].T.double()
    eye = torch.eye(D).double()
    directions = NamedDirections(("first", "second"), vectors, eye, eye, vectors[0])
    fisher = Fisher(torch.diag(torch.arange(1.0, D + 1)).double(), 1, 1)
    rows = measure_directions(
        toy, Site(HOOK, HOOK, make_scaling_sae(1.0, d_model=D)), directions, fisher=fisher, batches=[tokens],
        end_of_text=None, seed=0,
    )  # fmt: skip
    x = toy.embed[torch.tensor([17, 33])]
    log_p = (x @ toy.unembed.W_U.T).log_softmax(-1)
    for k, row in enumerate(rows):
        along = x @ U[:, k]
        log_q = ((x + (along.flip(0) - along)[:, None] * U[:, k]) @ toy.unembed.W_U.T).log_softmax(-1)
        kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        assert row.kl == pytest.approx(float(kl.mean()), rel=1e-3)
        assert row.variance_removed == pytest.approx(0.5 * float((along[0] - along[1]) ** 2), rel=1e-4)
        assert row.kl_per_variance == pytest.approx(row.kl / row.variance_removed)
        share = float((U[:, k].double() ** 2 * torch.arange(1, D + 1)).sum()) / 36
        assert row.fisher_share == pytest.approx(share)
        assert row.fisher_relative == pytest.approx(D * share)
        assert row.variance_share == pytest.approx(1 / D)


def test_small_resampling_costs_the_fisher_information_per_unit_variance() -> None:
    toy = make_subject()
    directions = find(toy)
    fisher = measure_fisher(toy, hook=HOOK, batches=draw_batches(2), n_draws=6, seed=0)
    rows = measure(toy, make_scaling_sae(1.0, d_model=D), directions)
    for name, u in zip(directions.names, directions.vectors, strict=True):
        assert rows[name].kl_per_variance == pytest.approx(float(u @ fisher.matrix @ u), rel=0.1)
        assert rows[name].variance_removed == pytest.approx(1, rel=0.1)
        assert rows[name].pearson == pytest.approx(1)
        assert rows[name].kl_standard_error < 0.05 * rows[name].kl


def test_end_of_text_tokens_are_neither_changed_nor_counted() -> None:
    """The activation of the end-of-text token is as massive as that of position 0."""
    toy = make_subject()
    toy.embed[0] += MASSIVE * U[:, 0]
    batches = [tokens.clamp_max(50) % 10 for tokens in draw_batches(1)]  # a tenth or more are end-of-text tokens
    assert all((tokens == 0).any() for tokens in batches)
    sae = make_scaling_sae(1.0, d_model=D)
    eye = torch.eye(D).double()
    directions = NamedDirections(("u",), U[:, :1].T.double(), eye, eye, U[:, 0].double())
    fisher = Fisher(eye, 1, 1)

    def resample(end_of_text: int | None) -> DirectionRow:
        return measure_directions(
            toy, Site(HOOK, HOOK, sae), directions, fisher=fisher, batches=batches, end_of_text=end_of_text, seed=0
        )[0]

    assert resample(0).variance_removed < 5
    assert resample(None).variance_removed > 100
    found = find_directions(
        toy, hook=HOOK, batches=batches, n_components=1, n_random=0, end_of_text=0, seed=0
    ).covariance  # fmt: skip
    assert float(found.trace()) < 2 * D
    with pytest.raises(UserError, match="less than two tokens that are not end-of-text tokens"):
        measure_directions(
            toy, Site(HOOK, HOOK, sae), directions, fisher=fisher, batches=[torch.zeros(2, 3).long()], end_of_text=0, seed=0
        )  # fmt: skip


def test_a_projection_that_does_not_vary_has_no_correlation() -> None:
    """Every window begins with the same token."""
    toy, batches = make_subject(), draw_batches(1)
    for tokens in batches:
        tokens[:, 0] = 4
    fisher = Fisher(torch.eye(D).double(), 1, 1)
    rows = measure_directions(
        toy, Site(HOOK, HOOK, make_planted_sae(0.3, 0.4)), find(toy), fisher=fisher, batches=batches, end_of_text=None,
        seed=0,
    )  # fmt: skip
    assert {row.pearson_pos0 for row in rows} == {None}
    assert all(row.pearson is not None for row in rows)


def test_transcoders_and_numbers_that_do_not_fit() -> None:
    toy = make_random_toy(seed=0)
    write = "blocks.2.hook_resid_pre"
    batches = draw_batches(0, vocab=11)
    directions = find_directions(toy, hook=write, batches=batches, n_components=2, n_random=0, end_of_text=None, seed=0)
    fisher = measure_fisher(toy, hook=write, batches=batches[:1], n_draws=1, seed=0)
    sae = make_scaling_sae(1.0, d_model=6)
    rows = measure_directions(
        toy, Site(HOOK, write, sae), directions, fisher=fisher, batches=batches, end_of_text=None, seed=0
    )
    clean = toy.clean(torch.cat(batches), capture=[HOOK, write]).activations
    read, x = (clean[hook][:, 1:].flatten(0, 1).double() @ directions.vectors[0] for hook in (HOOK, write))
    assert rows[0].pearson == pytest.approx(float(torch.corrcoef(torch.stack([read, x]))[0, 1]), abs=1e-5)
    with pytest.raises(UserError, match="n_components=9"):
        find(make_subject(), n_components=9)
