"""Sparse autoencoders: architectures, losses, training, evaluation, inspection of latents, and loading and saving in SAELens's format.

sae, metadata = crux.sae.load_sae("outputs/runs/<run>/sae")
crux.sae.strongest_contexts(subject, sae, hook=..., ...)    # the contexts in which latents are most active
"""

from typing import TYPE_CHECKING

from crux.config.lazy import lazy_exports

if TYPE_CHECKING:
    from crux.sae.architectures.batch_topk import BatchTopKSAE
    from crux.sae.architectures.codes import Codes
    from crux.sae.architectures.gated import GatedSAE
    from crux.sae.architectures.gradient_topk import GradientTopKSAE
    from crux.sae.architectures.jumprelu import JumpReluSAE
    from crux.sae.architectures.matryoshka import MatryoshkaSAE
    from crux.sae.architectures.options import SaeOptions
    from crux.sae.architectures.p_anneal import PAnnealSAE
    from crux.sae.architectures.relu import ReluSAE
    from crux.sae.architectures.sae import SAE
    from crux.sae.architectures.site import Site
    from crux.sae.architectures.topk import TopKSAE
    from crux.sae.build import build_loss, build_sae, build_sites
    from crux.sae.evaluation.evaluate_sae import SaeEvaluation, evaluate_sae
    from crux.sae.evaluation.evaluate_sites import SitesEvaluation, evaluate_sites
    from crux.sae.evaluation.latents import Contexts, LogitEffects, choose_latents, logit_effects, strongest_contexts
    from crux.sae.evaluation.typical_activation import TypicalActivation, measure_typical_activation
    from crux.sae.formats.saelens import load_sae, save_sae
    from crux.sae.losses.e2e import E2EDownstreamLoss, E2ELoss
    from crux.sae.losses.fisher import FisherLoss
    from crux.sae.losses.kl import mean_kl
    from crux.sae.losses.kl_finetune import KLFinetuneLoss
    from crux.sae.losses.local import LocalLoss
    from crux.sae.losses.loss import Loss
    from crux.sae.losses.mse import downstream_mse, mse
    from crux.sae.losses.options import LossOptions
    from crux.sae.losses.readout import chunked_cross_entropy
    from crux.sae.splicing import build_joint_splice, check_site, run_separate_splices
    from crux.sae.sweeps.report import write_report

__all__ = [
    "SAE",
    "BatchTopKSAE",
    "Codes",
    "Contexts",
    "E2EDownstreamLoss",
    "E2ELoss",
    "FisherLoss",
    "GatedSAE",
    "GradientTopKSAE",
    "JumpReluSAE",
    "KLFinetuneLoss",
    "LocalLoss",
    "LogitEffects",
    "Loss",
    "LossOptions",
    "MatryoshkaSAE",
    "PAnnealSAE",
    "ReluSAE",
    "SaeEvaluation",
    "SaeOptions",
    "Site",
    "SitesEvaluation",
    "TopKSAE",
    "TypicalActivation",
    "build_joint_splice",
    "build_loss",
    "build_sae",
    "build_sites",
    "check_site",
    "choose_latents",
    "chunked_cross_entropy",
    "downstream_mse",
    "evaluate_sae",
    "evaluate_sites",
    "load_sae",
    "logit_effects",
    "mean_kl",
    "measure_typical_activation",
    "mse",
    "run_separate_splices",
    "save_sae",
    "strongest_contexts",
    "write_report",
]

# each name of __all__ is imported on first use, from the module that the TYPE_CHECKING block gives for it
__getattr__, __dir__ = lazy_exports(__name__)
