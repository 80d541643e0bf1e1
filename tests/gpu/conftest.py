"""What all tests on CUDA share: they are skipped without a GPU, and multiply in full float32."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.cuda import DEVICE


@pytest.fixture(autouse=True)
def _use_cuda() -> Iterator[None]:
    """Skip the test if there is no GPU; otherwise free its memory afterwards."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    assert torch.get_float32_matmul_precision() == "highest", "with TF32, results cannot be compared with the CPU's"
    yield
    torch.cuda.empty_cache()
