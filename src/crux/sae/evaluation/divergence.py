"""The signs in an evaluation that the training of an SAE has diverged or that the SAE is of no use."""

from collections.abc import Mapping

MIN_EXCESS = 0.1
"""Nats by which the CE loss increase must exceed that of mean ablation. A smaller difference is noise of a short held-out text, or of
a hook point that hardly matters."""

MIN_L0 = 0.1
"""The least L0. With fewer latents per token, nine of ten tokens are reconstructed by the decoder's bias alone."""


def describe_divergence(metrics: Mapping[str, float]) -> str:
    """Return what shows that an SAE has diverged, in one line; empty if nothing does.

    The CE loss increase exceeds that of mean ablation, no latent fires, or L0 is close to 0.

    Args:
        metrics: of one run, by their names in metrics.json. Those of several SAEs have the hook point in their names.
    """
    signs = []
    increase, mean = metrics.get("final/ce_increase"), metrics.get("final/ce_mean")
    if increase is not None and mean is not None:
        of_mean = mean - metrics["final/ce_clean"]
        if increase > of_mean + MIN_EXCESS:
            signs.append(f"CE loss increase of {increase:.3g} nats, more than the {of_mean:.3g} of mean ablation")
    for name, l0 in metrics.items():
        hook = name.removeprefix("final/").removesuffix("l0").rstrip("/")
        if name != f"final/{hook}{'/' * bool(hook)}l0" or "with_gradient" in name:
            continue
        where = f" at {hook}" if hook else ""
        if l0 == 0:
            signs.append(f"no latent fires{where}")
        elif l0 < MIN_L0:
            signs.append(f"L0 of {l0:.2g}{where}, so that most tokens have no latent")
    return "; ".join(signs)
