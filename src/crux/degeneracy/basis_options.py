"""Options of the experiments with interaction bases: the section `interaction_basis`. Torch-free."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt, MinLen
from omegaconf import MISSING

from crux.config.errors import UserError
from crux.config.schema import Count, Rate

BASES = ("neuron", "random", "pca", "local", "next", "global")
"""Coordinates that are found from a network and data alone."""


class LastBasis(Enum):
    """Coordinates at the last hook point: its principal components, its neurons, or, behind a language model's final norm, its logits'
    principal components."""

    pca = "pca"
    neuron = "neuron"
    logits = "logits"


@dataclass
class GraphOptions:
    """What an interaction graph depends on: its bases, their edges, and how many of these are needed."""

    threshold: Annotated[float, Gt(0), Lt(1)] = MISSING
    """Directions with less than this share of the largest eigenvalue are left out."""
    points: Count | None = MISSING
    """Gauss–Legendre points of the edges' integral; null: the gradient at the activation itself."""
    within: Rate = MISSING
    """What the loss may rise by if few directions or edges are kept, in the loss's unit."""


@dataclass
class CompareOptions(GraphOptions):
    """A comparison of bases: neurons, a random rotation, principal components, local, next-k and global interaction basis."""

    bases: list[str] = MISSING
    """Of neuron, random, pca, local, next (by `ahead`), global."""
    hooks: list[str] = MISSING
    """Hook points, in the network's order; all bases share that of the last one."""
    last: LastBasis = MISSING
    """The basis at the last hook point."""
    ahead: Count | None = None
    """How many of the hook points the next-k basis looks ahead; null if it is not compared."""
    probes: Count | None = MISSING
    """Random signs per sample for the Jacobian Gram; null: exact, a backward pass for every position and direction."""
    samples: Count = MISSING
    """Samples (language models: sequences) that bases and edges are found on."""
    judged: Count = MISSING
    """Other samples, for the ablation; all of them if there are fewer (held-out pairs)."""
    batch: Count = MISSING
    """Samples per pass."""
    directions: Count | None = None
    """Edges are between this many of the strongest directions of each basis; null: all."""
    edge_samples: Count | None = None
    """Edges are found on this many of the samples, the first ones; null: all."""
    edge_ablation: list[str] = MISSING
    """Bases whose edges are also ablated, to count those that are needed: a pass for every direction and count."""

    last_bases: ClassVar[tuple[LastBasis, ...]] = (LastBasis.pca, LastBasis.neuron)
    """What `last` may be."""

    def check_section(self, key: str) -> None:
        if len(self.hooks) < 2:
            raise UserError(f"{key}.hooks={self.hooks}: must name two hook points or more")
        if not self.bases:
            raise UserError(f"{key}.bases=[]: must name one or more of {', '.join(BASES)}")
        for name, wanted, allowed in (
            ("bases", self.bases, BASES),
            ("edge_ablation", self.edge_ablation, (*self.bases, "sae")),
        ):
            if other := [kind for kind in wanted if kind not in allowed]:
                raise UserError(f"{key}.{name}: there is no {other[0]}; allowed are {', '.join(allowed)}")
            if len(set(wanted)) < len(wanted):
                raise UserError(f"{key}.{name}={wanted}: name each once")
        if "next" in self.bases and self.ahead is None:
            raise UserError(f"{key}.ahead=null: the next-k basis needs to know how many hook points it looks ahead")
        if self.last not in self.last_bases:
            raise UserError(
                f"{key}.last={self.last.value}: has no meaning but for language models; "
                f"allowed are {', '.join(basis.value for basis in self.last_bases)}"
            )


@dataclass
class LanguageCompareOptions(CompareOptions):
    """A comparison of bases on a language model."""

    length: Annotated[int, Ge(2)] = MISSING
    """Tokens per sequence."""
    saes: list[str] | None = None
    """Folders of saved SAEs, whose decoders are compared too, each at its hook point."""

    last_bases: ClassVar[tuple[LastBasis, ...]] = tuple(LastBasis)


