"""Options of the interaction-basis experiments: the section `interaction_basis`. Torch-free."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le, Lt, MinLen
from omegaconf import MISSING

from crux.config.errors import UserError
from crux.config.schema import ContextLength, Count, Rate

BASES = ("neuron", "random", "pca", "local", "next", "global")
"""Kinds of bases that need no more than a network and data."""


class LastBasis(Enum):
    """The basis at the last hook point.

    Its principal components, its neurons, or the logits' principal components (after a language model's final norm).
    """

    pca = "pca"
    neuron = "neuron"
    logits = "logits"


@dataclass
class GraphOptions:
    """Options of an interaction graph: its bases, their edges, and the number of edges needed."""

    threshold: Annotated[float, Gt(0), Lt(1)] = MISSING
    """Directions whose eigenvalue is below this share of the largest one are left out of a basis."""
    points: Count | None = MISSING
    """Gauss–Legendre points of the edges' integral; null: use the gradient at the activation instead."""
    within: Rate = MISSING
    """Allowed rise of the loss when few directions or edges are kept, in units of the loss."""


@dataclass
class CompareOptions(GraphOptions):
    """Options of a comparison of bases: neurons, a random rotation, principal components, and interaction bases."""

    bases: list[str] = MISSING
    """Kinds of bases: neuron, random, pca, local, next (see `ahead`), global."""
    hooks: list[str] = MISSING
    """Hook points, in the network's order. All bases are the same at the last one."""
    last: LastBasis = MISSING
    """The basis at the last hook point."""
    ahead: Count | None = None
    """k of the next-k basis: its Jacobian goes to the k-th hook point ahead; null if that basis is not compared."""
    probes: Count | None = MISSING
    """Random probes per sample for the Jacobian Gram; null: exact, with one backward pass per position and direction."""
    samples: Count = MISSING
    """Samples (language models: sequences) on which bases and edges are found."""
    judged: Count = MISSING
    """Held-out samples on which the ablations are evaluated; all of them if there are fewer."""
    batch: Count = MISSING
    """Samples per forward pass."""
    directions: Count | None = None
    """Number of strongest directions of each basis between which edges are found; null: all."""
    edge_samples: Count | None = None
    """Number of samples, counted from the first, on which edges are found; null: all."""
    edge_ablation: list[str] = MISSING
    """Bases whose edges are also ablated to count how many are needed, with up to one pass per direction and count."""

    last_bases: ClassVar[tuple[LastBasis, ...]] = (LastBasis.pca, LastBasis.neuron)
    """Allowed values of `last`."""

    def check_section(self, key: str) -> None:
        if len(self.hooks) < 2:
            raise UserError(f"{key}.hooks={self.hooks}: must name two hook points or more")
        if not self.bases:
            raise UserError(f"{key}.bases=[]: must name one or more of {', '.join(BASES)}")
        for name, wanted, allowed in (
            ("bases", self.bases, BASES),
            ("edge_ablation", self.edge_ablation, (*self.bases, "sae")),
        ):
            if unknown := [kind for kind in wanted if kind not in allowed]:
                raise UserError(f"{key}.{name}: there is no {unknown[0]}; allowed are {', '.join(allowed)}")
            if len(set(wanted)) < len(wanted):
                raise UserError(f"{key}.{name}={wanted}: name each once")
        if "next" in self.bases and self.ahead is None:
            raise UserError(f"{key}.ahead=null: the next-k basis needs to know how many hook points it looks ahead")
        if self.last not in self.last_bases:
            raise UserError(
                f"{key}.last={self.last.value}: is only for language models; "
                f"allowed are {', '.join(basis.value for basis in self.last_bases)}"
            )


@dataclass
class LanguageCompareOptions(CompareOptions):
    """Options of a comparison of bases on a language model."""

    length: ContextLength = MISSING
    """Tokens per sequence."""
    saes: list[str] | None = None
    """Folders of saved SAEs whose decoders are compared too, each at its hook point."""
    force: bool = MISSING
    """Compare saved SAEs although their metadata name another model or weight processing."""

    last_bases: ClassVar[tuple[LastBasis, ...]] = tuple(LastBasis)


