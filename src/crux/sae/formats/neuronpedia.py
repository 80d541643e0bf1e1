"""Writing latents in Neuronpedia's import layout: JSON lines that its importer, and anything else, can read.

{folder}/{model}/{layer}-{set}/ release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl, features/batch-N.jsonl.gz,
activations/batch-N.jsonl.gz and, if there are any, explanations/batch-N.jsonl.gz. The importer takes the columns of a table from its first
line, so every line of a file has the same keys, in Neuronpedia's names. Unlike SAEDashboard's, groups of contexts are of equal size by the
rank of the code among the tokens on which the latent fires.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from crux.config.errors import UserError
from crux.config.files import replacing_folder
from crux.config.progress import track
from crux.subjects.hooks import parse_hook

FEATURES_PER_BATCH = 256

EPOCH = "1970-01-01T00:00:00"
"""Time of creation of all lines, unless one is given: the same export has the same bytes."""


class NeuronpediaSource(NamedTuple):
    """What an export says of the SAE and its text."""

    model: str
    """Neuronpedia's id of the model."""
    set_name: str
    """Name of the set of SAEs, such as `res-crux-e2e`."""
    hook: str
    """TransformerLens name of the hook point whose activation is reconstructed."""
    release: str
    """Name of the release that the set belongs to."""
    description: str
    creator: str
    """Name of who made the SAE."""
    creator_id: str
    """Neuronpedia's id of the account to which everything belongs."""
    dataset: str
    """Where the text is from."""
    n_windows: int
    """Number of windows that were read."""
    context: int
    """Number of tokens of a window."""
    n_layers: int
    """Number of layers of the model."""
    d_model: int
    url: str = ""
    created: str = EPOCH
    """Time of creation, as in ISO 8601."""

    @property
    def source(self) -> str:
        """Neuronpedia's id of the SAE, such as `6-res-crux-e2e`."""
        return f"{parse_hook(self.hook).layer}-{self.set_name}"


class NeuronpediaContext(NamedTuple):
    """A context of a latent."""

    tokens: Sequence[str]
    values: Sequence[float]
    """The latent's code on each token."""
    peak: int
    """Index of the token for which the context was chosen."""
    bounds: tuple[float, float]
    """Smallest and largest code of the group of tokens from which it was drawn."""
    contains: float
    """Share of all tokens that are in that group; −1: it is one of the strongest contexts."""


class NeuronpediaFeature(NamedTuple):
    """A latent."""

    latent: int
    """Its index in the dictionary."""
    density: float
    """Share of tokens on which it fires."""
    maximum: float
    """Largest code."""
    vector: Sequence[float]
    """Its direction; empty: none is exported."""
    promoted: Sequence[tuple[str, float]]
    """Tokens whose logits it raises most, with the effects."""
    suppressed: Sequence[tuple[str, float]]
    code_histogram: tuple[Sequence[float], Sequence[float]]
    """Numbers of tokens, and the middles of the bins."""
    logit_histogram: tuple[Sequence[float], Sequence[float]]
    """Numbers of vocabulary tokens by logit effect, and the middles of the bins."""
    neighbours: Sequence[tuple[int, float]]
    """The most similar latents, with the cosines."""
    contexts: Sequence[NeuronpediaContext]
    explanation: str = ""
    """What it responds to, in words; empty: no explanation."""
    explained_by: str = "crux rules"
    """Name of the method or the model that wrote the explanation."""


