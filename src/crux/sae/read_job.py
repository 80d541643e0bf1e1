"""Run `experiment=read`: what activates each latent of a saved SAE, and what the network does with it."""

from pathlib import Path

import numpy as np
import torch

from crux.config.files import write_text
from crux.config.json_files import read_json_object
from crux.runs.experiment import no_last_row, prepare_experiment
from crux.runs.life_cycle import ActiveRun, PreparedJob, run_job
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder
from crux.sae.architectures.site import Site
from crux.sae.figures.reading_figures import draw_reading
from crux.sae.loading import text_source
from crux.sae.options import text_name
from crux.sae.read_checks import find_sae_folder
from crux.sae.read_inputs import ReadInputs, load_inputs, name_saes
from crux.sae.read_options import ReadJob
from crux.sae.reading.harvest import Harvest, ReadText
from crux.sae.reading.probing_section import GiveLabels
from crux.sae.reading.read_latents import read_latents
from crux.sae.reading.reading_page import render_reading_page
from crux.sae.reading.reading_report import summarise_reading, write_report
from crux.sae.reading.saebench_section import write_saebench_file
from crux.sae.reading.section import OtherSae, Reading
from crux.sae.reading.source_labels import label_packaged_sources
from crux.sae.saved_config import CONFIG
from crux.subjects.token_texts import TokenTexts
from crux.text.sources import PackagedText


def run(config: ReadJob, *, folder: Path | None) -> RunFolder:
    """Read the latents of a saved SAE.

    Args:
        folder: the run folder, if a sweep has chosen one; None: create a new one.
    """

    def prepare() -> PreparedJob:
        inputs = load_inputs(config)
        site = inputs.load_site(config.sae.path, key="sae.path")
        other = None if config.against is None else inputs.load_site(config.against, key="against")

        def compute(active: ActiveRun) -> Result:
            return read(config, active, inputs=inputs, site=site, other=other)

        return prepare_experiment(
            config, compute=compute, last_row=no_last_row, params={"n_latents": site.sae.n_latents}
        )

    return run_job(config, folder=folder, prepare=prepare)


def read(config: ReadJob, active: ActiveRun, *, inputs: ReadInputs, site: Site, other: Site | None) -> Result:
    """Read the latents, and write features.parquet; return metrics, figures and the report."""

    def harvest(one: Site) -> Harvest:
        return inputs.harvest(
            one, n_fit=config.reading.fit_tokens, n_held_out=config.reading.held_out_tokens, force=config.sae.force
        )

    subject, tokenizer, tokens = inputs.subject, inputs.tokenizer, inputs.tokens
    reading = Reading(subject, site, harvest(site), TokenTexts(tokenizer), config.seed, config.batch)
    names = ["SAE"] if config.against is None else name_saes([config.sae.path, config.against])
    give_sources: GiveLabels | None = None
    if isinstance(text_source(config.data), PackagedText):
        streams = {"fit": tokens.train, "held_out": tokens.held_out}

        def label_sources(read: ReadText, side: str) -> dict[str, np.ndarray]:
            return label_packaged_sources(read, streams[side], tokenizer=tokenizer, end_of_text=inputs.end_of_text)

        give_sources = label_sources
    second = None if other is None else OtherSae(names[1], other, harvest(other))
    found = read_latents(
        reading, config.reading, llm=config.llm, sizes=config.report_sizes, folder=active.folder.intermediate, other=second,
        force=config.sae.force, given_labels=give_sources,
    )  # fmt: skip
    if "saebench" in found.sections:
        sae_folder = find_sae_folder(Path(config.sae.path), key="sae.path")
        write_saebench_file(
            active.folder.path / "saebench_core.json", found.sections["saebench"], model=subject.name,
            dataset=text_name(config.data), context=config.model.context, sae_id=Path(config.sae.path).resolve().name,
            sae_config=read_json_object(sae_folder / CONFIG),
        )  # fmt: skip
    found.features.to_parquet(active.folder.path / "features.parquet")
    page = render_reading_page(
        reading, found.features, found.rules, title=config.run_name(), facts=describe_reading(config, reading),
        n_rules=config.reading.n_rules, effects_unit=f"Δ log-probability at a KL of {config.reading.budget:g} nats",
        other=second, name=names[0],
    )  # fmt: skip
    write_text(active.folder.path / "latents.html", page)
    tables = {name: section.tables for name, section in found.sections.items()}
    figures = draw_reading(found.features, tables, n_rules=config.reading.n_rules)
    arrays = {
        name: torch.tensor(found.features[name].to_numpy(np.float64, na_value=np.nan))
        for name in found.features.columns
        if found.features[name].dtype.kind in "fib"
    }
    report = write_report(found, reading, n_rules=config.reading.n_rules)
    summary = summarise_reading(found, n_rules=config.reading.n_rules)
    return Result(found.metrics, [], figures, arrays, report, summary)


def describe_reading(config: ReadJob, reading: Reading) -> dict[str, str]:
    """Return the facts that the page shows under its title."""
    return {
        "SAE": config.sae.path, "hook point": reading.site.read, "model": reading.subject.name,
        "training tokens for rules": f"{reading.harvest.fit.n_tokens:,}",
        "held-out tokens": f"{reading.harvest.held_out.n_tokens:,}",
    }  # fmt: skip
