"""Where a saved SAE belongs: hook points, model and weight processing are compared with its metadata."""

from pathlib import Path
from typing import Any

import pytest

from crux.config.errors import UserError
from crux.sae import belonging
from crux.sae.belonging import Place, check_belonging, is_same_model
from crux.subjects.model_names import hub_name

HERE = Place("gpt2", True, "blocks.4.hook_resid_pre", "blocks.4.hook_resid_pre")
METADATA = {"model_name": "gpt2", "hook_name": "blocks.4.hook_resid_pre", "process_weights": True}


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    """Forget the notes of other tests: each note is printed once per process."""
    belonging._note.cache_clear()


def check(metadata: dict[str, Any], place: Place = HERE, *, force: bool = False) -> None:
    check_belonging(metadata, place, what="the SAE", force=force, insist="sae.force=true")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_name": "gpt2-small"},
        {"model_name": "openai-community/gpt2"},
        {"model_name": "/moved/models/gpt2"},
        {"model_name": "/home/me/.cache/huggingface/hub/models--openai-community--gpt2/snapshots/607a30d"},
        {"hook_name": "blocks.3.hook_resid_post"},  # the same activation
        {"hook_name_out": None},
        {"hook_name_out": "blocks.4.hook_resid_pre", "hook_head_index": None},
        {"process_weights": None, "model_from_pretrained_kwargs": {"center_writing_weights": True}},
    ],
)
def test_sae_in_its_place(changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    check(METADATA | changes)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_name": "blocks.5.hook_resid_pre"}, "reads blocks.5.hook_resid_pre, not blocks.4.hook_resid_pre"),
        ({"hook_name": "blocks.4.hook_resid_post"}, "reads blocks.4.hook_resid_post, not"),
        ({"hook_name": "blocks.4.hook_mlp_out"}, "reads blocks.4.hook_mlp_out, not"),
        ({"hook_name_out": "blocks.4.hook_mlp_out"}, "writes blocks.4.hook_mlp_out, not blocks.4.hook_resid_pre"),
        ({"hook_head_index": 0}, "reads head 0 alone"),
        ({"model_name": "gpt2-medium"}, "belongs to the model gpt2-medium, not to gpt2"),
        ({"model_name": "gpt2-xl"}, "belongs to the model gpt2-xl"),
        ({"process_weights": False}, "belongs to a model with process_weights=false, not true"),
        (
            {"process_weights": None, "model_from_pretrained_kwargs": {}},
            "belongs to a model with process_weights=false",
        ),
    ],
)
def test_sae_at_another_place(changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=rf"^the SAE {message}.*; sae\.force=true uses it nevertheless$"):
        check(METADATA | changes)
    assert capsys.readouterr().err == ""
    check(METADATA | changes, force=True)
    assert f"the SAE {message}" in capsys.readouterr().err


def test_written_hook_of_a_transcoder() -> None:
    transcoder = METADATA | {"hook_name_out": "blocks.4.hook_mlp_out"}
    check(transcoder, HERE._replace(write="blocks.4.hook_mlp_out"))
    with pytest.raises(UserError, match=r"writes blocks\.4\.hook_mlp_out, not blocks\.5\.hook_mlp_out"):
        check(transcoder, HERE._replace(write="blocks.5.hook_mlp_out"))


def test_heads_are_changed_by_another_step_of_the_processing() -> None:
    heads = HERE._replace(read="blocks.4.attn.hook_z", write="blocks.4.attn.hook_z")
    kwargs = {"center_writing_weights": True}
    metadata = {"model_name": "gpt2", "hook_name": "blocks.4.attn.hook_z", "model_from_pretrained_kwargs": kwargs}
    with pytest.raises(UserError, match="process_weights=false, not true"):
        check(metadata, heads)
    check(metadata | {"model_from_pretrained_kwargs": {"fold_value_biases": True}}, heads)


def test_missing_metadata_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    check_belonging({"hook_name": HERE.read}, HERE, what="a: the SAE", force=False, insist="force=True")
    assert (
        capsys.readouterr().err
        == "crux: a: the SAE does not say its model or weight processing, which could not be compared\n"
    )
    with pytest.raises(UserError, match="reads blocks"):  # what is there is compared
        check({"hook_name": "blocks.1.hook_resid_pre"})


def test_a_bos_token_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    check(METADATA | {"prepend_bos": True})
    assert "begin with a BOS token, which crux does not add" in capsys.readouterr().err


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a/model", "b/model", "gpt2"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/model")
    monkeypatch.chdir(tmp_path)
    assert is_same_model("a/model", str(tmp_path / "a" / "model"))
    assert is_same_model("link", "a/model/")
    assert not is_same_model("a/model", "b/model")  # the last parts are equal, but both are here and differ
    assert is_same_model("/elsewhere/a/model", "b/model")  # moved, perhaps
    assert is_same_model("pythia-70m", "EleutherAI/pythia-70m")
    assert not is_same_model("EleutherAI/pythia-70m", "someone/pythia-70m")
    assert is_same_model("gpt2", str(tmp_path / "gpt2"))
    assert not is_same_model("tiny", "gpt2")
    assert is_same_model("pythia-350m-deduped", "EleutherAI/pythia-410m-deduped")  # as in TransformerLens
    assert is_same_model("Llama-2-7b", "meta-llama/Llama-2-7b-hf")
    assert not is_same_model("Llama-2-7b", "meta-llama/Llama-2-7b-chat-hf")
    assert hub_name("gpt2-small") == "gpt2"
    assert hub_name("tiny") == "tiny"
    assert not is_same_model("a\0b", "gpt2")
