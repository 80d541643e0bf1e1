"""Several SAEs in one spliced pass, compared with a computation by hand, block by block."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.splicing import SaePass, build_joint_splice
from tests.support.small_saes import make_random_sae, make_scaling_sae
from tests.support.toy_subject import make_random_toy

RESIDUALS = [f"blocks.{k}.hook_resid_pre" for k in range(3)] + ["blocks.2.hook_resid_post"]
TOKENS = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(2))


def make_sae(seed: int) -> SAE:
    return make_random_sae(d_model=6, n_latents=8, seed=seed)


def run_spliced(sites: Sequence[Site]) -> tuple[Tensor, list[SaePass]]:
    subject = make_random_toy(seed=0)
    splice, passed = build_joint_splice(sites, sides=None)
    assert passed == []
    return subject.spliced(subject.clean(TOKENS, capture=RESIDUALS), splice).final, passed


def test_the_later_sae_reads_what_the_earlier_one_wrote() -> None:
    one, two, subject = make_sae(1), make_sae(2), make_random_toy(seed=0)
    final, passed = run_spliced([Site(RESIDUALS[0], RESIDUALS[0], one), Site(RESIDUALS[2], RESIDUALS[2], two)])
    x = subject.embed[TOKENS]
    entering = subject.blocks[1](subject.blocks[0](one(x)))
    torch.testing.assert_close(final, subject.blocks[2](two(entering)))
    for sae_pass, read, sae in zip(passed, (x, entering), (one, two), strict=True):
        torch.testing.assert_close(sae_pass.x, read.flatten(0, 1))
        torch.testing.assert_close(sae_pass.codes.c, sae.encode(read.flatten(0, 1)).c)
        torch.testing.assert_close(sae_pass.reconstruction, sae(read).flatten(0, 1))


def test_gradients_reach_the_earlier_sae_through_the_later_one() -> None:
    one, two = make_sae(1), make_sae(2)
    _, (first, second) = run_spliced([Site(RESIDUALS[0], RESIDUALS[0], one), Site(RESIDUALS[2], RESIDUALS[2], two)])
    assert not first.x.requires_grad
    gradient, none = torch.autograd.grad(second.codes.c.sum(), (one.W_enc, two.W_dec), allow_unused=True)
    assert gradient.abs().sum() > 0
    assert none is None


def test_the_order_of_the_arguments_does_not_matter() -> None:
    sites = [
        Site(RESIDUALS[0], RESIDUALS[1], make_sae(1)),
        Site(RESIDUALS[1], RESIDUALS[2], make_sae(2)),
        Site(RESIDUALS[3], RESIDUALS[3], make_sae(3)),
    ]
    final, passed = run_spliced(sites)
    for order in ([2, 1, 0], [1, 2, 0]):
        reordered_final, reordered = run_spliced([sites[i] for i in order])
        assert torch.equal(reordered_final, final)
        for place, i in enumerate(order):
            assert torch.equal(reordered[place].reconstruction, passed[i].reconstruction)


def test_a_transcoder_is_not_affected_by_an_sae_between_its_hook_points() -> None:
    transcoder, between, subject = make_sae(1), make_sae(2), make_random_toy(seed=0)
    final, (passed, _) = run_spliced(
        [Site(RESIDUALS[0], RESIDUALS[2], transcoder), Site(RESIDUALS[1], RESIDUALS[1], between)]
    )
    x = subject.embed[TOKENS]
    torch.testing.assert_close(final, subject.blocks[2](transcoder(x)))  # the later residual depends on nothing else
    torch.testing.assert_close(passed.x, x.flatten(0, 1))


@pytest.mark.parametrize("earlier_reads", [RESIDUALS[0], RESIDUALS[1]])
def test_an_sae_reads_what_another_one_wrote(earlier_reads: str) -> None:
    """The residual is halved at RESIDUALS[1]; a transcoder reads it there, doubles it, and replaces the residual at RESIDUALS[2]."""
    sites = [
        Site(RESIDUALS[1], RESIDUALS[2], make_scaling_sae(2.0, d_model=6)),
        Site(earlier_reads, RESIDUALS[1], make_scaling_sae(0.5, d_model=6)),
    ]
    subject = make_random_toy(seed=0)
    final, (later, _) = run_spliced(sites)
    x = subject.clean(TOKENS, capture=RESIDUALS).activations[earlier_reads]
    torch.testing.assert_close(later.x, 0.5 * x.flatten(0, 1))
    torch.testing.assert_close(final, subject.blocks[2](x))


class SideEncoder(ReluSAE):
    """An SAE that encodes its side input."""

    def encode(self, x: Tensor, side: Tensor | None = None) -> Codes:
        assert side is not None
        return super().encode(side)


@pytest.mark.parametrize("flat", [False, True])
def test_each_encoder_is_given_its_side(flat: bool) -> None:
    side_encoder = SideEncoder(
        d_model=6, n_latents=8, init="tied", init_norm=1.0, subtract_b_dec=False, generator=torch.Generator()
    )
    sites = [Site(RESIDUALS[0], RESIDUALS[1], side_encoder), Site(RESIDUALS[2], RESIDUALS[2], make_sae(1))]
    side = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0))
    splice, passed = build_joint_splice(sites, sides={RESIDUALS[1]: side.flatten(0, 1) if flat else side})
    subject = make_random_toy(seed=0)
    subject.spliced(subject.clean(TOKENS, capture=RESIDUALS), splice)
    torch.testing.assert_close(passed[0].codes.c, torch.relu(side.flatten(0, 1) @ side_encoder.W_enc))


def test_codes_have_the_dtype_of_the_sae() -> None:
    subject = make_random_toy(seed=0)
    clean = subject.clean(TOKENS, capture=RESIDUALS)
    splice, passed = build_joint_splice([Site(RESIDUALS[0], RESIDUALS[0], make_sae(1))], sides=None)
    splice[RESIDUALS[0]](clean.activations[RESIDUALS[0]].bfloat16())
    assert passed[0].x.dtype == passed[0].reconstruction.dtype == torch.float32


def test_user_errors() -> None:
    with pytest.raises(UserError, match=r"two SAEs write at blocks\.1\.hook_resid_pre"):
        build_joint_splice(
            [Site(RESIDUALS[0], RESIDUALS[1], make_sae(1)), Site(RESIDUALS[1], RESIDUALS[1], make_sae(2))], sides=None
        )
    with pytest.raises(UserError, match=r"out of order: blocks\.0.*, which the SAE writes, is before blocks\.1"):
        build_joint_splice([Site(RESIDUALS[1], RESIDUALS[0], make_sae(1))], sides=None)
