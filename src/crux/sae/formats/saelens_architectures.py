"""The architectures of SAELens's format, and the conversion of crux's SAEs to and from their tensors.

    standard, transcoder              c = ReLU(u + b_enc)
    topk                              c = ReLU(the k largest of u + b_enc)
    jumprelu, jumprelu_transcoder     c = ReLU(u + b_enc) · 1[u + b_enc > threshold]
    gated                             c = 1[u + b_gate > 0] · ReLU(exp(r_mag) · u + b_mag)

with u = x W_enc, or (x − b_dec) W_enc if `apply_b_dec_to_input` is true, and x̂ = c W_dec + b_dec.
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
    """One architecture of SAELens's format."""

    sae_class: type[SAE]
    """crux's class of folded SAEs with the same function."""
    per_latent: Mapping[str, str]
    """SAELens's tensors with one number per latent → crux's parameters; a parameter `log_…` is the logarithm of the tensor."""
    integer_keys: tuple[str, ...]
    """Keys of cfg.json with a positive integer, which are also arguments and attributes of `sae_class`."""
    constant_keys: Mapping[str, bool]
    """Further keys of cfg.json, whose values are the same for all SAEs that crux saves."""
    arguments: Mapping[str, float]
    """Further arguments of `sae_class`, which have no influence on the codes after the tensors are loaded."""
    transcodes: bool
    """True if the output may have another width than the input; then cfg.json has `d_out`."""

    def shapes(self, *, d_in: int, d_sae: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of SAELens's tensors."""
        shared = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
        return shared | dict.fromkeys(self.per_latent, (d_sae,))


_STANDARD = SaelensArchitecture(
    ReluSAE, {"b_enc": "b_enc"}, integer_keys=(), constant_keys={}, arguments={}, transcodes=False
)
_JUMPRELU = _STANDARD._replace(
    sae_class=JumpReluSAE,
    per_latent={"b_enc": "b_enc", "threshold": "log_threshold"},
    arguments={"threshold": 1.0, "bandwidth": 0.001},
)
ARCHITECTURES = {
    "standard": _STANDARD,
    "topk": _STANDARD._replace(
        sae_class=TopKSAE, integer_keys=("k",), constant_keys={"rescale_acts_by_decoder_norm": False}
    ),
    "jumprelu": _JUMPRELU,
    "gated": _STANDARD._replace(
        sae_class=GatedSAE, per_latent={"b_gate": "b_gate", "b_mag": "b_enc", "r_mag": "r_mag"}
    ),
    "transcoder": _STANDARD._replace(transcodes=True),
    "jumprelu_transcoder": _JUMPRELU._replace(transcodes=True),
}


SCALING_FACTORS = ("scaling_factor", "finetuning_scaling_factor")
"""Names before version 6 of a factor per latent, by which the codes are multiplied before they are decoded."""


def find_architecture(sae: SAE, *, transcodes: bool) -> str:
    """Return SAELens's name for the architecture of a folded SAE.

    A transcoder with equal input and output widths may be saved as an ordinary SAE, whose function is the same.

    Raises:
        UserError: if SAELens has no such architecture.
    """
    transcodes = transcodes or sae.d_out != sae.d_model
    fitting = {name: entry.transcodes for name, entry in ARCHITECTURES.items() if entry.sae_class is type(sae)}
    assert fitting, f"SAELens has no {type(sae).__name__}: its fold() must return an architecture that SAELens has"
    for name, for_transcoders in fitting.items():
        if for_transcoders == transcodes:
            return name
    if sae.d_out != sae.d_model:
        raise UserError(
            f"SAELens's format has no {type(sae).__name__} that reads {sae.d_model} dimensions and writes {sae.d_out}; "
            "between different widths it only has ReLU and JumpReLU"
        )
    return next(iter(fitting))


def to_tensors(sae: SAE, architecture: SaelensArchitecture) -> dict[str, Tensor]:
    """Return the tensors of a folded SAE by SAELens's names, in float32 on the CPU."""
    tensors = {name: getattr(sae, name) for name in ("W_enc", "W_dec", "b_dec")}
    for name, parameter in architecture.per_latent.items():
        value = getattr(sae, parameter)
        tensors[name] = value.exp() if parameter.startswith("log_") else value
    return {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}


@torch.no_grad()
def from_tensors(tensors: Mapping[str, Tensor], architecture: SaelensArchitecture, config: Mapping[str, Any]) -> SAE:
    """Return the folded SAE with the same function as SAELens's tensors.

    The norm of each decoder direction is multiplied into its encoder direction, and a decoder bias that is subtracted from the
    input is folded into the biases. A factor per latent multiplies its decoder direction.

    Raises:
        UserError: if the function would change: a TopK that selects codes whose decoder directions have unequal norms. Also if a product of
            weights is too large for float32.
    """
    W_enc, W_dec = tensors["W_enc"], _scale_decoder(tensors, config)
    (d_in, d_sae), d_out = W_enc.shape, W_dec.shape[1]
    subtract_b_dec = config.get("apply_b_dec_to_input", True)  # SAELens's own default
    if subtract_b_dec and architecture.transcodes:
        raise UserError("a transcoder cannot have apply_b_dec_to_input: its b_dec is not in the space of its input")
    sae = architecture.sae_class(
        d_model=d_in, n_latents=d_sae, d_out=d_out, init="tied", init_norm=1.0, subtract_b_dec=subtract_b_dec,
        generator=torch.Generator(), **{key: config[key] for key in architecture.integer_keys}, **architecture.arguments,
    )  # fmt: skip

    norm = W_dec.double().norm(dim=-1)  # squares of very large or small numbers do not fit into float32
    selects_without_norm = isinstance(sae, TopKSAE) and not config.get("rescale_acts_by_decoder_norm", False)
    if selects_without_norm and norm.max() - norm.min() > _find_rounding(W_dec) * norm.max():
        raise UserError(
            "selects its k latents without regard to the decoder norms (rescale_acts_by_decoder_norm=false), and these differ; "
            "a TopK of crux selects by the codes of a unit-norm decoder"
        )
    if torch.allclose(norm, torch.ones_like(norm), rtol=0, atol=1e-6):
        norm = torch.ones_like(norm)  # rounding would change the last digits of the codes
    sae.W_enc.copy_(W_enc * norm)
    sae.W_dec.copy_(W_dec / norm.where(norm > 0, 1.0)[:, None])
    sae.b_dec.copy_(tensors["b_dec"])
    for name, parameter in architecture.per_latent.items():
        value = tensors[name] if name == "r_mag" else tensors[name] * norm  # all but r_mag have the unit of the codes
        # a negative threshold has the same effect as 0, since codes are never negative
        getattr(sae, parameter).copy_(value.clamp_min(0).log() if parameter.startswith("log_") else value)
    sae = sae.fold()
    for name, value in to_tensors(sae, architecture).items():
        if not (value.exp() if name == "r_mag" else value).isfinite().all():
            raise UserError(f"{name} becomes too large for float32 when the decoder norms are folded into it")
    return sae


def _find_rounding(weights: Tensor) -> float:
    """Return by how much of itself the norm of a row may differ from another's because the weights were rounded when they were stored.

    Weights that all are numbers of a 16-bit type were rounded to it, whatever the type of the file.
    """
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(weights.to(dtype).to(weights.dtype), weights):
            return torch.finfo(dtype).eps
    return 1e-6


def _scale_decoder(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return the decoder, multiplied by the factor per latent that SAELens before version 6 may have added.

    It stored a factor of ones with SAEs that do not use it.

    Raises:
        UserError: if cfg.json says that there is no such factor, or that there is one and the weights lack it.
    """
    W_dec = tensors["W_dec"]
    factors = [tensors[name] for name in SCALING_FACTORS if name in tensors]
    if len(factors) > 1:
        raise UserError(f"holds both {' and '.join(SCALING_FACTORS)}, which mean the same")
    used = config.get("finetuning_scaling_factor")
    if not factors:
        if used:
            raise UserError("finetuning_scaling_factor=true, but the weights hold no scaling_factor")
        return W_dec
    if torch.equal(factors[0], torch.ones_like(factors[0])):
        return W_dec
    if used is False:
        raise UserError("scaling_factor is not 1, but finetuning_scaling_factor=false says that it is not used")
    if config.get("rescale_acts_by_decoder_norm", False):
        raise UserError(
            "scaling_factor is not 1, and rescale_acts_by_decoder_norm=true; no version of SAELens has both"
        )
    return W_dec.double() * factors[0].double()[:, None]
