"""Reading latents: what activates each one, what the network does with it, and how much of the network this explains.

fit, held_out = (read_batches(subject, site, batches) for batches in crux.load_text(subject))
rules = fit_rule_lists(prepare_fit(fit.windows, fit.begins, no_classes(subject.d_vocab)), fit.codes, sizes=[10])[10]
influence = measure_influence(subject, held_out.windows, held_out.codes, hook=site.write, directions=sae.dictionary(), ...)

`experiment=read` computes all of it; docs/guide/read.md shows the parts in Python.
"""

from typing import TYPE_CHECKING

from crux.config.lazy import lazy_exports

if TYPE_CHECKING:
    from crux.sae.reading.ablations import Ablations, ablate_latents, check_influence
    from crux.sae.reading.absorption import measure_absorption, measure_hedging
    from crux.sae.reading.calibration import calibrate_scores
    from crux.sae.reading.compare_saes import (
        describe_equal_rules,
        describe_equal_steering,
        describe_pairs,
        rewrite_at_totals,
    )
    from crux.sae.reading.control_saes import make_sae_control, make_untrained_sae, train_frozen_decoder_sae
    from crux.sae.reading.control_scores import compare_with_controls, score_together
    from crux.sae.reading.controls import Control, make_direction_control, make_shifted_control
    from crux.sae.reading.directions import ActivationMoments, measure_moments
    from crux.sae.reading.error_attribution import ErrorAttribution, attribute_to_error
    from crux.sae.reading.fit_rules import fit_rule_lists
    from crux.sae.reading.fit_text import prepare_fit
    from crux.sae.reading.harvest import Harvest, ReadText, harvest_codes
    from crux.sae.reading.influence import Influence, measure_influence, select_windows
    from crux.sae.reading.interventions import ContextPool
    from crux.sae.reading.lens import lens_effects
    from crux.sae.reading.linear_error import fit_linear_map
    from crux.sae.reading.output_effects import OutputEffects, measure_output_effects
    from crux.sae.reading.percentiles import percentiles_at_density
    from crux.sae.reading.probing import probe_latents
    from crux.sae.reading.probing_labels import label_tokens
    from crux.sae.reading.quick_read import read_batches
    from crux.sae.reading.replacements import measure_replacements
    from crux.sae.reading.residual import ResidualReport, measure_residual
    from crux.sae.reading.rewriting import Rewriting, measure_rewriting
    from crux.sae.reading.rule_scores import RuleScores, score_rules
    from crux.sae.reading.rule_texts import describe_rules, token_names
    from crux.sae.reading.rules import Rules, predict_codes
    from crux.sae.reading.saebench_core import SaebenchCore, measure_saebench_core
    from crux.sae.reading.section import Reading
    from crux.sae.reading.sparse_codes import SparseCodes
    from crux.sae.reading.splitting import measure_splitting
    from crux.sae.reading.steering import steer_directions, summarise_steering
    from crux.sae.reading.steering_comparison import SteeringDifference, collect_latent_directions, compare_steering
    from crux.sae.reading.steering_strength import find_strengths
    from crux.sae.reading.text_page import describe_text_features
    from crux.sae.reading.token_classes import classify_tokens, no_classes
    from crux.sae.reading.whole_tree import TreeScores, score_whole_tree

__all__ = [
    "Ablations",
    "ActivationMoments",
    "ContextPool",
    "Control",
    "ErrorAttribution",
    "Harvest",
    "Influence",
    "OutputEffects",
    "ReadText",
    "Reading",
    "ResidualReport",
    "Rewriting",
    "RuleScores",
    "Rules",
    "SaebenchCore",
    "SparseCodes",
    "SteeringDifference",
    "TreeScores",
    "ablate_latents",
    "attribute_to_error",
    "calibrate_scores",
    "check_influence",
    "classify_tokens",
    "collect_latent_directions",
    "compare_steering",
    "compare_with_controls",
    "describe_equal_rules",
    "describe_equal_steering",
    "describe_pairs",
    "describe_rules",
    "describe_text_features",
    "find_strengths",
    "fit_linear_map",
    "fit_rule_lists",
    "harvest_codes",
    "label_tokens",
    "lens_effects",
    "make_direction_control",
    "make_sae_control",
    "make_shifted_control",
    "make_untrained_sae",
    "measure_absorption",
    "measure_hedging",
    "measure_influence",
    "measure_moments",
    "measure_output_effects",
    "measure_replacements",
    "measure_residual",
    "measure_rewriting",
    "measure_saebench_core",
    "measure_splitting",
    "no_classes",
    "percentiles_at_density",
    "predict_codes",
    "prepare_fit",
    "probe_latents",
    "read_batches",
    "rewrite_at_totals",
    "score_rules",
    "score_together",
    "score_whole_tree",
    "select_windows",
    "steer_directions",
    "summarise_steering",
    "token_names",
    "train_frozen_decoder_sae",
]

# each name of __all__ is imported on first use, from the module that the TYPE_CHECKING block gives for it
__getattr__, __dir__ = lazy_exports(__name__)
