"""Chance levels, pairs of dictionaries, neighbour mixing, bootstrap and views."""

import math

import numpy as np
import pytest
import torch

from crux.config.errors import UserError
from crux.sae.geometry.bootstrap import bootstrap_difference, spread
from crux.sae.geometry.chance import draw_directions, measure_covariance
from crux.sae.geometry.compare import compare_dictionaries, describe_dictionary
from crux.sae.geometry.dictionary import Dictionary, read_dictionary
from crux.sae.geometry.nearest import find_nearest, normalise_rows
from crux.sae.geometry.neighbour_mixing import measure_mixing
from crux.sae.geometry.views import list_coordinates, project_pca, project_umap
from tests.support.small_runs import draw_token_batches, make_gpt2, make_sae


def draw_unit(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return normalise_rows(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def make_dictionary(decoder: torch.Tensor, encoder: torch.Tensor | None = None) -> Dictionary:
    return Dictionary(decoder, decoder if encoder is None else encoder, np.arange(len(decoder)), len(decoder))


def test_shaped_directions_follow_the_covariance() -> None:
    axes = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    covariance = axes @ torch.diag(torch.tensor([9.0, 4, 1, 1, 0.25, 0], dtype=torch.float64)) @ axes.T
    random = draw_directions(20_000, covariance, seed=0)
    for directions in random:
        assert directions.norm(dim=1).numpy() == pytest.approx(np.ones(20_000), abs=1e-6)
    isotropic, shaped = ((directions.double() @ axes).square().mean(0) for directions in random)
    assert isotropic.tolist() == pytest.approx([1 / 6] * 6, abs=0.01)
    # the energy of a normalised direction along axis k is λ_k z_k² / Σ λ z², estimated here from other draws
    z = np.random.default_rng(1).normal(size=(200_000, 6)) ** 2 * np.array([9.0, 4, 1, 1, 0.25, 0])
    assert shaped.tolist() == pytest.approx((z / z.sum(1, keepdims=True)).mean(0).tolist(), abs=0.01)
    again = draw_directions(20_000, 100 * covariance, seed=0)
    assert torch.allclose(again.shaped, random.shaped, atol=1e-6)  # the scale does not matter


def test_the_covariance_is_that_of_positions_after_the_first() -> None:
    subject = make_gpt2()
    batches = draw_token_batches(subject, n=3)
    hook = "blocks.1.hook_resid_pre"
    x = torch.cat([subject.clean(tokens, capture=[hook]).activations[hook][:, 1:].flatten(0, 1) for tokens in batches])
    covariance = measure_covariance(subject, hook=hook, batches=batches)
    assert covariance.numpy() == pytest.approx(np.cov(x.double().numpy().T, bias=True), abs=1e-8)
    with pytest.raises(UserError, match="there is no text"):
        measure_covariance(subject, hook=hook, batches=[])


def test_a_dictionary_has_the_alive_latents() -> None:
    sae = make_sae(make_gpt2(), n_latents=6)
    alive = np.array([True, False, True, True, False, False])
    dictionary = read_dictionary(sae, alive=alive)
    assert dictionary.latents.tolist() == [0, 2, 3]
    assert dictionary.n_latents == 6
    encoder = sae.W_enc.detach().numpy()[:, [0, 2, 3]].T
    assert dictionary.encoder.numpy() == pytest.approx(
        encoder / np.linalg.norm(encoder, axis=1, keepdims=True), abs=1e-6
    )
    assert dictionary.decoder.numpy() == pytest.approx(sae.dictionary().detach().numpy()[[0, 2, 3]], abs=1e-6)
    with pytest.raises(UserError, match="no latent of the SAE fires"):
        read_dictionary(sae, alive=np.zeros(6, bool))


def test_a_permuted_copy_is_shared_whole() -> None:
    a = draw_unit(100, 16)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    pair = compare_dictionaries(
        make_dictionary(a), make_dictionary(a[order]), covariance=torch.eye(16).double(), seed=0
    )
    numbers = pair.numbers()
    for name in ("to_max_cos", "from_max_cos", "matched_cos", "shared_share"):
        assert numbers[name] == pytest.approx(1, abs=1e-6)
        assert numbers[f"{name}/isotropic"] < 0.8
        assert numbers[f"{name}/shaped"] == pytest.approx(numbers[f"{name}/isotropic"], abs=1e-6)  # a round covariance
    assert numbers["novel_share_a"] == numbers["novel_share_b"] == 0
    assert abs(numbers["mixing_excess"]) < 0.1


def test_a_superset_has_novel_latents_in_one_direction_and_other_encoders_are_not_shared() -> None:
    a = draw_unit(512, 64)
    superset = torch.cat([a, draw_unit(512, 64, seed=1)])
    encoder = torch.cat([a[:256], a[256:].roll(1, 0), draw_unit(512, 64, seed=2)])
    pair = compare_dictionaries(
        make_dictionary(a), make_dictionary(superset, encoder), covariance=torch.eye(64).double(), seed=0
    )
    numbers = pair.numbers()
    assert (numbers["n_a"], numbers["n_b"]) == (512, 1024)
    assert numbers["to_max_cos"] == pytest.approx(1, abs=1e-6)
    assert numbers["from_max_cos"] == pytest.approx((1 + numbers["from_max_cos/isotropic"]) / 2, abs=0.01)
    assert numbers["shared_share"] == pytest.approx(
        0.5, abs=0.01
    )  # the other half has the same decoders, but other encoders
    assert numbers["novel_share_a"] == 0
    assert numbers["novel_share_b"] == pytest.approx(0.5 * 0.99, abs=0.01)
    assert numbers["novel_share_b/shaped"] == pytest.approx(0.99, abs=0.005)


def test_random_dictionaries_are_at_chance() -> None:
    """Directions with a steep covariance look similar; only the shaped chance level shows that this is nothing."""
    covariance = torch.diag(torch.logspace(0, -3, 64, dtype=torch.float64))
    a, b = (draw_directions(512, covariance, seed=seed).shaped for seed in (5, 6))
    numbers = compare_dictionaries(make_dictionary(a), make_dictionary(b), covariance=covariance, seed=0).numbers()
    for name in ("to_max_cos", "from_max_cos", "matched_cos"):
        assert numbers[name] == pytest.approx(numbers[f"{name}/shaped"], abs=0.01)
        assert numbers[name] > numbers[f"{name}/isotropic"] + 0.1
    assert numbers["novel_share_a"] == pytest.approx(0.99, abs=0.015)
    assert abs(numbers["mixing_excess"]) < 0.03
    assert abs(numbers["mixing_excess/shaped"]) < 0.03 < 0.2 < numbers["mixing_excess/isotropic"]
    within = describe_dictionary(make_dictionary(a), covariance=covariance, seed=0)
    isotropic, shaped = within.chance.means()
    assert within.max_cos.mean == pytest.approx(shaped, abs=0.01)
    assert shaped > isotropic + 0.1
    assert within.encoder_decoder == pytest.approx(1)


def test_saes_of_different_places_are_refused() -> None:
    small, large = make_dictionary(draw_unit(20, 4)), make_dictionary(draw_unit(20, 5))
    with pytest.raises(UserError, match="writes 5 dimensions, but the covariance has 4"):
        compare_dictionaries(small, large, covariance=torch.eye(4).double(), seed=0)
    transcoder = make_dictionary(draw_unit(20, 4), draw_unit(20, 6))
    with pytest.raises(UserError, match="read activations of 4 and 6 dimensions"):
        compare_dictionaries(small, transcoder, covariance=torch.eye(4).double(), seed=0)
    assert math.isnan(describe_dictionary(transcoder, covariance=torch.eye(4).double(), seed=0).encoder_decoder)


def test_neighbours_of_mixed_and_of_separate_dictionaries() -> None:
    a, b = draw_unit(300, 8), draw_unit(200, 8, seed=1)
    mixed = measure_mixing(a, b)
    assert mixed.excess_a == pytest.approx(0, abs=0.03)
    assert mixed.excess_b == pytest.approx(0, abs=0.03)
    assert mixed.share_a == pytest.approx(299 / 499, abs=0.03)
    up, down = (normalise_rows(x + torch.eye(8)[0] * sign) for x, sign in ((0.3 * a, 1), (0.3 * b, -1)))
    apart = measure_mixing(up, down)
    assert (apart.share_a, apart.share_b) == (1, 1)
    assert apart.excess_a == pytest.approx(1 - 299 / 499)
    assert apart.excess == pytest.approx((200 / 499 + 300 / 499) / 2)
    in_plane = measure_mixing(
        torch.tensor([[0.0, 0], [0, 1], [9, 9]]), torch.tensor([[9.0, 8], [1, 0]]), k=1, euclidean=True
    )
    assert in_plane.share_a == pytest.approx(2 / 3)  # (9, 9) is next to (9, 8) of the other one
    assert in_plane.share_b == 0
    with pytest.raises(UserError, match="more than 15"):
        measure_mixing(a[:7], b[:8])


def test_the_bootstrap_has_the_interval_of_the_normal_approximation() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(1, 1, 4000), generator.normal(0, 2, 2000)
    difference = bootstrap_difference(a, b, seed=0)
    assert difference.mean == pytest.approx(a.mean() - b.mean())
    half = 1.96 * math.sqrt(a.var() / 4000 + b.var() / 2000)
    assert difference.low == pytest.approx(difference.mean - half, abs=0.05 * half)
    assert difference.high == pytest.approx(difference.mean + half, abs=0.05 * half)
    assert bootstrap_difference(a, b, seed=0) == difference
    assert bootstrap_difference(np.ones(3), np.zeros(1), seed=0) == (1, 1, 1)


def test_the_spread_over_pairs_of_seeds() -> None:
    assert spread([1.0, 2.0, 6.0]) == (3, 1, 6, 3)
    assert spread([]).n == 0


def test_the_plane_of_pca_has_the_largest_variance() -> None:
    a, b = draw_unit(50, 6), draw_unit(30, 6, seed=1)
    joint = torch.cat([a, b]).double().numpy()
    left, s, _ = np.linalg.svd(joint - joint.mean(0), full_matrices=False)
    expected = left[:, :2] * s[:2]
    points = project_pca([a, b])
    assert [len(plane) for plane in points] == [50, 30]
    plane = np.concatenate(points)
    for k in (0, 1):
        sign = np.sign(expected[:, k] @ plane[:, k])
        assert plane[:, k] == pytest.approx(sign * expected[:, k], abs=1e-6)
    frame = list_coordinates(dict(zip("ab", points, strict=True)), {"a": np.arange(50) + 7, "b": np.arange(30)})
    assert list(frame) == ["sae", "latent", "x", "y"]
    assert frame.iloc[50].tolist() == ["b", 0, pytest.approx(plane[50, 0]), pytest.approx(plane[50, 1])]


def test_without_the_package_umap_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crux.sae.geometry.views.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'crux-interp\[umap\]'"):
        project_umap([draw_unit(20, 4)], seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of numba and umap-learn
def test_umap_repeats_itself_and_separates_clusters() -> None:
    pytest.importorskip("umap", reason="needs the extra umap")
    decoders = [normalise_rows(0.5 * draw_unit(60, 16, seed) + torch.eye(16)[seed]) for seed in (0, 1)]
    first, second = (project_umap(decoders, seed=0) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)
    plane = [torch.from_numpy(points) for points in first]
    assert measure_mixing(*plane, euclidean=True).excess > 0.4
    assert find_nearest(decoders[0], decoders[1]).mean < 0.7
