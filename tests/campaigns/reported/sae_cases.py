"""Reported cases about SAEs, networks and the latents page."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import crux
from tests.campaigns.reported.case import QUICK, Observation, Workplace, case, combine, expect_refusal, expect_success
from tests.campaigns.reported.inputs import (
    GPT2_SMALL_RES_JB,
    SAELENS_5,
    english_documents,
    small_config,
    write_jsonl,
    write_llama_tokenizer,
    write_model,
    write_saelens_folder,
)
from tests.support.html_blocks import HtmlBlocks

ROOT = Path(__file__).resolve().parents[3]


def compare_with_formula(sae: Any, weights: dict[str, np.ndarray], *, subtract_b_dec: bool) -> float:
    """Return the largest difference between an SAE and x̂ = ReLU((x − b_dec) W_enc + b_enc) W_dec + b_dec in float64."""
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(1)).double().numpy()
    centred = x - weights["b_dec"] if subtract_b_dec else x
    codes = np.maximum(centred @ weights["W_enc"] + weights["b_enc"], 0)
    return float(
        np.abs(
            sae(torch.from_numpy(x).float()).double().detach().numpy() - (codes @ weights["W_dec"] + weights["b_dec"])
        ).max()
    )


@case(3, "a SAELens 5 folder", correct="the flat keys come back as metadata; the function is the formula's")
def saelens_5(work: Workplace) -> Observation:
    folder, weights = write_saelens_folder(work.folder / "v5", SAELENS_5)
    work.commands.append("crux.load_sae(<folder with a flat cfg.json>)")
    sae, metadata = crux.load_sae(folder)
    wanted = {key: SAELENS_5[key] for key in ("hook_name", "model_name", "context_size", "prepend_bos", "dataset_path")}
    error = compare_with_formula(sae, weights, subtract_b_dec=True)
    kept = all(metadata.get(key) == value for key, value in wanted.items())
    return Observation(kept and error < 1e-4, f"metadata {sorted(metadata)}, error {error:.1e}")


@case(
    4,
    "the layout of gpt2-small-res-jb",
    correct="a missing architecture means standard; scaling_factor of ones is left out",
)
def res_jb(work: Workplace) -> Observation:
    work.commands.append("crux.load_sae(<folder without architecture, with scaling_factor>)")
    observed = []
    for name, extra in (("plain", {}), ("scaled", {"scaling_factor": torch.ones(256)})):
        folder, weights = write_saelens_folder(work.folder / name, GPT2_SMALL_RES_JB, **extra)
        sae, metadata = crux.load_sae(folder)
        error = compare_with_formula(sae, weights, subtract_b_dec=True)
        kept = metadata.get("hook_name") == "blocks.8.hook_resid_pre"
        observed.append(
            Observation(kept and error < 1e-4, f"{name}: hook_name {metadata.get('hook_name')}, error {error:.1e}")
        )
    return combine(observed)


def read_contexts(work: Workplace) -> str:
    """Return the texts from which the contexts on the newest run's latents page are taken."""
    blocks = HtmlBlocks(next(work.run_folder().glob("latents*.html")).read_text("utf-8"))
    texts = blocks.manifest["pieces"]["texts"]
    return "".join(texts[piece] for piece in blocks.store(0).tolist())


@case(7, "the latents page for Chinese, emoji and Hebrew", correct="whole characters; no U+FFFD")
def page_in_every_script(work: Workplace) -> Observation:
    text = "\n\n".join(
        f"第{i}章。人工智能的研究者想知道网络在计算什么。😀👩‍👩‍👧 שלום עולם <b>x</b> &amp; \n" * 12 for i in range(60)
    )  # fmt: skip
    (work.folder / "zh_html.txt").write_text(text, encoding="utf-8")
    outcome = work.run(
        "loss=local", "layer=4", "debug=limit", "trainer.max_steps=20", "evaluation.tokens=2048", "evaluation.latents=8",
        "tracking=none", "trainer.progress=false", f"data.path={work.folder / 'zh_html.txt'}",
    )  # fmt: skip
    if outcome.code:
        return expect_success(outcome)
    contexts = read_contexts(work)
    bad, good = contexts.count("\ufffd"), len(re.findall("[\u4e00-\u9fff\u0590-\u05ff]|😀", contexts))
    return Observation(bad == 0 and good > 50, f"{bad:,} U+FFFD, {good:,} Chinese, Hebrew and emoji characters")


@case(8, "the latents page for a Llama 2 tokenizer", correct="spaces between the words")
def sentencepiece_spaces(work: Workplace) -> Observation:
    documents = english_documents(300)
    model = write_model(work.folder / "llama_spm", lambda: (LlamaForCausalLM, small_config(LlamaConfig)))
    write_llama_tokenizer(model, documents)
    outcome = work.run(
        "loss=local", "layer=2", "debug=limit", "trainer.max_steps=10", "evaluation.tokens=2048", "evaluation.latents=4",
        "tracking=none", "trainer.progress=false", f"model.path={model}",
        f"data.path={write_jsonl(work.folder / 'docs.jsonl', documents)}",
    )  # fmt: skip
    if outcome.code:
        return expect_success(outcome)
    words = {w for d in documents for w in re.findall(r"\w+", d)}
    shown = re.findall(r"[A-Za-z]+", read_contexts(work))
    long = [w for w in shown if len(w) > 12 and w not in words]
    known = sum(w in words for w in shown)
    return Observation(
        known > 0.6 * len(shown) and len(long) < 0.02 * len(shown), f"{known:,} of {len(shown):,} words are the text's"
    )


