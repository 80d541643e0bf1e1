"""The results of one part of a reading: columns with one value per latent, tables, and metrics; they are kept in files of the run."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from crux.config.files import replacing_folder
from crux.sae.architectures.site import Site
from crux.sae.evaluation.typical_activation import measure_typical_activation
from crux.sae.reading.controls import get_activations
from crux.sae.reading.directions import ActivationMoments, measure_moments
from crux.sae.reading.fit_text import FitText, prepare_fit
from crux.sae.reading.harvest import Harvest
from crux.sae.reading.rule_texts import token_names
from crux.sae.reading.token_classes import TokenClasses, classify_tokens
from crux.subjects.subject import Subject
from crux.subjects.token_texts import TokenTexts

FEATURES, METRICS = "features.parquet", "metrics.json"


class Section(NamedTuple):
    """The results of one part."""

    features: pd.DataFrame
    """One row per latent, with the latent's index as the index; NaN where a latent has no value. It may have no columns."""
    tables: Mapping[str, pd.DataFrame]
    """Tables of the report, by name."""
    metrics: Mapping[str, float]
    """Numbers about the whole dictionary, by name."""


class OtherSae(NamedTuple):
    """A second SAE of the same subject, next to the one that is read."""

    name: str
    site: Site
    harvest: Harvest
    """Its codes on the text on which the first one is read."""


@dataclass
class Reading:
    """What every part of a reading needs; what several parts need and takes long is computed once, when it is first needed."""

    subject: Subject
    site: Site
    """The folded SAE, with the hook points at which it is read."""
    harvest: Harvest
    """Its codes and activations."""
    texts: TokenTexts | None
    """Decodes tokens; None if the subject has no tokenizer."""
    seed: int
    batch: int
    """Windows per pass."""

    @property
    def n_latents(self) -> int:
        """Number of latents of the SAE."""
        return self.harvest.fit.codes.n_latents

    @cached_property
    def names(self) -> list[str]:
        """Each token as it is printed in rules."""
        return token_names(self.texts, self.subject.d_vocab)

    @cached_property
    def classes(self) -> TokenClasses:
        """The classes of all tokens."""
        return classify_tokens(self.texts, self.subject.d_vocab)

    @cached_property
    def fit_text(self) -> FitText:
        """The candidates for rules on the fit text."""
        fit = self.harvest.fit
        return prepare_fit(fit.windows, fit.begins, self.classes)

    @cached_property
    def moments(self) -> ActivationMoments:
        """The moments of the activations that the SAE reads, on the fit text."""
        return measure_moments(get_activations(self.harvest.fit))

    @cached_property
    def mean_written(self) -> Float[np.ndarray, "d_out"]:
        """The mean over the fit text of the activation that the SAE replaces, in float64."""
        if self.site.read == self.site.write:
            return self.moments.mean
        batches = list(self.harvest.fit.batches(self.batch))
        return (
            measure_typical_activation(self.subject, hook=self.site.write, batches=batches).mean.double().cpu().numpy()
        )


def compute_section_once(folder: Path, name: str, compute: Callable[[], Section]) -> Section:
    """Return the section that an earlier start of the run has kept in a folder; otherwise compute and keep it."""
    place = folder / name
    if place.exists():
        try:
            return read_section(place)
        except (OSError, ValueError, KeyError):
            shutil.rmtree(place)
    section = compute()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing_folder(place) as written:
        section.features.to_parquet(written / FEATURES)
        for table, content in section.tables.items():
            content.to_parquet(written / f"table_{table}.parquet")
        (written / METRICS).write_text(json.dumps(dict(section.metrics)), encoding="utf-8")
    return read_section(place)


def read_section(folder: Path) -> Section:
    """Return the section that `compute_section_once` has kept in a folder.

    Raises:
        OSError, ValueError, KeyError: if the folder is damaged.
    """
    tables = {
        path.stem.removeprefix("table_"): pd.read_parquet(path) for path in sorted(folder.glob("table_*.parquet"))
    }
    metrics = json.loads((folder / METRICS).read_text("utf-8"))
    return Section(pd.read_parquet(folder / FEATURES), tables, metrics)


def no_features() -> pd.DataFrame:
    """Return the features of a section that has none."""
    return pd.DataFrame(index=pd.Index([], name="latent", dtype="int64"))
