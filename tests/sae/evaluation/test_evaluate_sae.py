"""All metrics of an evaluation, against values computed by hand or with plain torch on full logits."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.gradient_topk import GradientTopKSAE
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import SAE
from crux.sae.evaluation.evaluate_sae import SaeEvaluation, evaluate_sae
from crux.sae.losses.label import LabelTarget
from crux.sae.losses.mse import mse
from tests.support.small_saes import make_random_sae, make_relu_sae, make_scaling_sae
from tests.support.toy_subject import ToySubject, make_random_toy

LN9 = math.log(9)


def make_two_token_subject() -> ToySubject:
    """Return a subject with vocabulary {0, 1}, d_model 2, one block that does nothing, and W_U = 1: the residual is the logits.

    Token 0 is embedded as (ln 9, 0): p = (0.9, 0.1). Token 1 as (0, 2 ln 3) = (0, ln 9): p = (0.1, 0.9).
    """
    return ToySubject(embed=torch.tensor([[LN9, 0.0], [0.0, LN9]]), blocks=[lambda h: h], W_U=torch.eye(2))


HALF_KL = 0.9 * math.log(0.9 / 0.75) + 0.1 * math.log(0.1 / 0.25)
"""KL(clean ‖ spliced) if the logits (ln 9, 0) are halved to (ln 3, 0), for which q = (0.75, 0.25)."""


def evaluate_halving_sae(
    tokens: list[list[int]], *, scale: float = 0.5, mean: tuple[float, float] = (LN9, 0.0)
) -> SaeEvaluation:
    """Evaluate an SAE with x̂ = scale · x on the two-token subject."""
    return evaluate_sae(
        make_two_token_subject(),
        make_scaling_sae(scale, d_model=2),
        hook="blocks.0.hook_resid_pre",
        batches=[torch.tensor(tokens)],
        mean_activation=torch.tensor(mean),
    )


class TestByHand:
    """An SAE with x̂ = x/2 on windows [0, 0, 1], predicted well at position 0 (0 → 0) and badly at position 1 (0 → 1)."""

    metrics = evaluate_halving_sae([[0, 0, 1]]).metrics

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("ce_clean", (-math.log(0.9) - math.log(0.1)) / 2),
            ("ce_clean/pos0", -math.log(0.9)),
            ("ce_clean/rest", -math.log(0.1)),
            ("ce_spliced/pos0", -math.log(0.75)),
            ("ce_spliced/rest", -math.log(0.25)),
            # worse at position 0, better at position 1: the sign is spliced − clean
            ("ce_increase/pos0", math.log(0.9 / 0.75)),
            ("ce_increase/rest", math.log(0.1 / 0.25)),
            ("ce_increase", (math.log(0.9 / 0.75) + math.log(0.1 / 0.25)) / 2),
            ("ce_zero", math.log(2)),
            ("ce_zero/pos0", math.log(2)),
            ("ce_mean/pos0", -math.log(0.9)),  # the mean given is token 0's activation
            ("ce_mean/rest", -math.log(0.1)),
            ("loss_recovered_zero/pos0", (math.log(2) + math.log(0.75)) / (math.log(2) + math.log(0.9))),
            ("kl", HALF_KL),  # symmetric in the two tokens, so the same at every position
            ("kl/pos0", HALF_KL),
            ("kl/rest", HALF_KL),
            ("top1_agreement", 1.0),
            ("l0", 1.0),
            ("cosine", 1.0),
            ("norm_ratio", 0.5),
            ("mse", (LN9 / 2) ** 2 / 2),
            ("mse/rest", (LN9 / 2) ** 2 / 2),
            # Σ‖x−x̂‖² = 3 (ln9/2)²; mean (2/3, 1/3) ln9, Σ‖x−mean‖² = (2·2/9 + 8/9) ln9² = 4/3 ln9²
            ("explained_variance", 1 - (3 / 4) / (4 / 3)),
            # the rest: two tokens, mean (½, ½) ln9, Σ‖x−mean‖² = ln9²
            ("explained_variance/rest", 1 - (2 / 4) / 1),
            ("downstream_mse/1", (LN9 / 2) ** 2 / 2),  # the block does nothing: as at the SAE
            ("downstream_ev/1", 1 - (3 / 4) / (4 / 3)),
            ("alive_heldout_3", 2.0),
            ("alive_heldout_3_frac", 0.5),
        ],
    )
    def test_value(self, name: str, value: float) -> None:
        assert self.metrics[name] == pytest.approx(value, abs=1e-6)

    def test_metrics_without_a_value_are_left_out(self) -> None:
        assert "explained_variance/pos0" not in self.metrics  # one token there: no variance
        assert "downstream_ev/1/pos0" not in self.metrics
        assert "loss_recovered_mean/pos0" not in self.metrics  # mean ablation changes nothing there
        assert all(math.isfinite(value) for value in self.metrics.values())

    def test_all_metrics_are_there(self) -> None:
        names_by_position = [
            *("ce_increase", "ce_clean", "ce_spliced", "ce_zero", "ce_mean", "kl", "l0", "loss_recovered_zero"),
            *("loss_recovered_mean", "explained_variance", "mse", "cosine", "norm_ratio", "top1_agreement"),
            *("downstream_mse/1", "downstream_ev/1"),
        ]
        metrics = evaluate_halving_sae([[0, 0, 1], [1, 1, 0]], mean=(1.0, 0.0)).metrics
        names = [name + suffix for name in names_by_position for suffix in ("", "/pos0", "/rest")]
        assert metrics.keys() == {*names, "alive_heldout_6", "alive_heldout_6_frac"}

    def test_densities_and_maxima(self) -> None:
        evaluation = evaluate_halving_sae([[0, 0, 1]])
        torch.testing.assert_close(evaluation.maxima, torch.tensor([LN9 / 2, LN9 / 2, 0.0, 0.0]))
        torch.testing.assert_close(evaluation.densities, torch.tensor([2 / 3, 1 / 3, 0.0, 0.0]))
        assert evaluation.n_tokens == 3


class TestErrorsOfOtherImplementations:
    """Errors of other implementations, such as the authors' (docs/reference/end_to_end_saes.md §7), that crux must not have."""

    def test_kl_is_clean_to_spliced(self) -> None:
        metrics = evaluate_halving_sae([[0, 0]]).metrics
        reverse = 0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1)
        assert metrics["kl"] == pytest.approx(HALF_KL, abs=1e-6)
        assert abs(metrics["kl"] - reverse) > 0.01

    def test_explained_variance_divides_by_the_variance_of_the_truth(self) -> None:
        """For centred data, x̂ = 0.5 x explains 0.75 of the variance; with the arguments swapped it would be 1 − 0.25/0.25 = 0."""
        subject = ToySubject(embed=torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), blocks=[lambda h: h], W_U=torch.eye(2))
        evaluation = evaluate_sae(
            subject,
            make_scaling_sae(0.5, d_model=2),
            hook="blocks.0.hook_resid_pre",
            batches=[torch.tensor([[0, 1], [1, 0]])],
            mean_activation=torch.zeros(2),
        )
        for name in ("explained_variance", "explained_variance/pos0", "downstream_ev/1"):
            assert evaluation.metrics[name] == pytest.approx(0.75)

    def test_explained_variance_has_the_mean_of_the_whole_set(self) -> None:
        """Each of two batches is constant. They do not vary about their own means, but by ±(½, −½) ln9 about the common mean."""
        evaluation = evaluate_sae(
            make_two_token_subject(),
            make_scaling_sae(0.5, d_model=2),
            hook="blocks.0.hook_resid_pre",
            batches=[torch.tensor([[0, 0]]), torch.tensor([[1, 1]])],
            mean_activation=torch.zeros(2),
        )
        assert evaluation.metrics["explained_variance"] == pytest.approx(1 - (4 / 4) / (4 / 2), abs=1e-6)

    def test_explained_variance_is_a_ratio_of_sums(self) -> None:
        """Errors 0.1² and 1 with deviations 1 and 10, twice each, give 1 − 2.02/202, not 1 − mean(0.01, 0.01)."""
        embed = torch.tensor([[1.0], [-1.0], [10.0], [-10.0]])
        sae = make_relu_sae(
            torch.tensor([[1.0]]), torch.zeros(1), torch.ones(1, 1), torch.zeros(1)
        )  # loses the negative
        subject = ToySubject(embed=embed, blocks=[lambda h: h], W_U=torch.ones(4, 1))
        tokens = torch.tensor([[0, 1, 2, 3, 0]])  # mean 0.2; of the sum of squares about it, 203 − 5 · 0.04 = 202.8
        evaluation = evaluate_sae(
            subject, sae, hook="blocks.0.hook_resid_pre", batches=[tokens], mean_activation=torch.zeros(1)
        )
        assert evaluation.metrics["explained_variance"] == pytest.approx(1 - 101 / 202.8, abs=1e-6)

    def test_agreement_is_between_passes_and_not_with_the_tokens(self) -> None:
        """In a network that always repeats its token, agreement is 1 for the identity, and 0 if the sign is flipped."""
        tokens = [[0, 1, 0, 1]]
        assert evaluate_halving_sae(tokens, scale=1.0).metrics["top1_agreement"] == 1.0
        eye, zeros = torch.eye(2), torch.zeros(2)
        swap = make_relu_sae(eye, zeros, eye.flip(0), zeros)  # writes the other token's direction
        evaluation = evaluate_sae(
            make_two_token_subject(),
            swap,
            hook="blocks.0.hook_resid_pre",
            batches=[torch.tensor(tokens)],
            mean_activation=zeros,
        )
        assert evaluation.metrics["top1_agreement"] == 0.0

    def test_cross_entropy_is_shifted(self) -> None:
        """A network that repeats its token is right on [0, 0] and wrong on [0, 1]."""
        assert evaluate_halving_sae([[0, 0]]).metrics["ce_clean"] == pytest.approx(-math.log(0.9), abs=1e-6)
        assert evaluate_halving_sae([[0, 1]]).metrics["ce_clean"] == pytest.approx(-math.log(0.1), abs=1e-6)


