"""The SAEs of a sweep's finished runs: the directions of their alive latents, and their codes on the same tokens."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.schema import Accelerator, Data, Files, HubData, LanguageModel
from crux.runs.run_folder import RunFolder
from crux.sae.architectures.site import Site
from crux.sae.belonging import saved_hooks
from crux.sae.formats import saelens
from crux.sae.geometry.chance import measure_covariance
from crux.sae.geometry.dictionary import Dictionary, read_dictionary
from crux.sae.loading import load_model, load_tokens
from crux.sae.options import model_source
from crux.sae.reading.harvest import harvest_codes
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.sweeps.finished_runs import EXPERIMENT, HOOK_POINT, FinishedRuns, differences
from crux.subjects.subject import Subject
from crux.subjects.tokenizer import load_tokenizer
from crux.text.held_out import spread_batches
from crux.text.token_file import default_cache
from crux.text.tokens import Tokens
from crux.training.devices import choose_device

MIN_ALIVE = 16
"""Alive latents that an SAE must have to be compared: each latent is compared with its 15 nearest neighbours."""
TOKENS_FOR_COVARIANCE = 65_536
"""Number of training tokens from which the covariance of the activations is computed."""


class SweepSae(NamedTuple):
    """One SAE of a sweep."""

    run: str
    """The folder of its run within the sweep."""
    kind: str
    """The settings in which it differs from other SAEs of the sweep besides the seed and the hook point, such as `e2e`."""
    seed: str
    """SAEs with the same seed begin with the same dictionary, if they also have the same architecture and size."""
    dictionary: Dictionary
    codes: SparseCodes
    """Codes on held-out tokens, the same ones for all SAEs at a place."""


class Place(NamedTuple):
    """A place in a network, and the SAEs of a sweep that read and write there."""

    title: str
    """The hook point; with the network, if the sweep has several."""
    saes: list[SweepSae]
    covariance: Float[Tensor, "d_out d_out"]
    """The covariance of the activation that the SAEs write, at positions ≥ 1."""
    context: int
    """Tokens per window."""
    n_tokens: int
    """Number of held-out tokens; latents that fire on one of them are alive."""
    left_out: list[str]
    """Names of runs whose SAE has fewer than `MIN_ALIVE` alive latents."""


class _SavedSae(NamedTuple):
    path: Path
    run: str
    kind: str
    config: Mapping[str, Any]


def read_places(folder: Path, runs: FinishedRuns) -> Iterator[Place]:
    """Yield the places at which the finished runs of a sweep have SAEs, each with its SAEs.

    The codes are those on `evaluation.tokens` held-out tokens; latents that fire on one of them are alive, as in the metric
    `alive_heldout_<N>` of the runs.

    Raises:
        UserError: if there is no SAE on a language model, or the network or the text cannot be loaded.
    """
    groups: dict[tuple[str, ...], list[_SavedSae]] = {}
    varied = differences(runs).drop(columns=[EXPERIMENT, HOOK_POINT, "layer", "hook_point"], errors="ignore")
    for run, words in zip(varied.index, varied.to_numpy().tolist(), strict=True):
        config = RunFolder(folder / str(run)).read_config()
        if not {"model", "data", "evaluation"} <= config.keys():
            continue  # an SAE on a toy model
        for path in sorted((folder / str(run) / "sae").rglob("cfg.json")):
            read, write = saved_hooks(saelens.load_sae(path.parent)[1])
            saved = _SavedSae(
                path.parent, str(run), " ".join(word for word in words if word not in ("", "None")), config
            )
            groups.setdefault((str(config["model"]), str(config["data"]), str(read), str(write)), []).append(saved)
    if not groups:
        raise UserError(f"{folder} has no SAE on a language model, so there are no dictionaries to compare")
    networks = {model for model, *_ in groups}
    for (_, _, read, write), saved in groups.items():
        title = write if read == write else f"{read} → {write}"
        name = "" if len(networks) == 1 else f"{model_source(_read_model(saved[0].config))}, "
        yield _read_place(name + title, read, write, saved)


def _read_place(title: str, read: str, write: str, saved: list[_SavedSae]) -> Place:
    config = saved[0].config
    model, data, n_tokens = _read_model(config), _read_data(config), int(config["evaluation"]["tokens"])
    subject = load_model(model, device=choose_device(Accelerator.auto), dtype=torch.float32)
    tokens = load_tokens(data, model=model, cache=config.get("cache"))
    batch = int(config["trainer"]["batch"])
    windows = spread_batches(
        tokens.train, context=model.context, batch=batch, n_tokens=min(n_tokens, TOKENS_FOR_COVARIANCE)
    )
    covariance = measure_covariance(subject, hook=write, batches=list(windows))
    saes: list[SweepSae] = []
    left_out: list[str] = []
    for each in saved:
        sae = _read_sae(each, read, write, subject=subject, tokens=tokens, model=model, n_tokens=n_tokens, batch=batch)
        if sae is None:
            left_out.append(each.run)
        else:
            saes.append(sae)
    n_read = min(n_tokens, len(tokens.held_out)) // model.context * model.context
    return Place(title, saes, covariance, model.context, n_read, left_out)


def _read_sae(
    saved: _SavedSae, read: str, write: str, *, subject: Subject, tokens: Tokens, model: LanguageModel, n_tokens: int, batch: int
) -> SweepSae | None:  # fmt: skip
    """Return the SAE with its codes; None if it has too few alive latents."""
    sae = saelens.load_sae(saved.path)[0].to(subject.device)
    cache = saved.config.get("cache")
    harvest = harvest_codes(
        subject, Site(read, write, sae), train=tokens.train, held_out=tokens.held_out, context=model.context,
        n_fit=model.context, n_held_out=n_tokens, end_of_text=load_tokenizer(model_source(model))[1], batch=batch,
        with_activations=False, cache=Path(cache) if cache is not None else default_cache(),
    )  # fmt: skip
    codes = harvest.held_out.codes
    alive = codes.firings() > 0
    if alive.sum() < MIN_ALIVE:
        return None
    seed = str(saved.config["seed"])
    return SweepSae(saved.run, saved.kind, seed, read_dictionary(sae, alive=alive), codes)


def _read_model(config: Mapping[str, Any]) -> LanguageModel:
    return LanguageModel(**config["model"])


def _read_data(config: Mapping[str, Any]) -> Data:
    data = config["data"]
    return HubData(**data) if "revision" in data else Files(**data)