@dataclass
class ModularityOptions:
    """How modules are looked for in an interaction graph: Leiden (src/crux/degeneracy/modularity.py)."""

    resolution: Rate = MISSING
    """γ; more makes more and smaller modules."""
    iterations: Count = MISSING
    """Cycles of a run, each of which begins where the last one ended."""
    starts: Count = MISSING
    """Runs from scratch, of which the best is kept."""


@dataclass
class AdditionSizes:
    """How large a modular-addition transformer is."""

    p: Count = MISSING
    """It adds numbers mod p."""
    d_model: Count = MISSING
    """Width of the residual stream."""
    n_heads: Count = MISSING
    """Attention heads."""
    d_mlp: Count = MISSING
    """Neurons of the MLP."""

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


@dataclass
class Addition(AdditionSizes):
    """The transformer that adds two numbers mod p, and what it is trained on."""

    train_share: Annotated[float, Gt(0), Lt(1)] = MISSING
    """Share of the p² pairs that are trained on; the others are held out."""
    stop_when_right: bool = MISSING
    """End when every held-out pair is right, not at trainer.max_steps."""

    def check_section(self, key: str) -> None:
        if self.d_model % self.n_heads:
            raise UserError(f"{key}.d_model={self.d_model}: must be a multiple of the {self.n_heads} heads")
        if int(self.train_share * self.p**2) < 1:
            raise UserError(
                f"{key}.train_share={self.train_share}: must be a share of the {self.p**2} pairs, between 0 and 1"
            )


@dataclass
class SmallPerceptron:
    """The perceptron that interaction_basis/mlp trains."""

    hidden: Annotated[list[Count], MinLen(1)] = MISSING
    """Widths of its hidden layers."""
    steps: Count = MISSING
    """Steps of Adam."""
    lr: Rate = MISSING
    """Learning rate, at first."""


@dataclass
class DictionaryOptions:
    """How a dictionary is compared with what the network reads."""

    left_out: Annotated[float, Ge(0), Lt(1)] = MISSING
    """Share of Σ Λ that the directions that count as read may leave out."""
    tokens: Annotated[int, Ge(1024)] = MISSING
    """Held-out tokens on which saved SAEs and their basis are looked at."""


@dataclass
class InteractionBasis:
    """The basis in which a network's layers interact sparsely (Bushnaq et al. 2405.10928)."""

    experiment: str = MISSING
    """The experiment's name in run folders and in MLflow."""

    module: ClassVar[str]
    """Its file in src/crux/degeneracy/experiments."""


@dataclass
class ComparisonExperiment(InteractionBasis):
    """Several bases on one network, and the modules of their interaction graphs."""

    compare: CompareOptions = MISSING
    modularity: ModularityOptions = MISSING


@dataclass
class MlpBases(ComparisonExperiment):
    """Bases on a small perceptron."""

    perceptron: SmallPerceptron = MISSING

    module: ClassVar[str] = "mlp"


@dataclass
class LanguageBases(ComparisonExperiment):
    """Bases on a language model's residual stream."""

    compare: LanguageCompareOptions = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]

    module: ClassVar[str] = "language"


@dataclass
class ModularAdditionTraining(InteractionBasis):
    """The training of a modular-addition transformer."""

    addition: Addition = MISSING

    module: ClassVar[str] = "modular_addition_training"


@dataclass
class ModularAdditionBases(ComparisonExperiment):
    """Bases on a modular-addition transformer."""

    addition: Addition = MISSING
    """The network that is trained if model.path does not name one."""

    module: ClassVar[str] = "modular_addition"


@dataclass
class PlantedModules(InteractionBasis):
    """A network of two modules that nothing shows."""

    compare: GraphOptions = MISSING
    modularity: ModularityOptions = MISSING

    module: ClassVar[str] = "modules"


@dataclass
class Dictionaries(InteractionBasis):
    """Dictionaries of SAEs, compared with what the network reads."""

    saes: list[str] | None = None
    """Folders of saved SAEs; null: SAEs are trained on a network with directions that it does not read."""
    dictionaries: DictionaryOptions = MISSING

    module: ClassVar[str] = "dictionaries"