@case(11, "GPT-NeoX without attention bias, weights processed", correct="log-probabilities unchanged to 2e-5")
def missing_bias(work: Workplace) -> Observation:
    model = write_model(
        work.folder / "neox_nobias", lambda: (GPTNeoXForCausalLM, small_config(GPTNeoXConfig, attention_bias=False))
    )
    tokens = torch.randint(0, 2048, (2, 64), generator=torch.Generator().manual_seed(0))
    logits = []
    for process in (False, True):
        subject = crux.load_subject(model, process_weights=process)
        final, unembed = subject.clean(tokens, capture=[]).final, subject.unembed
        assert final is not None
        scores = final @ unembed.W_U.T + (0 if unembed.b_U is None else unembed.b_U)
        logits.append(scores.log_softmax(-1))
    difference = float((logits[0] - logits[1]).abs().max())
    text = write_jsonl(work.folder / "docs.jsonl", english_documents(300))
    outcome = work.run(
        "loss=local", "layer=2", *QUICK, f"model.path={model}", "model.process_weights=true", f"data.path={text}"
    )
    return expect_success(outcome, also=difference < 2e-5, observed=f"log-probabilities within {difference:.1e}")


@case(17, "an SAE at the wrong place", correct="refused, naming both places; an option insists")
def wrong_place(work: Workplace) -> Observation:
    trained = work.run("sae=topk", "layer=4", *QUICK)
    if trained.code:
        return expect_success(trained)
    sae = work.run_folder() / "sae"
    start = ("sae=topk", *QUICK, f"sae.start_from={sae}")
    refusals = [
        expect_refusal(work.run(*start, "layer=2"), "blocks.4.hook_resid_pre"),
        expect_refusal(work.run(*start, "hook_point=blocks.6.hook_mlp_out"), "blocks.4.hook_resid_pre"),
        expect_success(work.run(*start, "layer=4")),
    ]
    subject, (loaded, _) = crux.load_subject("tiny"), crux.load_sae(sae)
    work.commands.append('crux.evaluate(subject, sae, hook="blocks.2.hook_resid_pre")')
    try:
        crux.evaluate(subject, loaded, hook="blocks.2.hook_resid_pre")
        refusals.append(Observation(False, "crux.evaluate: not refused"))
    except crux.UserError as error:
        refusals.append(Observation("blocks.4.hook_resid_pre" in str(error), f"crux.evaluate: {error}"))
    return combine(refusals)


def run_tests(work: Workplace, *tests: str) -> Observation:
    """Run tests of this repository and return whether they passed."""
    work.commands.append(f"pytest {' '.join(tests)}")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *tests], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return Observation(ended.returncode == 0, (ended.stdout.strip().splitlines() or ["nothing"])[-1])


@case(25, "which explained variance", correct="1 − Σ‖x−x̂‖² / Σ‖x−mean‖², sums and mean over the whole set (tests)")
def explained_variance(work: Workplace) -> Observation:
    return run_tests(work, "tests/sae/evaluation/test_evaluate_sae.py")


@case(26, "AuxK: decoder bias counted twice, error not detached", correct="the paper's formula without b_dec (tests)")
def auxk(work: Workplace) -> Observation:
    return run_tests(work, "tests/sae/losses/test_auxk.py")


@case(27, "real configurations of supported networks", correct="log-probabilities of Hugging Face to 3e-5 (tests)")
def configurations(work: Workplace) -> Observation:
    return run_tests(work, "tests/subjects/test_subject.py", "tests/subjects/test_weight_processing.py")


@case(
    28,
    "inside the MLP, behind the norm, queries",
    correct="not offered: refused in one line with the nearest hook points",
)
def other_hook_points(work: Workplace) -> Observation:
    places = ("blocks.4.mlp.hook_post", "blocks.4.attn.hook_q", "hook_embed", "ln_final.hook_normalized")
    return combine(
        [expect_refusal(work.run("loss=local", *QUICK, f"hook_point={place}"), "hook_point") for place in places]
    )


@case(30, "Qwen, Mistral, OPT, Phi", correct="not offered: refused in one line that names the architecture")
def other_networks(work: Workplace) -> Observation:
    model = write_model(work.folder / "qwen", lambda: (GPT2LMHeadModel, small_config(GPT2Config)))
    config = (model / "config.json").read_text("utf-8")
    (model / "config.json").write_text(config.replace('"gpt2"', '"qwen2"'))
    return expect_refusal(work.run("loss=local", "layer=2", *QUICK, f"model.path={model}"), "qwen2")


@case(33, "other people's files", correct="not offered: one line each")
def other_formats(work: Workplace) -> Observation:
    work.commands.append("crux.load_sae(<sparsify's folder>)")
    folder = work.folder / "sparsify"
    folder.mkdir()
    (folder / "cfg.json").write_text('{"activation": "topk", "k": 32, "d_in": 128, "expansion_factor": 32}')
    (folder / "sae.safetensors").write_bytes(b"")
    try:
        crux.load_sae(folder)
    except crux.UserError as error:
        return Observation("\n" not in str(error), str(error)[:160])
    return Observation(False, "loaded")


@case(34, "learning coefficient with one temperature, one chain", correct="the known value within its error (tests)")
def learning_coefficient(work: Workplace) -> Observation:
    return run_tests(work, "tests/llc/test_llc.py")


@case(35, "sparsity or density", correct="the share of non-zero features is the density (tests)")
def density(work: Workplace) -> Observation:
    return run_tests(work, "tests/toy/test_features.py")
