"""Toy models compared with their formulas, one instance at a time."""

import pytest
import torch

from crux.toy.options import Kind
from crux.toy.superposition import SuperpositionModel, Weights, sampled_loss

SIZES = [(5, 2), (4, 3), (3, 6)]
"""(n_features, n_hidden). Tied models without a hidden ReLU multiply by WᵀW if n_features ≤ 2 n_hidden, that is for (4, 3) and (3, 6).

With (5, 2), and in all other models, the outputs are computed by way of the hidden activations."""

N_STREAMS, N_SETTINGS, BATCH = 3, 2, 7


def build_random_model(kind: Kind, n_features: int, n_hidden: int) -> SuperpositionModel:
    torch.manual_seed(0)
    instances = (N_STREAMS, N_SETTINGS)
    W_out = torch.randn(*instances, n_features, n_hidden) if kind is Kind.absolute_value else None
    W, b = torch.randn(*instances, n_hidden, n_features), torch.randn(*instances, n_features)
    return SuperpositionModel(kind, Weights(W, b, W_out))


@pytest.mark.parametrize(("n_features", "n_hidden"), SIZES)
@pytest.mark.parametrize("kind", list(Kind))
def test_every_instance_computes_its_formula(kind: Kind, n_features: int, n_hidden: int) -> None:
    model = build_random_model(kind, n_features, n_hidden)
    x = torch.randn(N_STREAMS, BATCH, n_features)
    out, hidden = model(x), model.hidden(x)
    for stream in range(N_STREAMS):
        for setting in range(N_SETTINGS):
            W, b = model.W[stream, setting], model.b[stream, setting]
            for sample in range(BATCH):
                h = W @ x[stream, sample]
                match kind:
                    case Kind.linear:
                        by_hand = W.T @ h + b
                    case Kind.relu_output:
                        by_hand = (W.T @ h + b).clamp_min(0)
                    case Kind.relu_hidden:
                        h = h.clamp_min(0)
                        by_hand = (W.T @ h + b).clamp_min(0)
                    case Kind.absolute_value:
                        assert model.W_out is not None
                        h = h.clamp_min(0)
                        by_hand = (model.W_out[stream, setting] @ h + b).clamp_min(0)
                torch.testing.assert_close(out[stream, setting, sample], by_hand, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(hidden[stream, setting, sample], h, atol=1e-5, rtol=1e-5)


def test_sampled_loss_equals_a_hand_computed_value() -> None:
    W = torch.tensor([[1.0, -1.0]])  # n_features 2, n_hidden 1: x' = ReLU(x_0 - x_1, x_1 - x_0)
    model = SuperpositionModel(Kind.relu_output, Weights(W[None, None], torch.zeros(1, 1, 2), None))
    x = torch.tensor([[[0.5, 0.0], [0.5, 0.2]]])  # errors: (0, 0); (0.5 - 0.3, 0.2 - 0)
    importance = torch.tensor([[[1.0, 3.0]]])
    by_hand = (0 + (1 * 0.2**2 + 3 * 0.2**2)) / 2  # summed over features, mean over the two samples
    torch.testing.assert_close(sampled_loss(model, x, importance), torch.tensor([[by_hand]]))


def test_only_the_absolute_value_model_has_absolute_targets() -> None:
    x = torch.tensor([[[-0.5, 0.25]]])
    assert torch.equal(build_random_model(Kind.absolute_value, 2, 2).target(x), x.abs())
    assert torch.equal(build_random_model(Kind.relu_hidden, 2, 2).target(x), x)


@pytest.mark.parametrize("kind", [Kind.linear, Kind.relu_output, Kind.relu_hidden])
def test_a_tied_weight_is_one_parameter_with_the_gradient_of_both_uses(kind: Kind) -> None:
    model = build_random_model(kind, 5, 2)
    assert [name for name, _ in model.named_parameters()] == ["W", "b"]
    x, importance = torch.rand(N_STREAMS, BATCH, 5), torch.rand(N_STREAMS, N_SETTINGS, 5)
    sampled_loss(model, x, importance).sum().backward()
    # The same loss with two separate copies of W: their gradients must sum to that of the tied W.
    W_in, W_out = (model.W.detach().clone().requires_grad_() for _ in range(2))
    h = torch.einsum("sbf,sghf->sgbh", x, W_in)  # s stream, g setting, b sample, f feature, h hidden
    pre = (h.relu() if kind is Kind.relu_hidden else h) @ W_out + model.b.detach()[:, :, None]
    out = pre if kind is Kind.linear else pre.relu()
    squares = (out - x[:, None]).square() * importance[:, :, None]
    (squares.sum((2, 3)) / BATCH).sum().backward()  # summed over features, mean over samples, summed over instances
    assert W_in.grad is not None
    assert W_out.grad is not None
    assert model.W.grad is not None
    torch.testing.assert_close(model.W.grad, W_in.grad + W_out.grad, atol=1e-4, rtol=1e-4)
