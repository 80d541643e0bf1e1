"""Toy models of superposition: models, sparse features, exact losses and optima, and the geometry of the solutions."""

from typing import TYPE_CHECKING

from crux.config.lazy import lazy_exports

if TYPE_CHECKING:
    from crux.toy.evaluate import evaluate_on_toy
    from crux.toy.exact.activity import (
        Activity,
        enumerate_anticorrelated,
        enumerate_correlated,
        enumerate_independent,
        enumerate_one_active,
    )
    from crux.toy.exact.cube_moments import relu_moments
    from crux.toy.exact.loss import linear_loss, relu_loss, tied_loss
    from crux.toy.exact.one_active import one_active_relu_loss, one_active_tied_loss
    from crux.toy.exact.optima import Optima, exact_optima
    from crux.toy.exact.phase_theory import Boundaries, exact_boundaries, fixed_weight_boundaries
    from crux.toy.exact.polish import polish
    from crux.toy.exact.population import population_loss
    from crux.toy.features import FeatureBatches, FeatureDistribution, Purpose
    from crux.toy.folder import find_toy_model
    from crux.toy.geometry.adversarial import analytic_attack, gradient_attack
    from crux.toy.geometry.dimensionality import dimensionality, dimensions_per_feature, leverage, norms
    from crux.toy.geometry.neurons import monosemanticity
    from crux.toy.geometry.polytopes import (
        bipyramid,
        digon,
        octahedron,
        polygon,
        simplex,
        square_antiprism,
        tegum_product,
    )
    from crux.toy.geometry.recovery import measure_recovery
    from crux.toy.geometry.report import Geometry, geometry_report
    from crux.toy.geometry.tegum import tegum_factors
    from crux.toy.program import Program, TrainedProgram, held_out_loss, load_program
    from crux.toy.subject import ToySubject, load_toy_subject
    from crux.toy.superposition import SuperpositionModel, Weights
    from crux.toy.training import train_program

__all__ = [
    "Activity",
    "Boundaries",
    "FeatureBatches",
    "FeatureDistribution",
    "Geometry",
    "Optima",
    "Program",
    "Purpose",
    "SuperpositionModel",
    "ToySubject",
    "TrainedProgram",
    "Weights",
    "analytic_attack",
    "bipyramid",
    "digon",
    "dimensionality",
    "dimensions_per_feature",
    "enumerate_anticorrelated",
    "enumerate_correlated",
    "enumerate_independent",
    "enumerate_one_active",
    "evaluate_on_toy",
    "exact_boundaries",
    "exact_optima",
    "find_toy_model",
    "fixed_weight_boundaries",
    "geometry_report",
    "gradient_attack",
    "held_out_loss",
    "leverage",
    "linear_loss",
    "load_program",
    "load_toy_subject",
    "measure_recovery",
    "monosemanticity",
    "norms",
    "octahedron",
    "one_active_relu_loss",
    "one_active_tied_loss",
    "polish",
    "polygon",
    "population_loss",
    "relu_loss",
    "relu_moments",
    "simplex",
    "square_antiprism",
    "tegum_factors",
    "tegum_product",
    "tied_loss",
    "train_program",
]

# each name of __all__ is imported on first use, from the module that the TYPE_CHECKING block gives for it
__getattr__, __dir__ = lazy_exports(__name__)
