"""Run `experiment=export`: the latents of a saved SAE in the import format of Neuronpedia."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.runs.experiment import no_last_row, prepare_experiment
from crux.runs.life_cycle import ActiveRun, PreparedJob, run_job
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder
from crux.sae.architectures.site import Site
from crux.sae.export_checks import FEATURES, read_text_sizes
from crux.sae.export_options import ExportJob
from crux.sae.formats.neuronpedia import NeuronpediaFeature, NeuronpediaSource, write_neuronpedia
from crux.sae.options import text_name
from crux.sae.read_inputs import ReadInputs, load_inputs
from crux.sae.reading.harvest import Harvest
from crux.sae.reading.neuronpedia_features import neuronpedia_features
from crux.sae.reading.text_page import describe_text_features
from crux.subjects.hooks import parse_hook
from crux.subjects.subject import Subject
from crux.subjects.token_texts import TokenTexts

N_RULES = 3
"""Number of rules of a latent that make its explanation."""


def run(config: ExportJob, *, folder: Path | None) -> RunFolder:
    """Export the latents of a saved SAE.

    Args:
        folder: the run folder, if a sweep has chosen one; None: create a new one.
    """

    def prepare() -> PreparedJob:
        inputs = load_inputs(config)
        site = inputs.load_site(config.sae.path, key="sae.path")
        parse_hook(site.write)  # the export is named after its layer

        def compute(active: ActiveRun) -> Result:
            harvest = _harvest(config, inputs, site)
            return export_for_neuronpedia(config, active.folder.path, inputs.subject, site, harvest, inputs.tokenizer)

        return prepare_experiment(
            config, compute=compute, last_row=no_last_row, params={"n_latents": site.sae.n_latents}
        )

    return run_job(config, folder=folder, prepare=prepare)


def _harvest(config: ExportJob, inputs: ReadInputs, site: Site) -> Harvest:
    """Return the codes of the SAE on the text of the reading, which are in the cache, or on as many held-out tokens as are asked for."""
    if config.read is not None:
        n_fit, n_held_out = read_text_sizes(config.read)
    else:
        n_fit, n_held_out = 2 * config.model.context, config.tokens  # nothing is fitted
    return inputs.harvest(
        site, n_fit=n_fit, n_held_out=n_held_out, force=config.sae.force, with_activations=config.read is not None
    )


def export_for_neuronpedia(
    config: ExportJob, folder: Path, subject: Subject, site: Site, harvest: Harvest, tokenizer: Tokenizer
) -> Result:
    """Write the files into `neuronpedia/` in a folder; return their numbers and a report."""
    text, read_tokens, named = harvest.held_out, TokenTexts(tokenizer), config.neuronpedia
    directions = subject.map_to_residual(site.write, site.sae.dictionary().detach())
    explanations = read_explanations(config.read, harvest) if config.read is not None else None
    features = describe_text_features(
        text, name="SAE", latents=np.arange(site.sae.n_latents), directions=directions, unembed=subject.unembed,
        read_tokens=read_tokens, seed=config.seed,
    )._replace(explanations=explanations)  # fmt: skip
    source = NeuronpediaSource(
        model=named.model_id or Path(subject.name).name, set_name=named.set_name, hook=site.write,
        release=named.release, description=f"SAE at {site.write} of {subject.name}", creator=named.creator,
        creator_id=named.creator_id, dataset=text_name(config.data), n_windows=len(text.windows),
        context=text.windows.shape[1], n_layers=subject.n_layers, d_model=subject.d_model, url=named.url or "",
    )  # fmt: skip
    rows = neuronpedia_features(
        features, text, directions=directions, unembed=subject.unembed, read_tokens=read_tokens,
        with_vectors=named.vectors,
    )  # fmt: skip
    rows = name_explainers(rows, config.read) if config.read is not None else rows
    written = write_neuronpedia(folder / "neuronpedia", source, rows, n=site.sae.n_latents)
    assert features.contexts is not None
    metrics = {
        "latents": float(site.sae.n_latents),
        "alive": float((text.codes.firings() > 0).sum()),
        "contexts": float(len(features.contexts.starts)),
        "explained": float(sum(map(bool, explanations or []))),
        "tokens": float(text.n_tokens),
    }
    lines = [
        f"Neuronpedia's import files of {metrics['latents']:,.0f} latents ({metrics['alive']:,.0f} fire on {text.n_tokens:,} held-out "
        f"tokens), {metrics['contexts']:,.0f} contexts and {metrics['explained']:,.0f} explanations are in",
        str(written),
    ]
    return Result(metrics, [], {}, {}, "\n\n".join(lines))


def read_explanations(path: str, harvest: Harvest) -> list[str]:
    """Return what an LLM has written about each latent in a reading, or else what its rules say; empty where they explain nothing.

    Args:
        path: the run folder of the reading.
        harvest: the codes of the SAE that is exported.

    Raises:
        UserError: if the reading is that of another SAE, or of another text.
    """
    table = pd.read_parquet(Path(path).expanduser() / FEATURES)
    firings = harvest.held_out.codes.firings()
    if len(table) != len(firings) or not np.array_equal(table["firings_held_out"].to_numpy(), firings):
        raise UserError(f"read={path}: reads another SAE than sae.path, or another text or model")
    explained = ~table["unexplained"].to_numpy(bool)
    rules = [join_rules(list(rules)) if good else "" for rules, good in zip(table["rules"], explained, strict=True)]
    written = _read_llm_explanations(table)
    return [text or rule for text, rule in zip(written, rules, strict=True)]


def name_explainers(rows: Iterable[NeuronpediaFeature], path: str) -> Iterator[NeuronpediaFeature]:
    """Yield the latents of an export, those that an LLM has explained with the name of the model.

    Args:
        path: the run folder of the reading.
    """
    folder = Path(path).expanduser()
    written = _read_llm_explanations(pd.read_parquet(folder / FEATURES))
    model = str((RunFolder(folder).read_config().get("llm") or {}).get("model") or "LLM")
    for row in rows:
        yield row._replace(explained_by=model) if written[row.latent] else row


def _read_llm_explanations(table: pd.DataFrame) -> list[str]:
    return list(table["llm_explanation"].fillna("")) if "llm_explanation" in table else [""] * len(table)


def join_rules(rules: list[str]) -> str:
    """Return the conditions of a latent's first rules, such as `␣should; ␣must`, without their codes and counts."""
    return "; ".join(rule.rpartition(" → ")[0] for rule in rules[:N_RULES])
