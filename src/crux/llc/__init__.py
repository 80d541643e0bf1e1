"""Local learning coefficients: estimates by Markov chains with diagnostics, cases with a known answer, and behavioural losses."""

from typing import TYPE_CHECKING

from crux.config.lazy import lazy_exports

if TYPE_CHECKING:
    from crux.llc.behavioural import behavioural_loss, gauss_newton_product
    from crux.llc.calibration import calibrate
    from crux.llc.chains import ChainSettings, Checkpoint
    from crux.llc.coordinates import Coordinates, stack_parameters
    from crux.llc.curvature import Curvature, measure_curvature
    from crux.llc.diagnostics import ChainStatistics, chain_statistics
    from crux.llc.effective import EffectiveParameters, effective_parameters
    from crux.llc.estimate import LLC, NotAMinimumWarning, estimate_llc
    from crux.llc.explain import explain_estimate
    from crux.llc.hessian import Spectrum, full_spectrum, lanczos_spectrum, largest_eigenvalue
    from crux.llc.known import KnownLLC, deep_linear_llc, monomial_llc
    from crux.llc.landscape import Landscape
    from crux.llc.language_models import next_token_loss, select_parameters
    from crux.llc.losses import FixedData, Minibatches, map_over_chains
    from crux.llc.prediction import predict_llc
    from crux.llc.samplers.hmc import HMC
    from crux.llc.samplers.interface import Posterior, Sampler
    from crux.llc.samplers.rmsprop_sgld import RMSPropSGLD
    from crux.llc.samplers.sgld import SGLD
    from crux.llc.step_size import default_step_size

__all__ = [
    "HMC",
    "LLC",
    "SGLD",
    "ChainSettings",
    "ChainStatistics",
    "Checkpoint",
    "Coordinates",
    "Curvature",
    "EffectiveParameters",
    "FixedData",
    "KnownLLC",
    "Landscape",
    "Minibatches",
    "NotAMinimumWarning",
    "Posterior",
    "RMSPropSGLD",
    "Sampler",
    "Spectrum",
    "behavioural_loss",
    "calibrate",
    "chain_statistics",
    "deep_linear_llc",
    "default_step_size",
    "effective_parameters",
    "estimate_llc",
    "explain_estimate",
    "full_spectrum",
    "gauss_newton_product",
    "lanczos_spectrum",
    "largest_eigenvalue",
    "map_over_chains",
    "measure_curvature",
    "monomial_llc",
    "next_token_loss",
    "predict_llc",
    "select_parameters",
    "stack_parameters",
]

# each name of __all__ is imported on first use, from the module that the TYPE_CHECKING block gives for it
__getattr__, __dir__ = lazy_exports(__name__)
