"""The geometry of dictionaries: similarities within and between SAEs, each next to what chance gives.

a, b = (read_dictionary(sae, alive=...) for sae in saes)
pair = compare_dictionaries(a, b, covariance=..., seed=0)     # both directions, one-to-one matching, shared and novel latents
"""

from typing import TYPE_CHECKING

from crux.config.lazy import lazy_exports

if TYPE_CHECKING:
    from crux.sae.geometry.bootstrap import bootstrap_difference
    from crux.sae.geometry.chance import RandomDirections, draw_directions, measure_covariance
    from crux.sae.geometry.code_correlation import CodeSimilarity, compare_codes, find_most_correlated
    from crux.sae.geometry.compare import (
        ChanceCosines,
        PairGeometry,
        WithinGeometry,
        compare_dictionaries,
        describe_dictionary,
    )
    from crux.sae.geometry.dictionary import Dictionary, read_dictionary
    from crux.sae.geometry.directional import NamedDirections, find_directions, measure_directions
    from crux.sae.geometry.energy_against_use import EnergyAgainstUse, measure_energy_against_use
    from crux.sae.geometry.fisher_directions import Fisher, measure_fisher
    from crux.sae.geometry.matching import Matching, find_shared, match_latents
    from crux.sae.geometry.meta_sae import MetaStructure, measure_meta_structure
    from crux.sae.geometry.nearest import Nearest, find_candidates, find_nearest, find_nearest_both_ways, normalise_rows
    from crux.sae.geometry.neighbour_mixing import NeighbourMixing, measure_mixing
    from crux.sae.geometry.views import project_pca, project_umap

__all__ = [
    "ChanceCosines",
    "CodeSimilarity",
    "Dictionary",
    "EnergyAgainstUse",
    "Fisher",
    "Matching",
    "MetaStructure",
    "NamedDirections",
    "Nearest",
    "NeighbourMixing",
    "PairGeometry",
    "RandomDirections",
    "WithinGeometry",
    "bootstrap_difference",
    "compare_codes",
    "compare_dictionaries",
    "describe_dictionary",
    "draw_directions",
    "find_candidates",
    "find_directions",
    "find_most_correlated",
    "find_nearest",
    "find_nearest_both_ways",
    "find_shared",
    "match_latents",
    "measure_covariance",
    "measure_directions",
    "measure_energy_against_use",
    "measure_fisher",
    "measure_meta_structure",
    "measure_mixing",
    "normalise_rows",
    "project_pca",
    "project_umap",
    "read_dictionary",
]

# each name of __all__ is imported on first use, from the module that the TYPE_CHECKING block gives for it
__getattr__, __dir__ = lazy_exports(__name__)
