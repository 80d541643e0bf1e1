"""Degeneracy of networks: ranks, synchronised neurons, and the interaction basis with its edges, ablations and modules."""

from typing import TYPE_CHECKING

from crux.config.lazy import lazy_exports

if TYPE_CHECKING:
    from crux.degeneracy.ablation import EdgeAblation, NodeAblation, clean_loss
    from crux.degeneracy.basis import Basis, dictionary_basis, linear_basis, neuron_basis, pca_basis, random_basis
    from crux.degeneracy.budget import Budget, degeneracy_budget
    from crux.degeneracy.edges import Edges, interaction_edges
    from crux.degeneracy.gram_ranks import GramRank, gram_eigenvalues, gram_range, gram_rank, ranks_at_thresholds
    from crux.degeneracy.grams import Moments, Target, jacobian_gram, moments
    from crux.degeneracy.interaction_basis import interaction_bases
    from crux.degeneracy.modularity import Modules, find_modules
    from crux.degeneracy.networks.chain import Chain
    from crux.degeneracy.networks.modular_addition import ModularAddition, load_addition, save_addition
    from crux.degeneracy.networks.network import Network
    from crux.degeneracy.removal import losses_without, select_directions
    from crux.degeneracy.rewrite import rewrite_in_bases
    from crux.degeneracy.synchronised import (
        SynchronisedBlock,
        Synchrony,
        measure_synchrony,
        run_with_shared_gates,
        synchronised_blocks,
    )

__all__ = [
    "Basis",
    "Budget",
    "Chain",
    "EdgeAblation",
    "Edges",
    "GramRank",
    "ModularAddition",
    "Modules",
    "Moments",
    "Network",
    "NodeAblation",
    "SynchronisedBlock",
    "Synchrony",
    "Target",
    "clean_loss",
    "degeneracy_budget",
    "dictionary_basis",
    "find_modules",
    "gram_eigenvalues",
    "gram_range",
    "gram_rank",
    "interaction_bases",
    "interaction_edges",
    "jacobian_gram",
    "linear_basis",
    "load_addition",
    "losses_without",
    "measure_synchrony",
    "moments",
    "neuron_basis",
    "pca_basis",
    "random_basis",
    "ranks_at_thresholds",
    "rewrite_in_bases",
    "run_with_shared_gates",
    "save_addition",
    "select_directions",
    "synchronised_blocks",
]

# each name of __all__ is imported on first use, from the module that the TYPE_CHECKING block gives for it
__getattr__, __dir__ = lazy_exports(__name__)
