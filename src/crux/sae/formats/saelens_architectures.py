"""Which of SAELens's architectures says what in which tensors, and how crux's SAEs go there and back.

    standard, transcoder              c = ReLU(u + b_enc)
    topk                              c = ReLU(the k largest of u + b_enc)
    jumprelu, jumprelu_transcoder     c = ReLU(u + b_enc) · 1[u + b_enc > threshold]
    gated                             c = 1[u + b_gate > 0] · ReLU(exp(r_mag) · u + b_mag)

with u = x W_enc, or (x − b_dec) W_enc where `apply_b_dec_to_input` says so, and x̂ = c W_dec + b_dec.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.gated import GatedSAE
from crux.sae.architectures.jumprelu import JumpReluSAE
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.topk import TopKSAE


class SaelensArchitecture(NamedTuple):
    """One of SAELens's architectures."""

    sae: type[SAE]
    """The folded SAE that it is."""
    per_latent: Mapping[str, str]
    """SAELens's tensors of a number a latent, and crux's parameters; one called `log_…` holds the tensor's logarithm."""
    keys: tuple[str, ...]
    """Keys of cfg.json with a positive integer: arguments, and attributes, of `sae`."""
    constant_keys: Mapping[str, bool]
    """What else cfg.json says of what crux saves."""
    arguments: Mapping[str, float]
    """What else `sae` is made with: nothing that its codes depend on once the tensors are there."""
    transcodes: bool
    """Whether what is written may have other dimensions than what is read: `d_out` in cfg.json."""

    def shapes(self, *, d_in: int, d_sae: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """SAELens's tensors."""
        shared = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
        return shared | dict.fromkeys(self.per_latent, (d_sae,))


_STANDARD = SaelensArchitecture(ReluSAE, {"b_enc": "b_enc"}, keys=(), constant_keys={}, arguments={}, transcodes=False)
_JUMPRELU = _STANDARD._replace(
    sae=JumpReluSAE,
    per_latent={"b_enc": "b_enc", "threshold": "log_threshold"},
    arguments={"threshold": 1.0, "bandwidth": 0.001},
)
ARCHITECTURES = {
    "standard": _STANDARD,
    "topk": _STANDARD._replace(sae=TopKSAE, keys=("k",), constant_keys={"rescale_acts_by_decoder_norm": False}),
    "jumprelu": _JUMPRELU,
    "gated": _STANDARD._replace(sae=GatedSAE, per_latent={"b_gate": "b_gate", "b_mag": "b_enc", "r_mag": "r_mag"}),
    "transcoder": _STANDARD._replace(transcodes=True),
    "jumprelu_transcoder": _JUMPRELU._replace(transcodes=True),
}


def find_architecture(sae: SAE, *, transcodes: bool) -> str:
    """SAELens's name for a folded SAE's architecture.

    A transcoder between activations of one width needs no architecture of its own: the function is an SAE's.

    Raises:
        UserError: where SAELens has none.
    """
    transcodes = transcodes or sae.d_out != sae.d_model
    fitting = {name: known.transcodes for name, known in ARCHITECTURES.items() if known.sae is type(sae)}
    assert fitting, f"SAELens has no {type(sae).__name__}: its fold() must give what SAELens has"
    for name, for_transcoders in fitting.items():
        if for_transcoders == transcodes:
            return name
    if sae.d_out != sae.d_model:
        raise UserError(
            f"SAELens's format has no {type(sae).__name__} that reads {sae.d_model} dimensions and writes {sae.d_out}; "
            "between different widths it has ReLU and JumpReLU alone"
        )
    return next(iter(fitting))


def to_tensors(sae: SAE, architecture: SaelensArchitecture) -> dict[str, Tensor]:
    """A folded SAE's tensors by SAELens's names; float32, on the CPU."""
    found = {name: getattr(sae, name) for name in ("W_enc", "W_dec", "b_dec")}
    for name, ours in architecture.per_latent.items():
        value = getattr(sae, ours)
        found[name] = value.exp() if ours.startswith("log_") else value
    return {name: value.detach().float().cpu().contiguous() for name, value in found.items()}


@torch.no_grad()
def from_tensors(tensors: Mapping[str, Tensor], architecture: SaelensArchitecture, config: Mapping[str, Any]) -> SAE:
    """The SAE of SAELens's tensors, with a unit-norm decoder and nothing subtracted from the input: the same function.

    A decoder direction's norm goes into its latent's encoder, and a decoder bias that is subtracted into the biases.

    Raises:
        UserError: where it would be another function: a TopK that chooses by codes of unequal decoder norms.
    """
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    (d_in, d_sae), d_out = W_enc.shape, W_dec.shape[1]
    subtract_b_dec = config.get("apply_b_dec_to_input", True)  # SAELens's own default
    if subtract_b_dec and architecture.transcodes:
        raise UserError("a transcoder cannot have apply_b_dec_to_input: its b_dec is no activation that it reads")
    sae = architecture.sae(
        d_model=d_in, n_latents=d_sae, d_out=d_out, init="tied", init_norm=1.0, subtract_b_dec=subtract_b_dec,
        generator=torch.Generator(), **{key: config[key] for key in architecture.keys}, **architecture.arguments,
    )  # fmt: skip

    norm = W_dec.norm(dim=-1)
    chosen_without_norm = isinstance(sae, TopKSAE) and not config.get("rescale_acts_by_decoder_norm", False)
    if chosen_without_norm and norm.max() - norm.min() > 1e-6 * norm.max():
        raise UserError(
            "chooses its k latents before the decoder's norms count (rescale_acts_by_decoder_norm=false), and these differ; "
            "a TopK of crux chooses in units of a unit-norm decoder"
        )
    if torch.allclose(norm, torch.ones(()), rtol=0, atol=1e-6):
        norm = torch.ones_like(norm)  # another rounding would change the codes' last digits
    sae.W_enc.copy_(W_enc * norm)
    sae.W_dec.copy_(W_dec)
    sae.b_dec.copy_(tensors["b_dec"])
    for name, ours in architecture.per_latent.items():
        value = tensors[name] if name == "r_mag" else tensors[name] * norm  # all but r_mag have the codes' unit
        # below a negative threshold ReLU is zero anyway
        getattr(sae, ours).copy_(value.clamp_min(0).log() if ours.startswith("log_") else value)
    return sae.fold()
