"""The memory that training SAEs on a language model needs at least. Torch-free."""

from collections.abc import Collection

from crux.runs.memory import BYTES_PER_WEIGHT, Need, check_memory
from crux.sae.options import SaeJob
from crux.subjects.hooks import parse_hook
from crux.subjects.shape import Shape

NUMBERS_PER_BLOCK = 10
"""Numbers that a block keeps per token and dimension of the residual stream for its backward pass, at least: both norms, q, k, v, z and
the MLP's hidden layer."""


def check_sae_memory(job: SaeJob, shape: Shape, *, given: Collection[str]) -> None:
    """Check that a job fits into the memory of its device.

    Counted are the subject, the SAEs with gradients and Adam's moments, each SAE's pre-activations and codes of a micro-batch, the
    activations of the blocks after the first SAE (if the loss runs them), and the shuffled activations (if it does not).

    Args:
        given: the keys on the command line.

    Raises:
        UserError: if it does not fit.
    """
    n_saes = max(len(job.per_sae()), 1) * len(job.hooks_read)
    width = max(shape.hook_width(parse_hook(hook).kind) for hook in job.hooks_read)
    n_latents = job.sae.count_latents(width)
    devices = job.trainer.devices or 1  # null, every GPU, is not known here; each GPU then has less than this
    tokens = job.trainer.batch * job.model.context / devices if job.trainer.devices is not None else 0
    number = 4 if job.trainer.accelerator.value == "cpu" else 2  # bfloat16 on a GPU
    size_keys = ("sae.n_latents",) if job.sae.n_latents is not None else ("sae.ratio",)
    subject = 12 * shape.n_layers * shape.d_model**2 + shape.d_vocab * shape.d_model
    needs = [
        Need("the model's weights", subject * number, ("model.name",)),
        Need(
            "the SAE's weights, gradients and Adam's moments",
            2 * n_saes * n_latents * width * BYTES_PER_WEIGHT,
            size_keys,
        ),
        Need(
            "the latents of a micro-batch",
            2 * n_saes * tokens * n_latents * number,
            ("trainer.batch", "model.context", *size_keys),
        ),
    ]
    if job.loss.token_share > 0:
        later = shape.n_layers - min(parse_hook(hook).layer for hook in job.hooks_read)
        activations = tokens * shape.d_model * NUMBERS_PER_BLOCK * later * number
        needs.append(Need("the activations of a micro-batch", activations, ("trainer.batch", "model.context")))
    if job.loss.token_share < 1:
        shuffled = job.data.shuffle_batches * tokens * width * number
        needs.append(
            Need("the shuffled activations", shuffled, ("data.shuffle_batches", "trainer.batch", "model.context"))
        )
    check_memory(needs, accelerator=job.trainer.accelerator, given=given)
