"""Control dictionaries that are SAEs: one that has not been trained, and one whose decoder stayed random while its encoder was trained.

Korznikov et al. (2602.14111) report that SAEs with a frozen random decoder are almost as interpretable as trained ones. Both kinds share
with the trained SAE what random directions lack: latents that compete for the tokens.
"""

import copy
import math
from collections.abc import Iterator

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from crux.config.progress import track
from crux.sae.architectures.active_codes import ActiveCodes
from crux.sae.architectures.gated import GatedSAE
from crux.sae.architectures.jumprelu import JumpReluSAE
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.topk import TopKSAE
from crux.sae.reading.controls import Column, Control, find_threshold, get_activations, lower_column, stack_columns
from crux.sae.reading.density_matching import match_densities
from crux.sae.reading.directions import ActivationMoments
from crux.sae.reading.harvest import Harvest
from crux.sae.reading.sparse_codes import stack_batches

CALIBRATION_TOKENS = 8192
"""Number of tokens from which the threshold of an untrained SAE is computed."""

DENSITY_BATCHES = 32
"""Number of batches of tokens on which the densities of a control SAE's latents are counted."""


@torch.no_grad()
def make_untrained_sae(
    sae: SAE, x: Float[np.ndarray, "tokens d"], *, l0: float, mean: Float[np.ndarray, "d"], seed: int
) -> SAE:
    """Return an SAE of the same architecture and size with random weights and about the given L0.

    The decoder directions are random, the encoder is their transpose and reads x − mean (as in the initialisation `tied`). TopK has its L0
    by construction. Other architectures get one threshold for all latents: as θ of a JumpReLU SAE, otherwise as a bias; it is a
    quantile of the pre-activations on tokens that are evenly spread over x.

    Args:
        sae: folded; it is not changed. A transcoder's untrained copy has an encoder of its own.
        x: activations that the SAE reads; may be memory-mapped.
        l0: mean number of latents per token, less than half of the latents.
        mean: of x.
    """
    untrained = copy.deepcopy(sae).eval()
    generator = torch.Generator().manual_seed(seed)
    W_dec = F.normalize(torch.randn(untrained.n_latents, untrained.d_out, generator=generator), dim=-1)
    tied = untrained.d_out == untrained.d_model
    W_enc = (
        W_dec if tied else F.normalize(torch.randn(untrained.n_latents, untrained.d_model, generator=generator), dim=-1)
    )
    untrained.W_dec.copy_(W_dec)
    untrained.W_enc.copy_(W_enc.T)
    untrained.b_enc.zero_()
    if isinstance(untrained, GatedSAE):
        untrained.r_mag.zero_()
        untrained.b_gate.zero_()
    # the bias of a transcoder's output belongs to another activation; codes do not depend on it
    centre = torch.from_numpy(mean).to(untrained.W_enc)
    untrained.b_dec.copy_(centre if tied else torch.zeros_like(untrained.b_dec))
    untrained.shift_pre_activations(-centre @ untrained.W_enc)
    if isinstance(untrained, TopKSAE):
        return untrained
    rows = np.unique(np.linspace(0, len(x) - 1, CALIBRATION_TOKENS).astype(np.int64))
    pre = (
        untrained.encode(torch.from_numpy(np.asarray(x[rows], np.float32)).to(untrained.W_enc))
        .pre.cpu()
        .numpy()
        .ravel()
    )
    threshold = float(find_threshold(pre, round(len(rows) * l0)))
    assert threshold > 0, "an untrained SAE has an L0 of half its latents without a threshold: `l0` must be less"
    if isinstance(untrained, JumpReluSAE):
        untrained.log_threshold.fill_(math.log(threshold))
    else:
        untrained.shift_pre_activations(torch.full_like(untrained.b_enc, -threshold))
    return untrained