def compute_plainly(subject: ToySubject, sae: ReluSAE, tokens: Tensor, hook: str) -> dict[str, float]:
    """Compute the metrics of an evaluation from full logits in float64, one line each, for an SAE at block 1."""
    residuals = [f"blocks.{k}.hook_resid_pre" for k in range(3)] + ["blocks.2.hook_resid_post"]
    clean = subject.clean(tokens, capture=residuals)
    x = clean.activations[hook]
    x_hat = sae(x.flatten(0, 1)).view_as(x).detach()
    spliced = subject.spliced(clean, {hook: lambda _: x_hat}, capture=residuals[2:])
    assert clean.final is not None
    log_p, log_q = ((h @ subject.unembed.W_U.T).double().log_softmax(-1) for h in (clean.final, spliced.final))
    next_tokens = tokens[:, 1:, None]
    ce_clean, ce_spliced = (-log[:, :-1].gather(-1, next_tokens)[..., 0] for log in (log_p, log_q))

    def explained_variance(truth: Tensor, guess: Tensor) -> float:
        total = (truth - truth.flatten(0, 1).mean(0)).square().sum()
        return float(1 - (truth - guess).square().sum() / total)

    values = {
        "ce_increase": (ce_spliced - ce_clean).mean(),
        "ce_increase/pos0": (ce_spliced - ce_clean)[:, 0].mean(),
        "ce_increase/rest": (ce_spliced - ce_clean)[:, 1:].mean(),
        "kl": F.kl_div(log_q.flatten(0, 1), log_p.flatten(0, 1), log_target=True, reduction="batchmean"),
        "kl/rest": F.kl_div(
            log_q[:, 1:].flatten(0, 1), log_p[:, 1:].flatten(0, 1), log_target=True, reduction="batchmean"
        ),
        "top1_agreement": (log_p.argmax(-1) == log_q.argmax(-1)).double().mean(),
        "cosine": F.cosine_similarity(x_hat, x, dim=-1).mean(),
        "norm_ratio": (x_hat.norm(dim=-1) / x.norm(dim=-1)).mean(),
        "mse": mse(x_hat, x, weight=None),
        "explained_variance": explained_variance(x, x_hat),
        "explained_variance/pos0": explained_variance(x[:, :1], x_hat[:, :1]),
        "explained_variance/rest": explained_variance(x[:, 1:], x_hat[:, 1:]),
    }
    for k, name in ((2, residuals[2]), (3, residuals[3])):
        values[f"downstream_mse/{k}"] = mse(spliced.activations[name], clean.activations[name], weight=None)
        values[f"downstream_ev/{k}"] = explained_variance(clean.activations[name], spliced.activations[name])
        values[f"downstream_ev/{k}/rest"] = explained_variance(
            clean.activations[name][:, 1:], spliced.activations[name][:, 1:]
        )
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("batch_size", [24, 10])  # all windows at once, or two batches of 10 and one of 4
def test_metrics_equal_the_plain_formulas_for_any_batch_size(batch_size: int) -> None:
    subject, sae = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=8, seed=1)
    tokens = torch.randint(11, (24, 7), generator=torch.Generator().manual_seed(2))
    hook = "blocks.1.hook_resid_pre"
    evaluation = evaluate_sae(subject, sae, hook=hook, batches=tokens.split(batch_size), mean_activation=torch.zeros(6))
    for name, value in compute_plainly(subject, sae, tokens, hook).items():
        assert evaluation.metrics[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name
    assert "downstream_mse/1" not in evaluation.metrics  # the hook point itself
    assert evaluation.n_tokens == 168  # 24 · 7
    assert "alive_heldout_168" in evaluation.metrics


def test_one_pass_of_each_kind_per_batch() -> None:
    subject, sae = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=8, seed=1)
    batches = [torch.zeros(2, 3, dtype=torch.long)] * 2
    arguments = {"hook": "blocks.1.hook_resid_pre", "batches": batches, "mean_activation": torch.zeros(6)}
    evaluate_sae(subject, sae, **arguments)
    assert subject.passes == ["clean", "spliced", "spliced", "spliced"] * 2  # the SAE, zeros, the mean activation
    subject.passes.clear()
    short = evaluate_sae(subject, sae, ablations=False, **arguments)
    assert subject.passes == ["clean", "spliced"] * 2
    assert {"ce_increase", "kl", "downstream_mse/2"} <= short.metrics.keys()
    assert not any("zero" in name or "mean" in name for name in short.metrics)


