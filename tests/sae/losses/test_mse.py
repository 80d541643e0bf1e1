import pytest
import torch

from crux.sae.losses.mse import downstream_mse, mse

X = torch.zeros(1, 3, 2)
X_HAT = torch.tensor([[[1.0, 3.0], [0.0, 2.0], [10.0, 10.0]]])  # per token: 5, 2, 100


def test_mean_over_tokens_and_dimensions() -> None:
    assert mse(X_HAT, X, weight=None).item() == pytest.approx(107 / 3)
    assert mse(X, X_HAT, weight=None).item() == pytest.approx(107 / 3)


def test_weight_leaves_tokens_out_of_the_mean() -> None:
    assert mse(X_HAT, X, weight=torch.tensor([[1.0, 1.0, 0.0]])).item() == pytest.approx(3.5)


def test_the_gradient_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    mine, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    mse(mine, b, weight=None).backward()
    torch.nn.functional.mse_loss(theirs, b).backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-8)


def test_low_precision_is_summed_in_float32() -> None:
    error = torch.full((4096, 2), 0.01, dtype=torch.bfloat16)
    found = mse(error, torch.zeros_like(error), weight=None)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(float(error[0, 0]) ** 2, rel=1e-5)


def test_downstream_divides_by_the_number_of_hook_points() -> None:
    clean = {"a": X, "b": X, "unused": X}
    assert downstream_mse({"a": X_HAT, "b": X}, clean, weight=None).item() == pytest.approx(107 / 6)
    assert downstream_mse({"a": X_HAT}, clean, weight=torch.tensor([[0.0, 1.0, 0.0]])).item() == pytest.approx(2.0)


def test_downstream_needs_a_hook_point() -> None:
    with pytest.raises(AssertionError, match="later hook point"):
        downstream_mse({}, {}, weight=None)
