"""Toy models compared with their formulas, one instance at a time."""

import pytest
import torch

from crux.toy.options import Kind
from crux.toy.superposition import SuperpositionModel, Weights, sampled_loss

WIDTHS = [(5, 2), (4, 3), (3, 6)]  # outputs by WᵀW, and by way of the hidden activation


def model(kind: Kind, n_features: int, n_hidden: int) -> SuperpositionModel:
    torch.manual_seed(0)
    W_out = torch.randn(3, 2, n_features, n_hidden) if kind is Kind.absolute_value else None
    return SuperpositionModel(
        kind, Weights(torch.randn(3, 2, n_hidden, n_features), torch.randn(3, 2, n_features), W_out)
    )


@pytest.mark.parametrize(("n_features", "n_hidden"), WIDTHS)
@pytest.mark.parametrize("kind", list(Kind))
def test_every_instance_computes_its_formula(kind: Kind, n_features: int, n_hidden: int) -> None:
    instances = model(kind, n_features, n_hidden)
    x = torch.randn(3, 7, n_features)
    out, hidden = instances(x), instances.hidden(x)
    for s in range(3):
        for g in range(2):
            W, b = instances.W[s, g], instances.b[s, g]
            for t in range(7):
                h = W @ x[s, t]
                match kind:
                    case Kind.linear:
                        by_hand = W.T @ h + b
                    case Kind.relu_output:
                        by_hand = (W.T @ h + b).clamp_min(0)
                    case Kind.relu_hidden:
                        h = h.clamp_min(0)
                        by_hand = (W.T @ h + b).clamp_min(0)
                    case Kind.absolute_value:
                        assert instances.W_out is not None
                        h = h.clamp_min(0)
                        by_hand = (instances.W_out[s, g] @ h + b).clamp_min(0)
                torch.testing.assert_close(out[s, g, t], by_hand, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(hidden[s, g, t], h, atol=1e-5, rtol=1e-5)


def test_sampled_loss_equals_a_hand_computed_value() -> None:
    W = torch.tensor([[1.0, -1.0]])  # n_features 2, n_hidden 1: x' = ReLU(x_0 - x_1, x_1 - x_0)
    instances = SuperpositionModel(Kind.relu_output, Weights(W[None, None], torch.zeros(1, 1, 2), None))
    x = torch.tensor([[[0.5, 0.0], [0.5, 0.2]]])  # errors: (0, 0); (0.5 - 0.3, 0.2 - 0)
    torch.testing.assert_close(
        sampled_loss(instances, x, torch.tensor([[[1.0, 3.0]]])), torch.tensor([[(0.04 + 3 * 0.04) / 2]])
    )


def test_only_the_absolute_value_model_has_absolute_targets() -> None:
    x = torch.tensor([[[-0.5, 0.25]]])
    assert torch.equal(model(Kind.absolute_value, 2, 2).target(x), x.abs())
    assert torch.equal(model(Kind.relu_hidden, 2, 2).target(x), x)


@pytest.mark.parametrize("kind", [Kind.linear, Kind.relu_output, Kind.relu_hidden])
def test_a_tied_weight_is_one_parameter_with_the_gradient_of_both_uses(kind: Kind) -> None:
    instances = model(kind, 5, 2)
    assert [name for name, _ in instances.named_parameters()] == ["W", "b"]
    x, importance = torch.rand(3, 6, 5), torch.rand(3, 2, 5)
    sampled_loss(instances, x, importance).sum().backward()
    W_in, W_out = (instances.W.detach().clone().requires_grad_() for _ in range(2))
    h = torch.einsum("sbf,sghf->sgbh", x, W_in)
    pre = (h.relu() if kind is Kind.relu_hidden else h) @ W_out + instances.b.detach()[:, :, None]
    out = pre if kind is Kind.linear else pre.relu()
    ((out - x[:, None]).square() * importance[:, :, None]).sum((2, 3)).div(6).sum().backward()
    assert W_in.grad is not None
    assert W_out.grad is not None
    assert instances.W.grad is not None
    torch.testing.assert_close(instances.W.grad, W_in.grad + W_out.grad, atol=1e-4, rtol=1e-4)
