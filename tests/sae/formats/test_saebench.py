"""Files of SAEBench's core evaluation: written as its schema demands, and read back."""

import json
import math
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from crux.config.errors import UserError
from crux.sae.formats.saebench import (
    CORE_METRICS,
    LATENT_METRICS,
    SaebenchFile,
    read_saebench_core,
    write_saebench_core,
)

NUMBER, STRING, INTEGER = {"type": "number"}, {"type": "string"}, {"type": "integer"}
OPTIONAL = {"type": ["string", "null"]}


def required(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


SCHEMA: dict[str, Any] = required(
    {
        "eval_config": {"type": "object"},
        "eval_id": STRING,
        "datetime_epoch_millis": {"type": "integer", "minimum": 0, "maximum": 9999999999999},
        "eval_result_metrics": required(
            {
                "model_behavior_preservation": required(
                    {"kl_div_score": NUMBER, "kl_div_with_ablation": NUMBER, "kl_div_with_sae": NUMBER}
                ),
                "model_performance_preservation": required(
                    {
                        "ce_loss_score": NUMBER, "ce_loss_with_ablation": NUMBER, "ce_loss_with_sae": NUMBER,
                        "ce_loss_without_sae": NUMBER,
                    }
                ),
                "reconstruction_quality": required(
                    {"explained_variance": NUMBER, "explained_variance_legacy": NUMBER, "mse": NUMBER, "cossim": NUMBER}
                ),
                "shrinkage": required(
                    {
                        "l2_norm_in": NUMBER, "l2_norm_out": NUMBER, "l2_ratio": NUMBER,
                        "relative_reconstruction_bias": NUMBER,
                    }
                ),
                "sparsity": required({"l0": NUMBER, "l1": NUMBER}),
                "token_stats": required(
                    {"total_tokens_eval_reconstruction": INTEGER, "total_tokens_eval_sparsity_variance": INTEGER}
                ),
                "misc_metrics": required(
                    {
                        "freq_over_1_percent": NUMBER, "freq_over_10_percent": NUMBER,
                        "normalized_freq_over_1_percent": NUMBER, "normalized_freq_over_10_percent": NUMBER,
                        "average_max_encoder_cosine_sim": NUMBER, "average_max_decoder_cosine_sim": NUMBER,
                        "frac_alive": NUMBER,
                    }
                ),
            }
        ),
        "sae_bench_commit_hash": STRING,
        "sae_lens_id": OPTIONAL,
        "sae_lens_release_id": OPTIONAL,
        "sae_lens_version": OPTIONAL,
        "sae_cfg_dict": {"type": ["object", "null"]},
    }
) | {"$comment": "the required keys and types of eval_output_schema_core.json in sae-bench 0.6.0"}  # fmt: skip
SCHEMA["properties"]["eval_type_id"] = {"const": "core"}
SCHEMA["properties"]["eval_result_details"] = {
    "type": "array",
    "items": required(
        {
            "index": INTEGER, "feature_density": NUMBER, "consistent_activation_heuristic": NUMBER,
            "encoder_bias": NUMBER, "encoder_norm": NUMBER, "encoder_decoder_cosine_sim": NUMBER,
            "max_decoder_cosine_sim": NUMBER, "max_encoder_cosine_sim": NUMBER,
        }
    ),
}  # fmt: skip

VALUES = {category: {name: 0.25 + i for i, name in enumerate(names)} for category, names in CORE_METRICS.items()}
VALUES["token_stats"] = dict.fromkeys(VALUES["token_stats"], 84)
LATENTS = {name: [0.1 * i, 1 / 3, -2.0] for i, name in enumerate(LATENT_METRICS)}


def write(path: Path, latents: dict[str, list[float]] = LATENTS) -> dict[str, Any]:
    write_saebench_core(
        path, metrics=VALUES, latents=latents, model="tiny", dataset="packaged", context=7, batch=4, n_batches=3,
        release="crux", sae_id="topk", sae_config={"architecture": "topk", "d_in": 6}, notes={"centred": 0.5},
    )  # fmt: skip
    return json.loads(path.read_text())


def test_a_file_has_the_schema_of_saebench(tmp_path: Path) -> None:
    content = write(tmp_path / "core.json")
    jsonschema.validate(content, SCHEMA)
    if path := os.environ.get("SAEBENCH_CORE_SCHEMA"):  # the file in an unpacked release of sae-bench
        jsonschema.validate(content, json.loads(Path(path).read_text()))
    broken = json.loads(json.dumps(content))
    del broken["eval_result_metrics"]["sparsity"]["l1"]
    with pytest.raises(jsonschema.ValidationError, match="l1"):
        jsonschema.validate(broken, SCHEMA)
    assert content["eval_config"]["n_eval_reconstruction_batches"] == 3
    assert content["eval_config"]["batch_size_prompts"] == 4
    assert content["eval_result_details"][1]["feature_density"] == pytest.approx(1 / 3, abs=1e-10)


def test_a_file_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "core.json")
    found = read_saebench_core(tmp_path / "core.json")
    assert isinstance(found, SaebenchFile)
    assert found.metrics == VALUES
    assert found.latents["encoder_bias"] == pytest.approx(LATENTS["encoder_bias"], abs=1e-10)
    assert (found.release, found.sae_id) == ("crux", "topk")
    assert found.sae_config == {"architecture": "topk", "d_in": 6}
    assert found.notes["centred"] == 0.5
    assert "not by SAEBench" in found.notes["note"]


def test_nan_is_written_as_in_saebench(tmp_path: Path) -> None:
    content = write(tmp_path / "core.json", LATENTS | {"consistent_activation_heuristic": [math.nan, 1.0, math.inf]})
    assert [row["consistent_activation_heuristic"] for row in content["eval_result_details"]] == [-1, 1.0, -1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval_type_id": "autointerp"}, "not a file of SAEBench's core evaluation; its eval_type_id is 'autointerp'"),
        ({"eval_result_metrics": {"sparsity": {"l0": "many"}}}, "l0 is not a number, but 'many'"),
        ({"eval_result_metrics": [1]}, r"eval_result_metrics is not an object, but \[1\]"),
        ({"eval_result_details": {"index": 0}}, "eval_result_details is not a list of objects"),
        ({"eval_result_details": [{"index": 0, "a": 1}, {"index": 1}]}, "do not all have the same numbers"),
    ],
)
def test_a_file_that_is_none_is_an_error_of_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "core.json"
    path.write_text(json.dumps(write(path) | change))
    with pytest.raises(UserError, match=message):
        read_saebench_core(path)


def test_an_older_file_without_details_is_read(tmp_path: Path) -> None:
    path = tmp_path / "core.json"
    content = write(path)
    del content["eval_result_metrics"]["reconstruction_quality"]["explained_variance_legacy"]
    path.write_text(json.dumps(content | {"eval_result_details": None, "sae_cfg_dict": None}))
    found = read_saebench_core(path)
    assert found.latents == {}
    assert found.metrics["reconstruction_quality"]["mse"] == VALUES["reconstruction_quality"]["mse"]
