"""Small perceptrons in float64 with data for them, and small random language models."""

import itertools

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from crux.degeneracy.networks.chain import Chain
from crux.subjects.subject import Subject
from tests.support.tiny_subjects import CONFIGS


def perceptron(widths: list[int], *, activation: type[nn.Module], seed: int) -> Chain:
    """Return a random perceptron.

    Its hook points are `input`, `pre<k>` behind the k-th Linear, `post<k>` behind its activation, and `output` behind the last.
    """
    torch.manual_seed(seed)
    stages: dict[str, nn.Module] = {"input": nn.Identity()}
    for k, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        last = k == len(widths) - 2
        stages["output" if last else f"pre{k}"] = nn.Linear(n_in, n_out)
        if not last:
            stages[f"post{k}"] = activation()
    return Chain(stages).double()


def inputs(shape: tuple[int, ...], *, seed: int, batches: int = 2) -> list[Tensor]:
    """Draw correlated Gaussian samples whose mean is not zero."""
    generator = torch.Generator().manual_seed(seed)
    d = shape[-1]
    mix, mean = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((d, d), (d,)))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) @ mix + mean for _ in range(batches)]


def random_subject(kind: str) -> Subject:
    """Return one of the networks in `tiny_subjects` with every parameter perturbed."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return Subject(model, name=kind, process_weights=False)
