"""The export for Neuronpedia: its layout, its keys, and that its numbers are those of the SAE."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crux.config.errors import UserError
from crux.sae.architectures.site import Site
from crux.sae.evaluation.latents import logit_effects
from crux.sae.figures.features_page_data import Neighbours, PageRule, SaeFeatures
from crux.sae.formats.neuronpedia import NeuronpediaFeature, NeuronpediaSource, write_neuronpedia
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.neuronpedia_features import neuronpedia_features
from crux.sae.reading.quick_read import read_batches
from crux.sae.reading.text_page import describe_text_features
from crux.subjects.token_texts import TokenText
from tests.support.small_saes import make_random_sae
from tests.support.toy_subject import make_random_toy

HOOK = "blocks.1.hook_resid_pre"
SOURCE = NeuronpediaSource(
    "toy", "res-crux", HOOK, "crux", "made up", "me", "id0", "random tokens", 40, 16, 3, 6, "https://example.org"
)
NAMES = {3: "a\0b", 4: "</s>"}


def read_tokens(ids: Sequence[int]) -> list[TokenText]:
    return [TokenText(NAMES.get(token, f"t{token}"), joined=False) for token in ids]


def make_inputs() -> tuple[SaeFeatures, ReadText, dict[str, Any], Any]:
    toy = make_random_toy(seed=0)
    sae = make_random_sae(d_model=toy.d_model, n_latents=300, seed=0)
    batches = torch.randint(11, (40, 16), generator=torch.Generator().manual_seed(0)).split(16)
    text = read_batches(toy, Site(HOOK, HOOK, sae), batches)
    inputs: dict[str, Any] = {
        "directions": sae.dictionary().detach(),
        "unembed": toy.unembed,
        "read_tokens": read_tokens,
    }
    features = describe_text_features(text, name="x", latents=np.arange(300), **inputs)
    neighbours = Neighbours(np.tile([5, -1], (300, 1)), np.tile([0.5, 0.0], (300, 1)), None)
    rules = [[PageRule((4, 5), 1.0, 3, 0.5), PageRule(("first token",), 1.0, 3, 0.5)], *([] for _ in range(299))]
    return features._replace(neighbours=neighbours, rules=rules), text, inputs, sae


def read_lines(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.decode().splitlines()]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features, text, inputs, _ = make_inputs()
    rows = neuronpedia_features(features, text, **inputs, with_vectors=True)
    return write_neuronpedia(tmp_path_factory.mktemp("exports"), SOURCE, rows, n=300)


def test_the_layout(exported: Path) -> None:
    assert exported.parts[-2:] == ("toy", "1-res-crux")
    files = sorted(str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file())
    batches = [f"{table}/batch-{n}.jsonl.gz" for table in ("activations", "features") for n in (0, 1)]
    assert files == sorted(
        [
            *batches,
            "explanations/batch-0.jsonl.gz",
            *(f"{n}.jsonl" for n in ("model", "release", "source", "sourceset")),
        ]
    )
    assert len(read_lines(exported / "features/batch-0.jsonl.gz")) == 256
    (source,) = read_lines(exported / "source.jsonl")
    assert (source["id"], source["setName"], source["num_prompts"], source["num_tokens_in_prompt"]) == (
        "1-res-crux",
        "res-crux",
        40,
        16,
    )
    (release,), (model,) = read_lines(exported / "release.jsonl"), read_lines(exported / "model.jsonl")
    assert release["defaultSourceId"] == "1-res-crux"
    assert (model["id"], model["layers"], model["dimension"]) == ("toy", 3, 6)


def test_every_line_of_a_table_has_the_same_keys(exported: Path) -> None:
    """The importer takes the columns from the first line."""
    for table in ("features", "activations"):
        rows = [row for n in (0, 1) for row in read_lines(exported / table / f"batch-{n}.jsonl.gz")]
        assert len({tuple(row) for row in rows}) == 1
        assert all(isinstance(row["index"], str) for row in rows)
    activations = [row for n in (0, 1) for row in read_lines(exported / f"activations/batch-{n}.jsonl.gz")]
    assert len({row["id"] for row in activations}) == len(activations)


def test_numbers_are_those_of_the_sae(exported: Path) -> None:
    _, text, inputs, sae = make_inputs()
    dense = text.codes.matrix().toarray()
    rows = [row for n in (0, 1) for row in read_lines(exported / f"features/batch-{n}.jsonl.gz")]
    assert [row["index"] for row in rows] == [str(i) for i in range(300)]
    np.testing.assert_allclose([row["frac_nonzero"] for row in rows], (dense > 0).mean(0), rtol=1e-5)
    np.testing.assert_allclose([row["maxActApprox"] for row in rows], dense.max(0), rtol=1e-5)
    np.testing.assert_allclose([row["vector"] for row in rows], sae.dictionary().detach().numpy(), rtol=1e-5)
    lens = logit_effects(inputs["directions"], inputs["unembed"], n_top=8)
    assert rows[7]["pos_str"][0] == read_tokens([int(lens.promoted[7, 0])])[0].text.replace("\0", "␀")
    assert rows[7]["neg_values"] == pytest.approx(lens.suppressed_effects[7].tolist(), rel=1e-5)
    assert sum(rows[7]["logits_hist_data_bar_heights"]) == 11  # the vocabulary
    assert sum(rows[7]["freq_hist_data_bar_heights"]) == (dense[:, 7] > 0).sum()
    assert (rows[7]["topkCosSimIndices"], rows[7]["topkCosSimValues"]) == ([5], [0.5])


def test_contexts_are_parts_of_the_text_with_exact_codes_and_true_quantiles(exported: Path) -> None:
    features, text, _, _ = make_inputs()
    dense, contexts = text.codes.matrix().toarray(), features.contexts
    assert contexts is not None
    rows = [row for n in (0, 1) for row in read_lines(exported / f"activations/batch-{n}.jsonl.gz")]
    assert len(rows) == len(contexts.starts)
    latents = np.repeat(np.arange(300), np.diff(contexts.offsets))
    for i in range(0, len(rows), 37):
        row, latent, start = rows[i], latents[i], contexts.starts[i]
        codes = dense[start : start + contexts.lengths[i], latent]
        assert row["index"] == str(latent)
        assert row["values"] == pytest.approx(codes.tolist(), rel=1e-5)
        assert row["maxValueTokenIndex"] == codes.argmax()
        tokens = [
            part.text.replace("\0", "␀") for part in read_tokens(text.tokens[start : start + len(codes)].tolist())
        ]
        assert row["tokens"] == tokens
        firing = np.sort(dense[:, latent][dense[:, latent] > 0])[::-1]
        peak, group = codes[row["qualifyingTokenIndex"]], contexts.groups[i]
        assert row["binMin"] * (1 - 1e-5) <= peak <= row["binMax"] * (1 + 1e-5)
        if group == 0:
            assert row["binContains"] == -1
        elif group <= 5:
            members = firing[len(firing) * (group - 1) // 5 : len(firing) * group // 5]
            assert (row["binMin"], row["binMax"]) == pytest.approx((members[-1], members[0]), rel=1e-5)
            assert row["binContains"] == pytest.approx(len(members) / text.n_tokens, rel=1e-5)


def test_rules_become_an_explanation_where_there_is_no_better_one(exported: Path) -> None:
    (row,) = read_lines(exported / "explanations/batch-0.jsonl.gz")
    assert (row["index"], row["description"], row["explanationModelName"]) == (
        "0",
        "“</s>”“t5”; first token",
        "crux rules",
    )


def test_what_a_database_cannot_hold_is_replaced_or_refused(tmp_path: Path) -> None:
    bare = NeuronpediaFeature(0, 0.0, 0.0, [], [("a\0\ud800", 1.0)], [], ([], []), ([], []), [], [])
    folder = write_neuronpedia(tmp_path, SOURCE, [bare], n=1)
    (row,) = read_lines(folder / "features/batch-0.jsonl.gz")
    assert row["pos_str"] == ["a␀?"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_neuronpedia(tmp_path, SOURCE, [bare._replace(maximum=float("nan"))], n=1)
    assert read_lines(folder / "features/batch-0.jsonl.gz") == [row]  # the export that was there is unchanged
    with pytest.raises(UserError, match="cannot be the name"):
        write_neuronpedia(tmp_path, SOURCE._replace(set_name="../x"), [bare], n=1)