def test_a_perfect_sae_loses_nothing() -> None:
    metrics = evaluate_halving_sae([[0, 0, 1], [1, 0, 1]], scale=1.0, mean=(0.0, 0.0)).metrics
    for name in ("ce_increase", "kl", "mse", "downstream_mse/1"):
        assert metrics[name] == pytest.approx(0, abs=1e-7)
    for name in ("loss_recovered_zero", "loss_recovered_mean", "explained_variance", "norm_ratio", "cosine"):
        assert metrics[name] == pytest.approx(1, abs=1e-6)


def test_position_0_with_only_rounding_has_no_explained_variance() -> None:
    """Tokens 0 and 1, at position 0, differ only in the last bits of float32."""
    embed = torch.tensor([[3000.0, 1.0], [3000.0 * (1 + 2**-22), 1.0], [1.0, -1.0]])
    subject = ToySubject(embed=embed, blocks=[lambda h: h], W_U=torch.zeros(3, 2))
    tokens = torch.tensor([[0, 2, 0], [1, 2, 1]])
    metrics = evaluate_sae(
        subject,
        make_scaling_sae(0.9, d_model=2),
        hook="blocks.0.hook_resid_pre",
        batches=[tokens],
        mean_activation=torch.zeros(2),
    ).metrics
    assert "explained_variance/pos0" not in metrics
    assert "mse/pos0" in metrics
    assert 0.9 < metrics["explained_variance"] < 1


