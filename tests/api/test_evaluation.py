"""Load a subject, an SAE and text in Python, and evaluate the SAE."""

from pathlib import Path
from typing import Any

import pytest
import torch

import crux
from crux.config.errors import UserError
from crux.sae import strongest_contexts


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an SAE that has not been trained, saved as a run saves it."""
    from crux.sae.architectures.relu import ReluSAE
    from crux.sae.formats import saelens

    generator = torch.Generator().manual_seed(0)
    sae = ReluSAE(d_model=128, n_latents=256, init="tied", init_norm=1.0, subtract_b_dec=False, generator=generator)
    metadata = {
        "model_name": "tiny", "hook_name": "blocks.6.hook_resid_pre", "process_weights": False, "context_size": 256,
        "prepend_bos": False, "dataset_path": "packaged",
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("run") / "sae"
    saelens.save_sae(sae, folder, metadata)
    return folder


def test_an_evaluation_has_the_values_of_a_spliced_pass(saved: Path) -> None:
    subject = crux.load_subject("tiny")
    sae, metadata = crux.load_sae(saved)
    assert repr(sae) == "ReluSAE(d_model=128, n_latents=256)"
    text = crux.load_text(subject, n_tokens=512, batch=2)
    clean = subject.clean(text.held_out[0], capture=[metadata["hook_name"]])
    spliced = subject.spliced(clean, {metadata["hook_name"]: sae})
    evaluation = crux.evaluate(subject, sae, hook=metadata["hook_name"], text=text)

    assert clean.final is not None
    assert spliced.final.shape == clean.final.shape == (2, 256, 128)
    assert evaluation.n_tokens == 512
    logits = [h @ subject.unembed.W_U.T for h in (clean.final, spliced.final)]
    labels = text.held_out[0][:, 1:].flatten()
    ce = [torch.nn.functional.cross_entropy(z[:, :-1].flatten(0, 1), labels).item() for z in logits]
    assert evaluation.metrics["ce_clean"] == pytest.approx(ce[0], rel=1e-5)
    assert evaluation.metrics["ce_increase"] == pytest.approx(ce[1] - ce[0], rel=1e-4)
    assert evaluation.metrics["ce_increase"] > 0  # an untrained SAE is a bad one


def test_the_text_of_a_user_is_loaded_in_batches(tmp_path: Path) -> None:
    # paragraphs of 199 words each, in different orders, so that the file is cut into distinct documents
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "in", "an", "old", "wood"]
    lines = [" ".join(words[(i * j) % len(words)] for j in range(1, 200)) for i in range(1, 60)]
    (tmp_path / "own.txt").write_text("\n\n".join(lines))
    text = crux.load_text(crux.load_subject("tiny"), path=tmp_path / "own.txt", n_tokens=256, context=64, batch=4)
    assert text.held_out[0].shape == (4, 64)
    assert text.train[0].shape == (4, 64)


def test_a_transcoder(tmp_path: Path) -> None:
    """An SAE that reads the input of an MLP and writes its output, saved as a run saves it."""
    from crux.sae.architectures.topk import TopKSAE
    from crux.sae.formats import saelens

    subject = crux.load_subject("tiny")
    text = crux.load_text(subject, n_tokens=512, batch=2)
    generator = torch.Generator().manual_seed(0)
    transcoder = TopKSAE(
        d_model=128, n_latents=256, k=8, init="tied", init_norm=1.0, subtract_b_dec=False, generator=generator
    )
    metadata = {
        "model_name": "tiny", "hook_name": "blocks.6.hook_resid_mid", "hook_name_out": "blocks.6.hook_mlp_out",
        "process_weights": False, "context_size": 256, "prepend_bos": False, "dataset_path": "packaged",
    }  # fmt: skip
    saelens.save_sae(transcoder, tmp_path / "sae", metadata)
    sae, found = crux.load_sae(tmp_path / "sae")
    read, write = found["hook_name"], found["hook_name_out"]
    evaluation = crux.evaluate(subject, sae, hook=read, output_hook=write, text=text)

    clean = subject.clean(text.held_out[0], capture=[read, write])
    x_hat = sae(clean.activations[read])
    final = subject.spliced(clean, {write: lambda _: x_hat}).final
    logits = (final @ subject.unembed.W_U.T)[:, :-1].flatten(0, 1)
    ce = torch.nn.functional.cross_entropy(logits, text.held_out[0][:, 1:].flatten()).item()
    assert evaluation.metrics["ce_spliced"] == pytest.approx(ce, rel=1e-5)
    error = (x_hat - clean.activations[write]).square().mean().item()
    assert evaluation.metrics["mse"] == pytest.approx(error, rel=1e-5)
    assert evaluation.metrics["l0"] <= 8


def test_an_sae_is_evaluated_where_it_belongs(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject, (sae, metadata) = crux.load_subject("tiny"), crux.load_sae(saved)
    text = crux.load_text(subject, n_tokens=512, batch=2)
    evaluation = crux.evaluate(subject, sae, text=text)  # the hook point is that of the metadata
    assert evaluation.metrics == crux.evaluate(subject, sae, hook="blocks.6.hook_resid_pre", text=text).metrics
    assert crux.evaluate(subject, sae, hook="blocks.5.hook_resid_post", text=text).metrics["mse"] == pytest.approx(
        evaluation.metrics["mse"]
    )
    with pytest.raises(
        UserError, match=r"^the SAE reads blocks\.6\.hook_resid_pre, not blocks\.6\.hook_mlp_out; force=True"
    ):
        crux.evaluate(subject, sae, hook="blocks.6.hook_mlp_out", text=text)
    with pytest.raises(UserError, match=r"^the SAE writes blocks\.6\.hook_resid_pre, not blocks\.6\.hook_mlp_out"):
        crux.evaluate(subject, sae, hook="blocks.6.hook_resid_pre", output_hook="blocks.6.hook_mlp_out", text=text)
    with pytest.raises(UserError, match=r"process_weights=false, not true; force=True"):
        crux.evaluate(crux.load_subject("tiny", process_weights=True), sae, text=text)
    assert "SAE" not in capsys.readouterr().err  # no note about the SAE; slow machines show progress
    forced = crux.evaluate(subject, sae, hook="blocks.6.hook_mlp_out", text=text, force=True).metrics
    assert "the SAE reads blocks.6.hook_resid_pre, not blocks.6.hook_mlp_out; it is used" in capsys.readouterr().err
    read: dict[str, Any] = {
        "batches": text.held_out,
        "latents": torch.tensor([0]),
        "n_contexts": 1,
        "before": 1,
        "after": 1,
    }
    with pytest.raises(UserError, match=r"^the SAE reads blocks\.6\.hook_resid_pre, not blocks\.5\.hook_resid_pre"):
        strongest_contexts(subject, sae, hook="blocks.5.hook_resid_pre", **read)
    same = ("blocks.6.hook_resid_pre", "blocks.5.hook_resid_post")
    contexts = [strongest_contexts(subject, sae, hook=hook, **read) for hook in same]
    assert torch.equal(contexts[0].tokens, contexts[1].tokens)
    sae.metadata = None  # an SAE that was not loaded can be evaluated anywhere
    assert crux.evaluate(subject, sae, hook="blocks.6.hook_mlp_out", text=text).metrics == forced
    with pytest.raises(UserError, match="give hook="):
        crux.evaluate(subject, sae, text=text)
    sae.metadata = metadata | {"model_name": "gpt2"}
    with pytest.raises(UserError, match="belongs to the model gpt2, not to tiny"):
        crux.evaluate(subject, sae, text=text)


def test_mistakes_are_user_errors(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(UserError, match="no SAE folder at"):
        crux.load_sae(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such folder"):
        crux.load_subject(tmp_path / "nowhere")
    subject, (sae, _) = crux.load_subject("tiny"), crux.load_sae(saved)
    with pytest.raises(UserError, match="context=0: must be 1 or more"):
        crux.load_text(subject, context=0)
    with pytest.raises(UserError, match="batch=-1: must be 1 or more"):
        crux.load_text(subject, batch=-1)
    with pytest.raises(UserError, match="context=257: tiny accepts at most 256"):
        crux.load_text(subject, context=257)
    with pytest.raises(UserError, match="hook points out of order"):
        crux.evaluate(subject, sae, hook="blocks.6.hook_resid_pre", output_hook="blocks.5.hook_mlp_out")
    with pytest.raises(AttributeError, match="load_saes"):
        _ = crux.load_saes