def train_frozen_decoder_sae(
    x: Float[np.ndarray, "tokens d"],
    *,
    moments: ActivationMoments,
    n_latents: int,
    k: int,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    device: torch.device,
) -> TopKSAE:
    """Return a folded TopK SAE whose encoder and biases have been trained on the local MSE, with the random decoder frozen.

    Inputs are scaled so that the mean of ‖x‖ is √d. Adam, constant learning rate; each step draws `batch` random tokens of x.

    Args:
        x: fit activations; may be memory-mapped.
        moments: of x.
        k: latents per token; the rounded L0 of the SAE for which the result is a control.
    """
    generator = torch.Generator().manual_seed(seed)
    sae = TopKSAE(
        k=k, d_model=x.shape[1], n_latents=n_latents, init="tied", init_norm=1.0, subtract_b_dec=True, generator=generator
    )  # fmt: skip
    scale = math.sqrt(x.shape[1]) / moments.mean_norm
    sae.start_at(torch.from_numpy(moments.mean).float(), input_scale=scale).to(device)
    sae.W_dec.requires_grad_(False)
    trained = [parameter for parameter in sae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr, fused=True)
    rng = np.random.default_rng(seed)
    for _ in track(range(steps), "training a control SAE with a frozen decoder"):
        rows = np.sort(rng.integers(0, len(x), batch))
        tokens = torch.from_numpy(np.asarray(x[rows], np.float32)).to(device)
        with torch.enable_grad():
            loss = F.mse_loss(sae(tokens) * scale, tokens * scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        optimizer.step()
    folded = sae.fold()
    assert isinstance(folded, TopKSAE)
    return folded


def make_sae_control(name: str, sae: SAE, harvest: Harvest, latents: Int[np.ndarray, "n"], *, batch: int) -> Control:
    """Return the codes of those latents of another SAE whose densities are closest to those of the given latents, one to one.

    A latent that fires on more fit tokens than the one for which it stands is lowered to its density: its codes become max(0, c − θ). One
    that fires on fewer stays as it is. An SAE with fewer alive latents than are needed has some of them stand for several.

    Args:
        sae: folded; reads the activations of the harvest, which must have been kept.
        latents: of the harvest's SAE, ascending; they all fire on fit tokens.
        batch: tokens that are encoded at a time. The densities by which latents are chosen are counted on `DENSITY_BATCHES` of them.
    """
    fit, held_out = get_activations(harvest.fit), get_activations(harvest.held_out)
    sample = _sample_batches(fit, batch=batch)
    firings = np.zeros(sae.n_latents, np.int64)
    for codes in _encode(sae, sample, batch=batch):
        firings += torch.bincount(codes.places.latents, minlength=sae.n_latents).cpu().numpy()
    wanted = harvest.fit.codes.firings()[latents]
    chosen = match_densities(wanted / len(fit), firings / len(sample))
    sides = [_encode_some(sae, x, chosen, batch=batch) for x in (fit, held_out)]
    columns: tuple[list[Column], list[Column]] = ([], [])
    for j, n in enumerate(wanted.tolist()):
        start, end = sides[0].indptr[j : j + 2]
        threshold = float(find_threshold(sides[0].data[start:end], n)) if n < end - start else 0.0
        for side, lowered in zip(sides, columns, strict=True):
            start, end = side.indptr[j : j + 2]
            lowered.append(lower_column(side.indices[start:end], side.data[start:end], threshold))
    return Control(
        name, latents, stack_columns(columns[0], n_tokens=len(fit)), stack_columns(columns[1], n_tokens=len(held_out))
    )


def _sample_batches(x: Float[np.ndarray, "tokens d"], *, batch: int) -> Float[np.ndarray, "some d"]:
    """Return up to `DENSITY_BATCHES` batches of tokens that are evenly spread over x; all of them if there are not more."""
    n_batches = math.ceil(len(x) / batch)
    if n_batches <= DENSITY_BATCHES:
        return x
    firsts = np.arange(DENSITY_BATCHES) * (len(x) - batch) // (DENSITY_BATCHES - 1)
    return np.concatenate([x[first : first + batch] for first in firsts])


@torch.no_grad()
def _encode(sae: SAE, x: Float[np.ndarray, "tokens d"], *, batch: int) -> Iterator[ActiveCodes]:
    """Yield the codes of each batch of tokens that are not zero."""
    for first in track(range(0, len(x), batch), "codes of a control SAE"):
        tokens = torch.from_numpy(np.array(x[first : first + batch], np.float32))  # a copy: the file is read-only
        yield sae.encode_active(tokens.to(sae.W_enc))


def _encode_some(
    sae: SAE, x: Float[np.ndarray, "tokens d"], latents: Int[np.ndarray, "n"], *, batch: int
) -> scipy.sparse.csc_matrix:
    """Return the codes of some latents, tokens × latents in the order in which they are given."""
    parts = [
        stack_batches([codes], n_latents=sae.n_latents).matrix()[:, latents] for codes in _encode(sae, x, batch=batch)
    ]
    return scipy.sparse.csc_matrix(scipy.sparse.vstack(parts))