def test_explained_variance_is_precise_far_from_the_origin() -> None:
    """With unit variance at distance 3000, Σx² − (Σx)²/n in float32 would have no correct digit."""
    generator = torch.Generator().manual_seed(0)
    embed = 3000 + torch.randn(50, 4, generator=generator)
    subject = ToySubject(embed=embed, blocks=[lambda h: h], W_U=torch.zeros(50, 4))
    eye = torch.eye(4)
    sae = make_relu_sae(eye, torch.zeros(4), eye, torch.full((4,), 0.5))  # off by a half everywhere
    tokens = torch.randint(50, (40, 25), generator=generator)
    metrics = evaluate_sae(
        subject, sae, hook="blocks.0.hook_resid_pre", batches=tokens.split(8), mean_activation=torch.zeros(4)
    ).metrics
    x = embed[tokens].double().flatten(0, 1)
    assert metrics["explained_variance"] == pytest.approx(
        float(1 - 0.25 * x.numel() / (x - x.mean(0)).square().sum()), rel=1e-4
    )


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tokens_times_vocabulary_tensor() -> None:
    subject, sae = make_random_toy(seed=0, d_vocab=500), make_random_sae(d_model=6, n_latents=8, seed=1)
    tokens = torch.randint(500, (4, 32), generator=torch.Generator().manual_seed(2))
    with LargestTensor() as largest:
        evaluate_sae(subject, sae, hook="blocks.1.hook_resid_pre", batches=[tokens], mean_activation=torch.zeros(6))
    assert (
        0 < largest.elements <= tokens.numel() * 500 / 4
    )  # logits are computed for at most a quarter of the tokens at once


