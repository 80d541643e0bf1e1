"""Explain an estimate in words: its value, its biases, and the meaning of impossible values."""

from crux.llc.estimate import LLC, MAX_SHIFT

MAX_R_HAT = 1.01
"""Largest R-hat at which chains count as mixed (Vehtari et al. 1903.08008)."""

MIN_ESS = 400
"""Smallest effective sample size at which R-hat and the standard error are reliable (same paper)."""

MIN_BIAS = 0.05
"""Smallest bias that is mentioned, as a share of the estimate."""


def explain_estimate(llc: LLC, case: int) -> list[str]:
    """Return sentences about one case: first the estimate, then the problems that a reader should know about."""
    mean, error = float(llc.mean[case]), float(llc.standard_error[case])
    predicted, unbiased = float(llc.predicted[case]), float(llc.unbiased[case])
    nbeta, eps, a_max = float(llc.nbeta[case]), float(llc.step_size[case]), float(llc.largest[case])
    lines = [
        f"λ̂ = {mean:.4g} ± {error:.2g} at nβ = {nbeta:g}; a quadratic loss with this Hessian would give {predicted:.4g} "
        f"({'all eigenvalues' if llc.spectrum_exact else 'Lanczos quadrature'})"
    ]
    if float(llc.shift[case]) > MAX_SHIFT:
        lines.append(
            f"w* is not a minimum, its gradient has norm {float(llc.gradient_norm[case]):.3g}: the loss near it is lower, which "
            f"lowers the estimate by {float(llc.shift[case]):.2g} or more; train further, or use a behavioural loss"
        )
    if mean + 3 * error < 0:
        lines.append(
            f"negative: on average the chains found a loss {-mean / nbeta:.3g} lower than L(w*) = {float(llc.loss_at_start[case]):.4g}. "
            "A learning coefficient cannot be negative; w* is not a minimum, or the chains left its basin. "
            "Raise nbeta or gamma, or train w* further; this estimate is not about w*"
        )
    elif mean < 0:
        lines.append("negative, but within its error of 0: use more draws")
    elif llc.escaped[case]:
        lines.append(
            f"the chains left the basin of w*: {float(llc.below[case]):.1%} of the draws have a lower loss than w*, and "
            f"‖w − w*‖² is {float(llc.spread[case]):.2g} times that of the Gaussian around w*; raise nbeta or gamma"
        )
    if float(llc.smallest[case]) < -1e-3 * max(a_max, 0.0):
        lines.append(f"the Hessian at w* has a negative eigenvalue, {float(llc.smallest[case]):.3g}: w* is a saddle")
    if predicted - unbiased > MIN_BIAS * max(abs(predicted), 1e-12):
        lines.append(
            f"step size and minibatch noise inflate it by about {predicted - unbiased:.3g}: lower step_size (ε h_max is "
            f"{eps * (nbeta * max(a_max, 0.0) + float(llc.gamma[case])):.2g}), or use larger minibatches"
        )
    if not float(llc.r_hat[case]) < MAX_R_HAT or float(llc.ess[case]) < MIN_ESS:
        lines.append(
            f"the chains are not mixed (R-hat {float(llc.r_hat[case]):.3f}, {float(llc.ess[case]):.0f} effective samples): "
            "the standard error is underestimated; use longer chains"
        )
    return lines
