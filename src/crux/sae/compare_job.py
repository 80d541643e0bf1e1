"""Run `experiment=read/compare`: several saved SAEs at one hook point, at an equal number of rules and at an equal steering budget."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from crux.runs.experiment import no_last_row, prepare_experiment
from crux.runs.life_cycle import ActiveRun, PreparedJob, run_job
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder
from crux.sae.compare_options import CompareJob
from crux.sae.figures.comparison import draw_comparison
from crux.sae.read_inputs import load_inputs, name_saes
from crux.sae.reading.compare_saes import describe_equal_rules, describe_equal_steering, describe_pairs
from crux.sae.reading.reading_report import table_to_markdown
from crux.sae.reading.section import Reading, Section, compute_section_once
from crux.subjects.token_texts import TokenTexts

TITLES = {
    "equal_rules": "Equally many rules per SAE, given to the latents where they save the network most",
    "steering": "Steering at an equal KL budget on the same contexts: means over directions",
    "steering_differences": "Differences in steering, with 95 % intervals over latents, for latents alone and minus a control",
    "pairs": "How alike dictionaries and codes are, with chance levels",
}
"""Headings of the tables, in their order."""


def run(config: CompareJob, *, folder: Path | None) -> RunFolder:
    """Compare saved SAEs.

    Args:
        folder: the run folder, if a sweep has chosen one; None: create a new one.
    """

    def prepare() -> PreparedJob:
        inputs, options = load_inputs(config), config.comparing
        sites = {
            name: inputs.load_site(path, key=f"saes[{i}]")
            for i, (name, path) in enumerate(zip(name_saes(config.saes), config.saes, strict=True))
        }

        def compute(active: ActiveRun) -> Result:
            readings: dict[str, Reading] = {}
            for name, site in sites.items():
                harvest = inputs.harvest(
                    site, n_fit=options.fit_tokens, n_held_out=options.held_out_tokens, force=config.force
                )
                readings[name] = Reading(
                    inputs.subject, site, harvest, TokenTexts(inputs.tokenizer), config.seed, config.batch
                )
            return compare(config, active, readings=readings)

        return prepare_experiment(config, compute=compute, last_row=no_last_row, params={"n_saes": len(sites)})

    return run_job(config, folder=folder, prepare=prepare)


def compare(config: CompareJob, active: ActiveRun, *, readings: dict[str, Reading]) -> Result:
    """Compare the SAEs part by part; parts that an earlier start has kept are not computed again."""
    options, folder = config.comparing, active.folder.intermediate
    sections: dict[str, Section] = {}
    if options.total_rules:
        sections["equal_rules"] = compute_section_once(
            folder, "equal_rules",
            lambda: describe_equal_rules(readings, totals=sorted(set(options.total_rules)), max_tokens=options.rewriting_tokens),
        )  # fmt: skip
    if options.steered:
        sections["steering"] = compute_section_once(
            folder, "steering",
            lambda: describe_equal_steering(readings, n_latents=options.steered, budget=options.budget),
        )  # fmt: skip
    sections["pairs"] = compute_section_once(folder, "pairs", lambda: describe_pairs(readings))
    tables = {name: table for section in sections.values() for name, table in section.tables.items()}
    metrics = {name: value for section in sections.values() for name, value in section.metrics.items()}
    report = "\n\n".join(
        part
        for name, title in TITLES.items()
        if name in tables
        for part in (f"## {title}", table_to_markdown(tables[name]))
    )
    return Result(metrics, [], draw_comparison(tables), {}, report, summarise_comparison(tables))


def summarise_comparison(tables: Mapping[str, pd.DataFrame]) -> str:
    """Return the main numbers of a comparison in a few lines."""
    lines = []
    if "equal_rules" in tables:
        table = tables["equal_rules"]
        rules = table[(table["rules"] > 0) & (table["SAE"] != "–")]
        for name, rows in rules.groupby("SAE", sort=False):
            shares = ", ".join(f"{share:.3f} by {n:,} rules" for n, share in zip(rows["rules"], rows["R"], strict=True))
            lines.append(f"{name}: share of the SAE's CE that rules recover: {shares}")
    if "steering_differences" in tables:
        clear = tables["steering_differences"].query("low > 0 or high < 0")
        lines.append(
            f"steering: {len(clear)} of {len(tables['steering_differences'])} intervals of differences are without 0"
        )
    return "\n".join([*lines, "all tables: report.md in the run folder"])