def write_neuronpedia(
    folder: Path, source: NeuronpediaSource, features: Iterable[NeuronpediaFeature], *, n: int
) -> Path:
    """Write the export of an SAE, completely or not at all, and return its folder; one that is there already is replaced.

    Args:
        folder: in which `{model}/{layer}-{set}` is written.
        features: the latents; memory holds 256 of them.
        n: their number, for the progress.

    Raises:
        UserError: if a name cannot be part of a path, or the disk is full.
    """
    for name in (source.model, source.set_name):
        if not name or "/" in name or "\\" in name or name.startswith("."):
            raise UserError(f"{name!r} cannot be the name of a folder of an export for Neuronpedia")
    final = folder / source.model / source.source
    remaining = iter(features)
    with replacing_folder(final) as written:
        for name, row in _describe(source).items():
            (written / f"{name}.jsonl").write_text(_line(row), "utf-8")
        for number in track(range(-(-n // FEATURES_PER_BATCH)), "writing features"):
            batch = list(islice(remaining, FEATURES_PER_BATCH))
            _write_batch(written, "features", number, [_feature_row(source, feature) for feature in batch])
            _write_batch(
                written, "activations", number, [row for feature in batch for row in _activation_rows(source, feature)]
            )
            if explained := [feature for feature in batch if feature.explanation]:
                _write_batch(
                    written, "explanations", number, [_explanation_row(source, feature) for feature in explained]
                )
    return final


def _describe(source: NeuronpediaSource) -> dict[str, dict[str, Any]]:
    """Return the only line of each of the four files about the SAE as a whole."""
    common = {"creatorId": source.creator_id, "visibility": "PUBLIC", "createdAt": source.created}
    urls = [source.url] if source.url else []
    return {
        "release": {
            "name": source.release, "description": source.description, "descriptionShort": source.description, "urls": urls,
            "creatorName": source.creator, "creatorNameShort": source.creator, "creatorEmail": None, "isNewUi": False, "featured": False,
            "defaultSourceSetName": source.set_name, "defaultSourceId": source.source, "defaultUmapSourceIds": [], **common,
        },
        "model": {
            "id": source.model, "instruct": False, "displayNameShort": source.model, "displayName": source.model, "tlensId": None,
            "dimension": source.d_model, "defaultSourceSetName": None, "defaultSourceId": None, "inferenceEnabled": False,
            "layers": source.n_layers, "neuronsPerLayer": 0, "owner": "", "website": None, "updatedAt": source.created, **common,
        },
        "sourceset": {
            "modelId": source.model, "name": source.set_name, "hasDashboards": True, "description": source.description, "type": "",
            "creatorName": source.creator, "urls": urls, "creatorEmail": None, "releaseName": source.release, "defaultOfModelId": None,
            "defaultRange": 1, "defaultShowBreaks": True, "showDfa": False, "showCorrelated": False, "showHeadAttribution": False,
            "showUmap": False, **common,
        },
        "source": {
            "id": source.source, "modelId": source.model, "setName": source.set_name, "hasDashboards": True, "inferenceEnabled": False,
            "inferenceHosts": [], "saelensConfig": None, "saelensRelease": None, "saelensSaeId": None, "hfRepoId": None,
            "hfFolderId": None, "defaultOfModelId": None, "hasUmap": False, "hasUmapLogSparsity": False, "hasUmapClusters": False,
            "num_prompts": source.n_windows, "num_tokens_in_prompt": source.context, "dataset": source.dataset, "notes": None, **common,
        },
    }  # fmt: skip


def _feature_row(source: NeuronpediaSource, feature: NeuronpediaFeature) -> dict[str, Any]:
    has_vector = len(feature.vector) > 0
    return {
        "modelId": source.model, "layer": source.source, "index": str(feature.latent), "sourceSetName": source.set_name,
        "creatorId": source.creator_id, "createdAt": source.created, "maxActApprox": feature.maximum, "hasVector": has_vector,
        "vector": list(feature.vector), "vectorLabel": None, "vectorDefaultSteerStrength": feature.maximum if has_vector else None,
        "hookName": source.hook, "topkCosSimIndices": [latent for latent, _ in feature.neighbours],
        "topkCosSimValues": [cosine for _, cosine in feature.neighbours],
        **{f"neuron_alignment_{name}": [] for name in ("indices", "values", "l1")},
        **{f"correlated_{of}_{name}": [] for of in ("neurons", "features") for name in ("indices", "pearson", "l1")},
        "neg_str": [text for text, _ in feature.suppressed], "neg_values": [effect for _, effect in feature.suppressed],
        "pos_str": [text for text, _ in feature.promoted], "pos_values": [effect for _, effect in feature.promoted],
        "frac_nonzero": feature.density, "freq_hist_data_bar_heights": list(feature.code_histogram[0]),
        "freq_hist_data_bar_values": list(feature.code_histogram[1]), "logits_hist_data_bar_heights": list(feature.logit_histogram[0]),
        "logits_hist_data_bar_values": list(feature.logit_histogram[1]), "decoder_weights_dist": [],
    }  # fmt: skip


def _activation_rows(source: NeuronpediaSource, feature: NeuronpediaFeature) -> list[dict[str, Any]]:
    rows = []
    for number, context in enumerate(feature.contexts):
        values = list(context.values)
        place = f"{source.model}/{source.source}/{feature.latent}/{number}"
        rows.append({
            "id": "c" + hashlib.blake2b(place.encode(), digest_size=12).hexdigest(), "tokens": list(context.tokens), "dataIndex": None,
            "index": str(feature.latent), "layer": source.source, "modelId": source.model, "dataSource": source.dataset,
            "maxValue": max(values), "maxValueTokenIndex": values.index(max(values)), "minValue": min(values), "values": values,
            "dfaValues": [], "dfaTargetIndex": None, "dfaMaxValue": None, "creatorId": source.creator_id, "createdAt": source.created,
            "lossValues": [], "logitContributions": None, "binMin": context.bounds[0], "binMax": context.bounds[1],
            "binContains": context.contains, "qualifyingTokenIndex": context.peak,
        })  # fmt: skip
    return rows


def _explanation_row(source: NeuronpediaSource, feature: NeuronpediaFeature) -> dict[str, Any]:
    place = f"{source.model}/{source.source}/{feature.latent}/explanation"
    return {
        "id": "c" + hashlib.blake2b(place.encode(), digest_size=12).hexdigest(), "modelId": source.model, "layer": source.source,
        "index": str(feature.latent), "description": feature.explanation, "authorId": source.creator_id, "typeName": None,
        "explanationModelName": feature.explained_by, "scoreV2": None, "createdAt": source.created,
    }  # fmt: skip


def _write_batch(folder: Path, table: str, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / table).mkdir(exist_ok=True)
    content = "".join(map(_line, rows)).encode()
    (folder / table / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(content, 6, mtime=0))


def _line(row: Mapping[str, Any]) -> str:
    """Return a line of JSON; NUL, which a database cannot hold, and what is not a number are refused or replaced."""
    return json.dumps(_clean(row), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _clean(value: Any) -> Any:
    """Return a value with ␀ in place of NUL and ? in place of lone surrogates, and shorter decimal fractions."""
    if isinstance(value, str):
        return value.replace("\0", "␀").encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value