class HostSyncs(TorchDispatchMode):
    """Counts the numbers that are read from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_number_is_read_from_the_device_inside_the_loop() -> None:
    subject, sae = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=8, seed=1)
    counts = []
    for n_batches in (1, 5):
        with HostSyncs() as syncs:
            evaluate_sae(
                subject,
                sae,
                hook="blocks.1.hook_resid_pre",
                batches=[torch.zeros(2, 3, dtype=torch.long)] * n_batches,
                mean_activation=torch.zeros(6),
            )
        counts.append(syncs.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("hook", "ks"),
    [
        ("blocks.0.hook_resid_pre", {1, 2, 3}),
        ("blocks.2.hook_resid_pre", {3}),
        ("blocks.2.hook_resid_post", set()),
    ],
)
def test_downstream_is_every_later_residual(hook: str, ks: set[int]) -> None:
    metrics = evaluate_sae(
        make_random_toy(seed=0),
        make_random_sae(d_model=6, n_latents=8, seed=1),
        hook=hook,
        batches=[torch.zeros(2, 3, dtype=torch.long)],
        mean_activation=torch.zeros(6),
    ).metrics
    assert {int(name.split("/")[1]) for name in metrics if name.startswith("downstream_mse/")} == ks


@pytest.mark.parametrize(
    ("batches", "width", "message"),
    [
        ([], 2, "not one batch"),
        ([torch.zeros(3, 1, dtype=torch.long)], 2, "at least 2"),
        ([torch.zeros(3, 2, dtype=torch.long)], 3, "the SAE reads 3 dimensions, blocks.0.hook_resid_pre has 2"),
    ],
)
def test_user_errors(batches: list[Tensor], width: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_sae(
            make_two_token_subject(),
            make_scaling_sae(0.5, d_model=width),
            hook="blocks.0.hook_resid_pre",
            batches=batches,
            mean_activation=torch.zeros(width),
        )


def make_doubling_subject() -> ToySubject:
    """Return a two-token subject whose block doubles: the residual after it is the logits, and tokens are embedded as ½ ln 9."""
    return ToySubject(embed=torch.eye(2) * LN9 / 2, blocks=[lambda h: 2 * h], W_U=torch.eye(2))


class TestTranscoder:
    """A transcoder that reads before the doubling block and writes after it."""

    read, write = "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"

    def run_evaluation(
        self, scale: float, *, mean: tuple[float, float] = (LN9, 0.0), **options: Any
    ) -> dict[str, float]:
        return evaluate_sae(
            make_doubling_subject(),
            make_scaling_sae(scale, d_model=2),
            hook=self.read,
            output_hook=self.write,
            batches=[torch.tensor([[0, 0, 1]])],
            mean_activation=torch.tensor(mean),
            **options,
        ).metrics

    def test_by_hand(self) -> None:
        """x̂ = x is half of the activation after the block."""
        found, expected = self.run_evaluation(1.0), evaluate_halving_sae([[0, 0, 1]]).metrics
        for name in ("kl", "ce_clean", "ce_increase", "ce_zero", "ce_mean", "loss_recovered_zero", "ce_increase/rest"):
            assert found[name] == pytest.approx(expected[name], abs=1e-6), name
        for name in (
            "mse",
            "cosine",
            "norm_ratio",
            "explained_variance",
            "l0",
        ):  # compared with the activation at the output hook point
            assert found[name] == pytest.approx(expected[name], abs=1e-6), name
        assert not any(name.startswith("downstream") for name in found)  # it writes the last residual

    def test_a_perfect_transcoder_loses_nothing(self) -> None:
        found = self.run_evaluation(2.0)
        for name in ("kl", "mse", "ce_increase"):
            assert found[name] == pytest.approx(0, abs=1e-7)
        assert found["loss_recovered_zero"] == found["explained_variance"] == pytest.approx(1)

    def test_equals_the_plain_formulas(self) -> None:
        """The SAE reads before block 0 and writes before block 2, so that only the residual after block 2 is downstream."""
        subject, sae = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=8, seed=1)
        tokens = torch.randint(11, (24, 7), generator=torch.Generator().manual_seed(2))
        residuals = [f"blocks.{k}.hook_resid_pre" for k in range(3)] + ["blocks.2.hook_resid_post"]
        mean = torch.randn(6, generator=torch.Generator().manual_seed(3))
        found = evaluate_sae(
            subject, sae, hook=residuals[0], output_hook=residuals[2], batches=tokens.split(10), mean_activation=mean
        ).metrics
        clean = subject.clean(tokens, capture=residuals)
        target = clean.activations[residuals[2]]
        x_hat = sae(clean.activations[residuals[0]]).detach()
        labels = tokens[:, 1:].flatten()

        def cross_entropy(residual: Tensor) -> float:
            logits = subject.blocks[2](residual) @ subject.unembed.W_U.T
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels).item()

        wanted = {
            "ce_clean": cross_entropy(target),
            "ce_spliced": cross_entropy(x_hat),
            "ce_zero": cross_entropy(torch.zeros_like(target)),
            "ce_mean": cross_entropy(mean.expand_as(target)),
            "mse": mse(x_hat, target, weight=None).item(),
            "norm_ratio": (x_hat.norm(dim=-1) / target.norm(dim=-1)).mean().item(),
            "downstream_mse/3": mse(subject.blocks[2](x_hat), subject.blocks[2](target), weight=None).item(),
        }
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, rel=1e-5), name
        assert {name.split("/")[1] for name in found if name.startswith("downstream_mse/")} == {"3"}

    def test_user_errors(self) -> None:
        for hook, output_hook, message in (
            ("blocks.2.hook_resid_pre", "blocks.1.hook_resid_pre", "^hook points out of order: blocks.1"),
            ("blocks.1.hook_resid_pre", "blocks.9.hook_resid_pre", "has 3 layers"),
        ):
            with pytest.raises(UserError, match=message):
                evaluate_sae(
                    make_random_toy(seed=0),
                    make_random_sae(d_model=6, n_latents=8, seed=1),
                    hook=hook,
                    output_hook=output_hook,
                    batches=[],
                    mean_activation=torch.zeros(6),
                )
        with pytest.raises(UserError, match=r"the SAE writes 4 dimensions, blocks\.2\.hook_resid_pre has 6"):
            evaluate_sae(
                make_random_toy(seed=0),
                make_random_sae(d_model=6, n_latents=8, seed=1, d_out=4),
                hook="blocks.1.hook_resid_pre",
                output_hook="blocks.2.hook_resid_pre",
                batches=[],
                mean_activation=torch.zeros(4),
            )


class RecordingSAE(ReluSAE):
    """An SAE that records the gradients that its encoder is given."""

    def __init__(self) -> None:
        super().__init__(
            d_model=6,
            n_latents=8,
            init="paper",
            init_norm=1.0,
            subtract_b_dec=False,
            generator=torch.Generator().manual_seed(0),
        )
        self.gradients: list[Tensor] = []

    def encode(self, x: Tensor, side: Tensor | None = None) -> Codes:
        assert side is not None
        self.gradients.append(side)
        return super().encode(x)


class TestGradient:
    """The encoder is given ∂(summed loss)/∂(activation that the SAE writes) for the requested labels."""

    tokens = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(2))
    hook, output = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"

    def record_gradients(self, target: LabelTarget) -> Tensor:
        sae = RecordingSAE()
        evaluate_sae(
            make_random_toy(seed=0),
            sae,
            hook=self.hook,
            output_hook=self.output,
            batches=self.tokens.split(2),
            mean_activation=torch.zeros(6),
            gradient=target,
        )
        assert len(sae.gradients) == 2
        return torch.cat(sae.gradients)

    def compute_gradient(self, hook: str) -> Tensor:
        """Return the gradient of the summed cross-entropy of the next tokens, by hand."""
        subject = make_random_toy(seed=0)
        x = h = subject.clean(self.tokens, capture=[hook]).activations[hook].requires_grad_()
        for block in subject.blocks[int(hook.split(".")[1]) :]:
            h = block(h)
        logits = (h @ subject.unembed.W_U.T)[:, :-1].flatten(0, 1)
        F.cross_entropy(logits, self.tokens[:, 1:].flatten(), reduction="sum").backward()
        assert x.grad is not None
        return x.grad.flatten(0, 1)

    def test_gradient_of_the_next_tokens(self) -> None:
        torch.testing.assert_close(
            self.record_gradients("data"), self.compute_gradient(self.output), rtol=1e-4, atol=1e-6
        )

    def test_drawn_labels_are_the_same_at_every_call(self) -> None:
        first = self.record_gradients("sampled")
        assert torch.equal(first, self.record_gradients("sampled"))
        assert not torch.allclose(first, self.record_gradients("data"))

    def test_the_selection_uses_the_gradient(self) -> None:
        sae = GradientTopKSAE(
            d_model=6,
            n_latents=20,
            k=3,
            beta=5.0,
            init="paper",
            init_norm=1.0,
            subtract_b_dec=False,
            generator=torch.Generator().manual_seed(1),
        )

        def run_evaluation(sae: SAE, gradient: LabelTarget | None) -> dict[str, float]:
            return evaluate_sae(
                make_random_toy(seed=0),
                sae,
                hook=self.hook,
                batches=[self.tokens],
                mean_activation=torch.zeros(6),
                gradient=gradient,
            ).metrics

        assert run_evaluation(sae, None) == pytest.approx(
            run_evaluation(sae.fold(), "data"), rel=1e-5, abs=1e-6
        )  # a TopK does not use the gradient
        x = make_random_toy(seed=0).clean(self.tokens, capture=[self.hook]).activations[self.hook].flatten(0, 1)
        gradient = self.compute_gradient(self.hook)
        with_label = run_evaluation(sae, "data")
        assert with_label["mse"] == pytest.approx(mse(sae.decode(sae.encode(x, gradient)), x, weight=None).item())
        assert abs(with_label["mse"] - run_evaluation(sae, None)["mse"]) > 0.01
