"""From the options of a job to its SAEs."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from crux.config.errors import UserError
from crux.config.targets import find_class
from crux.sae.architectures.options import Sae
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.evaluation.mean import Typical
from crux.sae.formats import saelens
from crux.sae.options import SaeJob


def build_sites(config: SaeJob, typical: Mapping[str, Typical]) -> list[Site]:
    """Return an SAE at each hook point, fresh or the saved one to start from; the seed determines the weights."""
    return [
        Site(read, write, build_sae(config.sae, read=typical[read], written=typical[write], seed=config.seed))
        for read, write in config.sites
    ]


def build_sae(options: Sae, *, read: Typical, written: Typical, seed: int) -> SAE:
    """Return a fresh SAE for activations like these, or the saved one to start from.

    Args:
        read: typical activation at the hook point that it reads.
        written: typical activation at the hook point that it reconstructs.
    """
    d_model, d_out = read.mean.shape[0], written.mean.shape[0]
    transcodes = options.output_hook is not None
    architecture = find_class(options._target_, key="sae._target_", base=SAE)
    sae = architecture(
        d_model=d_model,
        d_out=d_out,
        n_latents=options.size(d_model),
        init=options.init.value,
        init_norm=options.init_norm,
        subtract_b_dec=options.subtract_b_dec and not transcodes,
        generator=torch.Generator().manual_seed(seed),
        **options.arguments,
    )
    saelens.check(sae, transcodes=transcodes)
    scales = [math.sqrt(len(t.mean)) / t.norm if options.normalize_activations else 1.0 for t in (read, written)]
    mean = written.mean.cpu() if options.bias_at_mean else sae.b_dec.detach() / scales[1]
    sae.start_at(mean, input_scale=scales[0], output_scale=scales[1])
    if options.start_from is not None:
        saved, _ = saelens.load(Path(options.start_from))
        try:
            sae.start_from(saved)
        except UserError as error:
            raise UserError(f"sae.start_from={options.start_from}: {error}") from error
    return sae
