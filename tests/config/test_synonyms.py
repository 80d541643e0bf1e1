"""Names of other libraries: each leads to a key or an option that exists, whatever the job and however it is typed."""

import re
from collections.abc import Callable

import pytest

from crux.config.catalogue import list_groups, option_files
from crux.config.registry import known_keys
from crux.config.synonyms import NO_EQUIVALENT, OPTION_SYNONYMS, SYNONYMS


def test_every_synonym_leads_to_a_key_of_some_job() -> None:
    for name, synonym in SYNONYMS.items():
        assert all(key in known_keys() or key in list_groups() for key in synonym.keys), name
    assert len(SYNONYMS) >= 40


def test_no_synonym_hides_a_key() -> None:
    assert not {*SYNONYMS, *NO_EQUIVALENT} & set(known_keys())
    assert not SYNONYMS.keys() & NO_EQUIVALENT.keys()


def test_notes_name_keys_that_exist() -> None:
    texts = [*NO_EQUIVALENT.values(), *(synonym.note for synonym in SYNONYMS.values())]
    named = {key for text in texts for key in re.findall(r"\b[a-z]\w*\.[a-z]\w*(?:\.\w+)?", text)}
    assert named
    assert named <= set(known_keys())


def test_every_other_name_of_an_option_leads_to_an_option() -> None:
    for (group, name), ours in OPTION_SYNONYMS.items():
        assert ours in option_files(group)
        assert name not in option_files(group)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("expansion_factor=8", "expansion_factor: called sae.ratio here"),
        ("sae.expansion_factor=8", "sae.expansion_factor: called sae.ratio here"),
        ("+sae.expansion_factor=8", "sae.expansion_factor: called sae.ratio here"),
        ("d_sae=8192", "d_sae: called sae.n_latents or sae.ratio here"),
        ("--l1_coefficient=5", "--l1_coefficient: called sparsity here"),
        ("--expansion-factor=5", "--expansion-factor: called sae.ratio here"),
        ("hook_name=blocks.6.hook_resid_pre", "hook_name: called hook_point here"),
        ("training_tokens=1000000", "training_tokens: called trainer.max_steps here (in optimiser steps"),
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val: called optimizer.clip here"),
        ("+trainer.gradient_clip_val=1", "trainer.gradient_clip_val: called optimizer.clip here"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches: called trainer.accumulate here"),
        ("trainer.max_epochs=2", "trainer.max_epochs: called trainer.max_steps here"),
        ("saes.dict_size_to_input_ratio=60", "saes.dict_size_to_input_ratio: called sae.ratio here"),
        ("logger=wandb", "logger: called tracking here"),
        ("wandb_project=mine", "wandb_project: called tracking.experiment here"),
        ("max_steps=5", "max_steps: called trainer.max_steps here"),
        ("resample_steps=100", "resample_steps: does not exist: dead latents are revived by AuxK"),
        ("sae=standard", "sae=standard: called sae=relu here"),
        ("model=gpt2-small", "model=gpt2-small: called model=gpt2 here"),
        # jobs that do not have our key
        ("k=32", "k: called sae.k here, but this job does not have it; sae=batch_topk, sae=gradient_topk"),
        ("sae=topk k=32", "k: called sae.k here"),
        ("experiment=pretrain lr=0.1", "lr: called pretrain.lr here"),
        ("experiment=pretrain d_model=64", "d_model: called pretrain.d_model here"),
        ("experiment=toy/basic lr=0.1", "lr: called optimizer.lr here"),
        ("experiment=toy/basic n_features=8", "n_features: called toy.n_features here"),
        (
            "experiment=toy/basic expansion_factor=8",
            "expansion_factor: called sae.ratio here, but this job does not have it; the main job has it",
        ),
        ("+experiment_name=x", "experiment_name: called tracking.experiment here"),
        ("--foo=1", "--foo: no such flag; keys have no dashes: key=value"),
    ],
)
def test_a_name_of_another_library_is_translated(
    words: str, message: str, run_crux: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_crux(*words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"crux: {message}")
