"""The evaluation of several SAEs in one pass, compared with that of one SAE and with two splices by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.evaluation.evaluate_sae import evaluate_sae
from crux.sae.evaluation.evaluate_together import evaluate_together
from tests.support.small_saes import make_random_sae
from tests.support.toy_subject import make_random_toy

RESIDUALS = [f"blocks.{k}.hook_resid_pre" for k in range(3)] + ["blocks.2.hook_resid_post"]
TOKENS = torch.randint(11, (24, 7), generator=torch.Generator().manual_seed(2))
MEANS = {hook: torch.randn(6, generator=torch.Generator().manual_seed(i)) for i, hook in enumerate(RESIDUALS)}


def make_sae(seed: int) -> SAE:
    return make_random_sae(d_model=6, n_latents=8, seed=seed)


@pytest.mark.parametrize(("read", "write"), [(RESIDUALS[1], RESIDUALS[1]), (RESIDUALS[0], RESIDUALS[2])])
@pytest.mark.parametrize("ablations", [True, False])
def test_one_sae_has_its_usual_evaluation(read: str, write: str, ablations: bool) -> None:
    subject = make_random_toy(seed=0)
    together = evaluate_together(
        subject, [Site(read, write, make_sae(1))], batches=TOKENS.split(10), means=MEANS, ablations=ablations
    )
    expected = evaluate_sae(
        subject,
        make_sae(1),
        hook=read,
        output_hook=write,
        batches=TOKENS.split(10),
        mean_activation=MEANS[write],
        ablations=ablations,
    ).metrics
    names = ["ce_clean", "ce_spliced", "ce_increase", "kl", "top1_agreement", "l0"]
    if ablations:
        names += ["ce_zero", "ce_mean", "loss_recovered_zero", "loss_recovered_mean"]
    assert together.keys() == {name + suffix for name in names for suffix in ("", "/pos0", "/rest")}
    for name, value in together.items():
        assert value == pytest.approx(expected[name], rel=1e-6), name


def test_two_saes_by_hand_in_any_order() -> None:
    """An SAE reads before block 0 and a transcoder replaces block 1; mean ablation is before block 0 and after block 1."""
    subject, first, second = make_random_toy(seed=0), make_sae(1), make_sae(2)
    sites = [Site(RESIDUALS[0], RESIDUALS[0], first), Site(RESIDUALS[1], RESIDUALS[2], second)]
    found = evaluate_together(subject, sites, batches=[TOKENS], means=MEANS)
    x, labels = subject.embed[TOKENS], TOKENS[:, 1:].flatten()

    def log_q(residual: Tensor) -> Tensor:
        """Return log-probabilities from the residual entering block 2."""
        return (subject.blocks[2](residual) @ subject.unembed.W_U.T).log_softmax(-1)

    def cross_entropy(residual: Tensor) -> float:
        return F.nll_loss(log_q(residual)[:, :-1].flatten(0, 1), labels).item()

    read_by_second = subject.blocks[0](first(x))
    clean, spliced = subject.blocks[1](subject.blocks[0](x)), second(read_by_second)  # residuals entering block 2
    codes = [first.encode(x.flatten(0, 1)).c, second.encode(read_by_second.flatten(0, 1)).c]
    wanted = {
        "ce_clean": cross_entropy(clean),
        "ce_spliced": cross_entropy(spliced),
        "ce_increase": cross_entropy(spliced) - cross_entropy(clean),
        "ce_zero": cross_entropy(torch.zeros_like(x)),
        "ce_mean": cross_entropy(MEANS[RESIDUALS[2]].expand_as(x)),
        "kl": F.kl_div(log_q(spliced), log_q(clean), log_target=True, reduction="sum").item() / TOKENS.numel(),
        "l0": sum((c > 0).float().sum(-1).mean().item() for c in codes),
    }
    wanted["loss_recovered_zero"] = (wanted["ce_zero"] - cross_entropy(spliced)) / (
        wanted["ce_zero"] - cross_entropy(clean)
    )
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert evaluate_together(subject, sites[::-1], batches=[TOKENS], means=MEANS) == found


def test_every_written_hook_point_is_ablated() -> None:
    """The blocks follow the first ablated hook point, and only the unembedding follows the second."""
    subject = make_random_toy(seed=0)
    sites = [Site(RESIDUALS[3], RESIDUALS[3], make_sae(2)), Site(RESIDUALS[0], RESIDUALS[0], make_sae(1))]
    found = evaluate_together(subject, sites, batches=[TOKENS], means=MEANS)
    for name, last in (("ce_zero", torch.zeros(6)), ("ce_mean", MEANS[RESIDUALS[3]])):
        logits = (last @ subject.unembed.W_U.T).expand(TOKENS[:, 1:].numel(), -1)
        assert found[name] == pytest.approx(F.cross_entropy(logits, TOKENS[:, 1:].flatten()).item(), rel=1e-5)
    assert "loss_recovered_mean/pos0" in found


def test_three_passes_and_a_clean_one_per_batch() -> None:
    subject = make_random_toy(seed=0)
    sites = [Site(RESIDUALS[0], RESIDUALS[0], make_sae(1)), Site(RESIDUALS[1], RESIDUALS[2], make_sae(2))]
    evaluate_together(subject, sites, batches=TOKENS.split(12), means=MEANS)
    assert subject.passes == ["clean", "spliced", "spliced", "spliced"] * 2


@pytest.mark.parametrize(
    ("sites", "batches", "message"),
    [
        (
            [Site(RESIDUALS[0], RESIDUALS[0], make_random_sae(d_model=4, n_latents=8, seed=0))],
            [TOKENS],
            "reads 4 dimensions",
        ),
        (
            [Site(RESIDUALS[0], RESIDUALS[0], make_sae(1)), Site(RESIDUALS[0], RESIDUALS[0], make_sae(2))],
            [TOKENS],
            "two SAEs write at",
        ),
        ([Site(RESIDUALS[2], RESIDUALS[1], make_sae(1))], [TOKENS], "out of order"),
        ([Site("blocks.7.hook_resid_pre", RESIDUALS[1], make_sae(1))], [TOKENS], "3 layers"),
        ([Site(RESIDUALS[0], RESIDUALS[0], make_sae(1))], [], "not one batch"),
        ([Site(RESIDUALS[0], RESIDUALS[0], make_sae(1))], [TOKENS[:, :1]], "at least 2"),
    ],
)
def test_user_errors(sites: list[Site], batches: list[Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_together(make_random_toy(seed=0), sites, batches=batches, means=MEANS)
