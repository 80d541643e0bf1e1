"""Read the latents of an SAE: every part of the reading in turn, each kept in the run folder when it is done."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from crux.config.progress import progress
from crux.sae.llm.llm_section import describe_explanations
from crux.sae.llm_options import Llm
from crux.sae.read_options import Reading as ReadingOptions
from crux.sae.reading.directions_section import describe_directions
from crux.sae.reading.fit_rules import fit_rule_lists
from crux.sae.reading.influence import Influence
from crux.sae.reading.probing_section import GiveLabels, describe_probing
from crux.sae.reading.rules import Rules
from crux.sae.reading.rules_section import describe_activation
from crux.sae.reading.saebench_section import describe_saebench
from crux.sae.reading.section import OtherSae, Reading, Section, compute_section_once
from crux.sae.reading.use_section import describe_effects, describe_influence, describe_steering
from crux.sae.reading.whole_section import describe_geometry, describe_residual, describe_rewriting


class LatentsReading(NamedTuple):
    """Everything that was found out about the latents of an SAE."""

    features: pd.DataFrame
    """One row per latent, with all numbers of all parts; columns of parts that do not cover a latent are empty there."""
    sections: Mapping[str, Section]
    """The parts: activation, influence, effects, steering, rewriting, residual, probing, saebench, geometry, llm."""
    rules: Mapping[int, Rules]
    """The rules of all latents, by their number per latent."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of all parts, by name."""
        return {name: value for section in self.sections.values() for name, value in section.metrics.items()}


def read_latents(
    reading: Reading,
    options: ReadingOptions,
    *,
    llm: Llm,
    sizes: Sequence[int],
    folder: Path,
    other: OtherSae | None,
    force: bool,
    given_labels: GiveLabels | None = None,
) -> LatentsReading:
    """Compute all parts of a reading, or read those that an earlier start has kept.

    Args:
        llm: the LLM that explains latents, if it has an address.
        sizes: numbers of rules per latent in the tables.
        folder: folder in which the parts are kept.
        other: an SAE whose dictionary and codes are compared.
        force: as in `evaluate_sae`.
        given_labels: further properties of the text that are probed, see `describe_probing`.
    """
    sections: dict[str, Section] = {}
    later = _Later(reading, options, sizes)

    def add(name: str, wanted: bool, compute: Callable[[], Section]) -> None:
        if wanted:
            with _announce(name):
                sections[name] = compute_section_once(folder, name, compute)

    # first, since an endpoint may refuse, and the other parts take longer
    add("llm", llm.base_url is not None, lambda: describe_explanations(reading, llm))
    add("activation", True, later.activation)
    add("influence", options.influence_windows > 0, later.influence)
    add(
        "effects", options.effects > 0 and options.influence_windows > 0,
        lambda: describe_effects(reading, later.measured, n_latents=options.effects, budget=options.budget),
    )  # fmt: skip
    add(
        "steering", options.steered > 0,
        lambda: describe_steering(reading, n_latents=options.steered, budget=options.budget),
    )  # fmt: skip
    add(
        "rewriting", options.rewriting_tokens > 0,
        lambda: describe_rewriting(reading, later.rules, max_tokens=options.rewriting_tokens),
    )  # fmt: skip
    add(
        "residual", options.residual_tokens > 0,
        lambda: describe_residual(reading, max_tokens=options.residual_tokens, force=force),
    )  # fmt: skip
    add(
        "directions", options.residual_tokens > 0,
        lambda: describe_directions(reading, max_tokens=options.residual_tokens // 2, force=force),
    )  # fmt: skip
    add(
        "probing", options.probing > 0,
        lambda: describe_probing(reading, n_tokens=options.probing, given=given_labels),
    )  # fmt: skip
    add(
        "saebench", options.saebench_tokens > 0,
        lambda: describe_saebench(reading, max_tokens=options.saebench_tokens, force=force),
    )  # fmt: skip
    add(
        "geometry", True,
        lambda: describe_geometry(reading, other=other, meta_sae_steps=options.meta_sae_steps),
    )  # fmt: skip
    if "llm" in sections:
        sections["llm"] = sections.pop("llm")  # the columns of all latents precede those of some
    features = pd.concat([section.features for section in sections.values()], axis=1)
    return LatentsReading(features.reindex(range(reading.n_latents)).rename_axis("latent"), sections, later.rules)


class _Later:
    """What later parts need of earlier ones; computed again if an earlier start has kept only its table."""

    def __init__(self, reading: Reading, options: ReadingOptions, sizes: Sequence[int]) -> None:
        self._reading, self._options, self._sizes = reading, options, sizes
        self._rules: dict[int, Rules] | None = None
        self._influence: Influence | None = None

    def activation(self) -> Section:
        section, self._rules = describe_activation(
            self._reading, sizes=self._sizes, n_rules=self._options.n_rules, n_controls=self._options.controls
        )
        return section

    def influence(self) -> Section:
        section, self._influence = describe_influence(
            self._reading, n_windows=self._options.influence_windows, n_draws=self._options.influence_draws,
            n_ablations=self._options.ablations, n_controls=self._options.controls,
        )  # fmt: skip
        return section

    @property
    def rules(self) -> dict[int, Rules]:
        if self._rules is None:
            sizes = sorted({*self._sizes, self._options.n_rules})
            self._rules = fit_rule_lists(self._reading.fit_text, self._reading.harvest.fit.codes, sizes=sizes)
        return self._rules

    @property
    def measured(self) -> Influence:
        if self._influence is None:
            self._influence = describe_influence(
                self._reading, n_windows=self._options.influence_windows, n_draws=self._options.influence_draws,
                n_ablations=0, n_controls=0,
            )[1]  # fmt: skip
        return self._influence


@contextmanager
def _announce(name: str) -> Iterator[None]:
    """Show which part is being computed."""
    with progress(f"part of the reading: {name}", total=None):
        yield
