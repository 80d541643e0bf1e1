"""SAEs of every architecture as training leaves them, and their architecture names in SAELens."""

from torch import Tensor

from crux.sae.architectures.sae import SAE
from tests.support.architectures import ARCHITECTURES, draw_normal, make_arguments, perturb_sae

METADATA = {
    "model_name": "tiny",
    "hook_name": "blocks.6.hook_resid_pre",
    "process_weights": False,
    "context_size": 256,
    "prepend_bos": False,
    "dataset_path": "packaged",
    "note": "λ=1.5",
}
"""The metadata that a saved SAE must have, and a note with a letter outside of ASCII."""
SAVED_AS = {
    "relu": "standard",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "matryoshka": "jumprelu",
    "p_anneal": "standard",
    "gradient_topk": "topk",
}
"""The name in SAELens of each architecture."""
TRANSCODERS = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder", "batch_topk": "jumprelu_transcoder"}
"""Architectures that can be saved as transcoders, and their names in SAELens."""


def make_trained_sae(kind: str, *, d_out: int | None = None) -> SAE:
    """Return an SAE whose decoder has no unit norm and whose scale is not 1; unless it is a transcoder, it subtracts b_dec."""
    sae = perturb_sae(
        ARCHITECTURES[kind](make_arguments(d_model=6, n_latents=20, d_out=d_out, subtract_b_dec=d_out is None))
    )
    return sae.start_at(draw_normal(sae.d_out, seed=2), input_scale=0.25, output_scale=0.25 if d_out is None else 0.5)


def draw_activations() -> Tensor:
    """Return activations which, times the input scale of 0.25, are like the batches that `perturb_sae` shows the SAE."""
    return 12 * draw_normal(100, 6, seed=3)
