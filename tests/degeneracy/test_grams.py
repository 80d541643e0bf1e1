"""Tests of the moments of activations, and of Jacobian Grams with random probes against exact ones."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.degeneracy.grams import Moments, Target, jacobian_gram, moments
from crux.degeneracy.networks.chain import Chain
from crux.subjects.subject import FINAL
from tests.support.small_networks import inputs, perceptron, random_subject
from tests.support.tiny_subjects import TOKENS


class MixPositions(nn.Module):
    """A map in which every position depends on the others."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + x.mean(1, keepdim=True) * x.roll(1, 2))


def test_moments_over_batches_equal_those_of_all_samples() -> None:
    batches = [x + 1e4 for x in inputs((7, 3, 4), seed=0, batches=3)]  # a mean far from zero costs no precision
    batches[1] = batches[1][:2]
    chain = Chain({"input": nn.Identity(), "out": MixPositions()})
    found = moments(chain, batches, hooks=["input", "out"])
    rows = torch.cat(batches).flatten(0, 1)
    assert found["input"].n == (7 + 2 + 7) * 3
    assert torch.allclose(found["input"].mean, rows.mean(0), rtol=1e-14)
    assert torch.allclose(found["input"].covariance, torch.cov(rows.T, correction=0), rtol=0, atol=1e-9)
    outputs = chain(torch.cat(batches)).flatten(0, 1)
    assert torch.allclose(found["out"].gram, outputs.T @ outputs / 48)


def test_augmented_gram_has_a_constant_first_coordinate() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    found = moments(Chain({"input": nn.Identity()}), [rows], hooks=["input"])["input"]
    assert found.augmented.tolist() == [[1, 2, 1], [2, 5, 1], [1, 1, 2]]
    assert Moments(found.mean, found.covariance, 2).gram.tolist() == [[5, 1], [1, 2]]


def test_exact_jacobian_gram_equals_that_of_torch_jacobians() -> None:
    chain = Chain({"input": nn.Identity(), "mixed": MixPositions(), "out": MixPositions()})
    (x,) = inputs((5, 3, 4), seed=1, batches=1)
    targets = [Target("mixed", torch.randn(4, 2).double()), Target("out", torch.randn(4, 3).double())]
    found = jacobian_gram(chain, [x[:2], x[2:]], start="input", targets=targets, probes=None, seed=0)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    clean = chain.clean(x, capture=["input"], final=False)
    for sample in x:
        value = sample[None]
        for hook, matrix in targets:
            J = torch.func.jacrev(lambda v, h=hook, m=matrix: chain.continue_from(clean, "input", v, ends=[h])[h] @ m)(
                value
            )
            J = J.reshape(-1, 3, 4)  # (t, i), s, d
            expected += torch.einsum("ksa,ksb->ab", J, J) / (3 * len(x))
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("probes", [1, 3])
def test_random_probes_are_unbiased(probes: int) -> None:
    """The mean over many draws equals the exact sum in every entry, within four standard errors."""
    chain = Chain({"input": nn.Identity(), "mixed": MixPositions(), "out": MixPositions()})
    batches = inputs((4, 3, 4), seed=2)
    torch.manual_seed(0)
    targets = [Target("mixed", torch.randn(4, 2).double()), Target("out", torch.randn(4, 3).double())]

    def gram(probes: int | None, seed: int) -> Tensor:
        return jacobian_gram(chain, batches, start="input", targets=targets, probes=probes, seed=seed)

    exact = gram(None, 0)
    estimates = torch.stack([gram(probes, seed) for seed in range(300)])
    error = estimates.std(0) / len(estimates) ** 0.5
    assert ((estimates.mean(0) - exact).abs() < 4 * error).all()
    assert (error < 0.1 * exact.diagonal().max()).all()  # small enough for the comparison to mean something
    assert torch.equal(gram(probes, 7), gram(probes, 7))


def test_targets_without_positions_have_one_position() -> None:
    """T = 1 for a target without a position dimension, such as logits at the last position."""

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, -1]

    chain = Chain({"input": nn.Identity(), "last": Last()})
    found = jacobian_gram(
        chain,
        inputs((4, 3, 2), seed=0),
        start="input",
        targets=[Target("last", torch.eye(2).double())],
        probes=1,
        seed=0,
    )
    assert torch.allclose(found.diagonal(), torch.ones(2).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimates_for_language_models_are_close_to_exact_grams(dtype: torch.dtype) -> None:
    """The Jacobians start inside the attention or in the residual stream. The result is float64 for any dtype of the network."""
    subject = random_subject("gpt2").to(dtype=dtype)
    tokens = TOKENS[:, :5]
    target = Target(FINAL, torch.eye(32, 2).double())
    for start in ("blocks.2.attn.hook_z", "blocks.1.hook_resid_mid"):
        exact = jacobian_gram(subject, [tokens], start=start, targets=[target], probes=None, seed=0)
        found = jacobian_gram(subject, [tokens], start=start, targets=[target], probes=400, seed=0)
        assert found.dtype == torch.float64
        assert torch.linalg.norm(found - exact) < 0.1 * torch.linalg.norm(exact)


def test_independent_target_contributes_zero() -> None:
    subject = random_subject("gpt_neox")
    target = Target("blocks.0.hook_mlp_out", torch.eye(32).double())  # parallel to the attention, not after it
    found = jacobian_gram(subject, [TOKENS], start="blocks.0.hook_attn_out", targets=[target], probes=1, seed=0)
    assert not found.any()


def test_invalid_arguments_are_rejected() -> None:
    chain = perceptron([3, 2], activation=nn.ReLU, seed=0)
    target = Target("output", torch.eye(2).double())
    for batches in ([], [torch.zeros(0, 3).double()]):
        with pytest.raises(UserError, match="no data"):
            moments(chain, batches, hooks=["input"])
        with pytest.raises(UserError, match="no data"):
            jacobian_gram(chain, batches, start="input", targets=[target], probes=1, seed=0)
    data = inputs((2, 3), seed=0)
    with pytest.raises(UserError, match="must come after"):
        jacobian_gram(chain, data, start="output", targets=[target._replace(hook="input")], probes=1, seed=0)
    with pytest.raises(UserError, match="no target hook point given"):
        jacobian_gram(chain, data, start="input", targets=[], probes=1, seed=0)
    with pytest.raises(UserError, match="no such hook point; there are input, output"):
        jacobian_gram(chain, data, start="inptu", targets=[target], probes=1, seed=0)


@pytest.mark.slow
def test_gpt2_small_takes_less_than_4_gb() -> None:
    """Limit the peak memory of the Jacobian Gram from one layer to the next in GPT-2 small's shapes, for 64 sequences of 128 tokens."""
    program = """
        import resource
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel
        from crux.degeneracy.grams import Target, jacobian_gram
        from crux.subjects.subject import Subject

        torch.manual_seed(0)
        subject = Subject(GPT2LMHeadModel(GPT2Config()), name="random", process_weights=False)
        tokens = torch.randint(0, 50257, (64, 128))
        target = Target("blocks.7.hook_resid_pre", torch.eye(768, dtype=torch.float64))
        found = jacobian_gram(subject, tokens.split(4), start="blocks.6.hook_resid_pre", targets=[target], probes=1, seed=0)
        eigenvalues = torch.linalg.eigvalsh(found)
        assert eigenvalues[0] > 0 and torch.isfinite(eigenvalues).all()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    print(f"{float(done.stdout):.2f} GB")
    assert float(done.stdout) < 4
