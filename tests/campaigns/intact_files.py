"""Intact folders of SAEs, models and tokenizers, small enough that thousands of damaged copies take minutes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from crux.sae.formats import saelens
from tests.support.saved_saes import METADATA, make_trained_sae
from tests.support.tiny_subjects import CONFIGS, write_tokenizer

FLAT: dict[str, Any] = {
    "architecture": "standard", "d_in": 6, "d_sae": 20, "activation_fn_str": "relu", "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False, "context_size": 1024, "model_name": "gemma-2b", "hook_name": "blocks.6.hook_resid_post",
    "hook_layer": 6, "hook_head_index": None, "prepend_bos": True, "dataset_path": "HuggingFaceFW/fineweb",
    "normalize_activations": "none", "dtype": "torch.float32", "device": "cuda", "sae_lens_training_version": "5.1.0",
    "activation_fn_kwargs": {}, "model_from_pretrained_kwargs": {"center_writing_weights": False},
}  # fmt: skip
"""The cfg.json of SAELens 3 to 5."""


def write_saes(folder: Path) -> list[Path]:
    """Write SAE folders of every architecture and layout that crux reads, and return them."""
    places = []
    for kind in ("relu", "topk", "jumprelu", "gated"):
        saelens.save_sae(make_trained_sae(kind), folder / kind, METADATA)
        places.append(folder / kind)
    for kind in ("relu", "jumprelu"):
        written = METADATA | {"hook_name_out": "blocks.6.hook_mlp_out"}
        saelens.save_sae(make_trained_sae(kind, d_out=5), folder / f"{kind}_transcoder", written)
        places.append(folder / f"{kind}_transcoder")
    generator = torch.Generator().manual_seed(0)
    W = {"W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in W.items()}
    jb = {key: FLAT[key] for key in ("d_in", "d_sae", "dtype", "context_size", "dataset_path")}
    jb |= {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8}
    topk = FLAT | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    unit = tensors | {"W_dec": torch.nn.functional.normalize(tensors["W_dec"], dim=-1)}
    factor = {"scaling_factor": torch.rand(20, generator=generator)}
    for name, config, content in (
        ("flat", FLAT, tensors),
        ("flat_topk", topk, unit),
        ("res_jb", jb, tensors | {"scaling_factor": torch.ones(20)}),
        ("scaled", FLAT | {"finetuning_scaling_factor": True}, tensors | factor),
    ):
        (folder / name).mkdir()
        (folder / name / "cfg.json").write_text(json.dumps(config))
        save_file(content, folder / name / "sae_weights.safetensors")
        places.append(folder / name)
    return places


def write_models(folder: Path) -> list[Path]:
    """Write a random network of every supported architecture, one of them in two files, and return the folders."""
    places = []
    for kind, make_config in CONFIGS.items():
        config = make_config()
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder / kind)
        weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
        if config.tie_word_embeddings:
            del weights["lm_head.weight"]
        save_file(weights, folder / kind / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(folder / kind)
        places.append(folder / kind)
    sharded = folder / "llama_in_two_files"
    shutil.copytree(folder / "llama", sharded)
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({n: w for n, w in weights.items() if files[n] == file}, sharded / file, metadata={"format": "pt"})
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return [*places, sharded]


TEXT = [f"the quick brown fox number {i} jumps over {i * 7} lazy dogs, and naps" for i in range(50)]


def write_tokenizers(folder: Path) -> list[Path]:
    """Write a folder with a small tokenizer of each kind of model in the tokenizers library, and return the folders."""

    def bytes_bpe() -> Tokenizer:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"]))
        return tokenizer

    def sentencepiece_bpe() -> Tokenizer:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special = ["<unk>", "<|endoftext|>", *(f"<0x{i:02X}>" for i in range(256))]
        tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
        return tokenizer

    def unigram() -> Tokenizer:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        special = ["<unk>", "<|endoftext|>"]
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
        tokenizer.train_from_iterator(TEXT, trainer)
        return tokenizer

    def wordpiece() -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        special = ["<unk>", "<|endoftext|>"]
        tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
        return tokenizer

    places = []
    kinds: dict[str, Callable[[], Tokenizer]] = {
        "bytes_bpe": bytes_bpe, "sentencepiece_bpe": sentencepiece_bpe, "unigram": unigram, "wordpiece": wordpiece,
    }  # fmt: skip
    for name, make in kinds.items():
        (folder / name).mkdir(parents=True)
        make().save(str(folder / name / "tokenizer.json"))
        (folder / name / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
        places.append(folder / name)
    (folder / "word_level").mkdir()
    write_tokenizer(folder / "word_level")
    return [*places, folder / "word_level"]