@dataclass
class ModularityOptions:
    """Options of the search for modules of an interaction graph by Leiden (src/crux/degeneracy/modularity.py)."""

    resolution: Rate = MISSING
    """Resolution γ; a larger γ gives more and smaller modules."""
    iterations: Count = MISSING
    """Leiden iterations per run; each starts from the partition of the previous one."""
    starts: Count = MISSING
    """Independent runs, of which the best is returned."""


@dataclass
class AdditionSizes:
    """Sizes of a modular-addition transformer."""

    p: Count = MISSING
    """Modulus of the addition."""
    d_model: Count = MISSING
    """Width of the residual stream."""
    n_heads: Count = MISSING
    """Attention heads."""
    d_mlp: Count = MISSING
    """Neurons of the MLP."""

    @property
    def d_head(self) -> int:
        """Width of an attention head."""
        return self.d_model // self.n_heads


@dataclass
class Addition(AdditionSizes):
    """Options of a transformer that adds two numbers mod p, and of its training data."""

    train_share: Annotated[float, Gt(0), Lt(1)] = MISSING
    """Share of the p² pairs used for training; the others are held out."""
    stop_when_right: bool = MISSING
    """Stop as soon as every held-out pair is right, at the latest at trainer.max_steps."""

    def check_section(self, key: str) -> None:
        if self.d_model % self.n_heads:
            raise UserError(f"{key}.d_model={self.d_model}: must be a multiple of the {self.n_heads} heads")
        if int(self.train_share * self.p**2) < 1:
            raise UserError(
                f"{key}.train_share={self.train_share}: must be a share of the {self.p**2} pairs, between 0 and 1"
            )


@dataclass
class SmallPerceptron:
    """Options of the perceptron that interaction_basis/mlp trains."""

    hidden: Annotated[list[Count], MinLen(1)] = MISSING
    """Widths of the hidden layers."""
    steps: Count = MISSING
    """Adam steps."""
    lr: Rate = MISSING
    """Initial learning rate."""


@dataclass
class DictionaryOptions:
    """Options of the comparison of a dictionary with the directions that the network reads."""

    left_out: Annotated[float, Ge(0), Lt(1)] = MISSING
    """Largest share of Σ Λ that may be left out: the fewest strongest directions that leave out no more count as read."""
    tokens: Annotated[int, Ge(1024), Le(10**13)] = MISSING
    """Held-out tokens on which saved SAEs are evaluated and their basis is found."""


@dataclass
class InteractionBasis:
    """Options of the interaction-basis experiments (Bushnaq et al. 2405.10928)."""

    experiment: str = MISSING
    """The experiment's name in run folders and in MLflow."""

    module: ClassVar[str]
    """Name of the experiment's module in src/crux/degeneracy/experiments."""


@dataclass
class ComparisonExperiment(InteractionBasis):
    """Options of a comparison of bases on one network, with the modules of their interaction graphs."""

    compare: CompareOptions = MISSING
    modularity: ModularityOptions = MISSING


@dataclass
class MlpBases(ComparisonExperiment):
    """Options of the comparison of bases on a small perceptron."""

    perceptron: SmallPerceptron = MISSING

    module: ClassVar[str] = "mlp"


@dataclass
class LanguageBases(ComparisonExperiment):
    """Options of the comparison of bases on a language model's residual stream."""

    compare: LanguageCompareOptions = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]

    module: ClassVar[str] = "language"


@dataclass
class ModularAdditionTraining(InteractionBasis):
    """Options of the training of a modular-addition transformer."""

    addition: Addition = MISSING

    module: ClassVar[str] = "modular_addition_training"


@dataclass
class ModularAdditionBases(ComparisonExperiment):
    """Options of the comparison of bases on a modular-addition transformer."""

    addition: Addition = MISSING
    """The network to train if model.path is not given."""

    module: ClassVar[str] = "modular_addition"


@dataclass
class PlantedModules(InteractionBasis):
    """Options of the experiment that finds two planted modules, which the network's neurons and inputs do not reveal."""

    compare: GraphOptions = MISSING
    modularity: ModularityOptions = MISSING

    module: ClassVar[str] = "modules"


@dataclass
class Dictionaries(InteractionBasis):
    """Options of the comparison of SAE dictionaries with the directions that the network reads."""

    saes: list[str] | None = None
    """Folders of saved SAEs; null: train SAEs on a network with directions that it does not read."""
    dictionaries: DictionaryOptions = MISSING

    module: ClassVar[str] = "dictionaries"
