"""What the files of a folder describe, computed without crux, and compared with what crux loads from them."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.sae import SAE
from crux.sae.belonging import Place, check_belonging
from crux.sae.formats.saelens import load_sae
from crux.subjects.load import load_subject
from crux.subjects.processing import SUPPORTED
from crux.subjects.tokenizer import load_tokenizer

STRINGS = ("model_name", "hook_name", "hook_name_out", "dataset_path", "sae_lens_version")
PLACE = Place("tiny", False, "blocks.6.hook_resid_pre", "blocks.6.hook_resid_pre")


def compare_sae(folder: Path, rng: random.Random) -> str:
    """Load an SAE; check weights, metadata and function."""
    sae, metadata = load_sae(folder)
    for name, parameter in sae.named_parameters():
        values = parameter.exp() if name.startswith("log_") else parameter
        assert parameter.dtype is torch.float32, f"{name} is {parameter.dtype}"
        assert values.isfinite().all(), f"{name} is not finite"
    for key in STRINGS:
        assert metadata.get(key) is None or isinstance(metadata[key], str), f"metadata {key} is {metadata[key]!r}"
    assert type(metadata.get("context_size", 1)) is int or metadata["context_size"] is None
    assert isinstance(metadata.get("process_weights", False), bool | None)
    json.dumps(metadata)
    try:
        check_belonging(metadata, PLACE, what=f"{folder}: the SAE", force=False, insist="force=True")
        place = "in its place"
    except UserError:
        place = "at another place"
    x = torch.randn(50, sae.d_model, generator=torch.Generator().manual_seed(1))
    return f"{_compare_function(folder, sae, x)}, {place}"


def _compare_function(folder: Path, sae: SAE, x: Tensor) -> str:
    config = json.loads((folder / "cfg.json").read_text("utf-8-sig"))
    tensors = load_file(folder / "sae_weights.safetensors")
    want, near_ties = describe_sae(config, {name: tensor.double() for name, tensor in tensors.items()}, x.double())
    with torch.no_grad():
        found = sae(x).double()
    scale = want.abs().max()
    if not want.isfinite().all() or scale > 1e25 or any(t.abs().max() > 1e15 for t in tensors.values()):
        return "numbers too large to compare"
    # rounding may decide otherwise whether a latent fires
    wrong = ~torch.isclose(found, want, rtol=1e-3, atol=float(1e-4 * scale) + 1e-6).all(-1) & ~near_ties
    assert not wrong.any(), f"x̂ differs by up to {(found - want)[wrong].abs().max():.3g}, scale {scale:.3g}"
    return "with the described function"


def describe_sae(config: dict[str, Any], W: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x̂ by SAELens's formulas in float64, and for each token whether a latent is within rounding of its threshold."""
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    k = config.get("k", config.get("activation_fn_kwargs", {}).get("k"))
    u = (x - W["b_dec"] if config.get("apply_b_dec_to_input", True) else x) @ W["W_enc"]
    norm, margin = W["W_dec"].norm(dim=-1), torch.full((len(x),), torch.inf, dtype=torch.float64)
    match architecture:
        case "gated":
            gate = u + W["b_gate"]
            c = (gate > 0) * torch.relu(u * W["r_mag"].exp() + W["b_mag"])
            margin = gate.abs().min(-1).values / gate.abs().max()
        case "jumprelu" | "jumprelu_transcoder":
            pre = u + W["b_enc"]
            c = torch.relu(pre) * (pre > W["threshold"])
            margin = (pre - W["threshold"].clamp_min(0)).abs().min(-1).values / pre.abs().max()
        case _ if architecture == "topk" or activation == "topk":
            pre = u + W["b_enc"]
            score = pre * norm if config.get("rescale_acts_by_decoder_norm", False) else pre
            top = score.topk(min(k + 1, score.shape[-1]), dim=-1)
            values = pre.gather(-1, top.indices[:, :k])
            c = torch.zeros_like(pre).scatter(-1, top.indices[:, :k], values.relu())
            if top.values.shape[1] > k:
                margin = (top.values[:, k - 1] - top.values[:, k]) / score.abs().max()
        case _:
            c = torch.relu(u + W["b_enc"])
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        c = c * W[name] if name in W else c
    return c @ W["W_dec"] + W["b_dec"], ~(margin > 1e-5)


def compare_model(folder: Path, rng: random.Random) -> str:
    """Load a model, sometimes with processed weights; check its weights, and its log-probabilities against Hugging Face's eager ones."""
    from transformers import AutoModelForCausalLM

    kind = _read_kind(folder)
    processed = kind in SUPPORTED and rng.random() < 0.4
    subject = load_subject(folder, process_weights=processed)
    for name, parameter in subject.model.named_parameters():
        assert parameter.dtype is torch.float32, f"{name} is {parameter.dtype}"
        assert parameter.isfinite().all(), f"{name} is not finite"
    tokens = torch.randint(0, subject.d_vocab, (2, min(9, subject.n_ctx)), generator=torch.Generator().manual_seed(0))
    clean = subject.clean(tokens, capture=["blocks.0.hook_resid_pre"])
    assert clean.final is not None
    unembed = subject.unembed
    logits = clean.final @ unembed.W_U.T + (0 if unembed.b_U is None else unembed.b_U)
    logits = logits if unembed.softcap is None else unembed.softcap * torch.tanh(logits / unembed.softcap)
    largest = max(float(parameter.abs().max()) for parameter in subject.model.parameters())
    if largest > 1e15:
        return "numbers too large to compare"  # the short sequence on which crux tries a network may not overflow
    assert logits.isfinite().all(), "logits are not finite"
    try:
        theirs = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True
        )
    except Exception:
        return "which transformers alone does not load"  # keys that crux leaves out
    with torch.no_grad():
        want = theirs(tokens, use_cache=False).logits.log_softmax(-1)
    difference = (logits.log_softmax(-1) - want).abs().max()
    large = (
        max(float(p.detach().abs().max()) for p in theirs.parameters()) > 100
    )  # rounding errors grow with the weights
    assert large or difference < 1e-3, f"log-probabilities differ by {difference:.3g}"
    return "processed" if processed else "with the described function"


def _read_kind(folder: Path) -> object:
    path = folder / "config.json"
    try:
        return (
            json.loads(path.read_text("utf-8-sig")).get("model_type") if path.is_file() else None
        )  # a pipe would not end
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def compare_tokenizer(folder: Path, rng: random.Random) -> str:
    """Load a tokenizer and encode a text that it was trained on."""
    tokenizer, end_of_text = load_tokenizer(folder)
    assert tokenizer.id_to_token(end_of_text) is not None, f"no token {end_of_text}"
    try:
        ids = tokenizer.encode("the quick brown fox, 123", add_special_tokens=False).ids
    except Exception as error:
        if "unk" not in str(error).lower():
            raise
        return "which has no token for unknown characters"
    tokenizer.decode(ids)
    return "which encodes and decodes"
