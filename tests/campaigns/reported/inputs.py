"""The inputs of the reported cases: texts, data sets, tiny models, tokenizers and saved SAEs, each made from a fixed seed."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedConfig, PreTrainedModel

from crux.subjects.tokenizer import load_tokenizer
from crux.text.packaged import packaged_documents

WORDS = (
    "the of and to in that he shall unto for his a they be is him not them with it all thou was which my me their ye "
    "but have thee from as are when this out were you upon by up there said then had into on her come one we so an if "
    "house day will man land men or king went also go came let now do people us even no these more before let because "
    "way old great every who your did over down give after over earth god father son good hand years"
).split()


def english_documents(n: int, *, seed: int = 0) -> list[str]:
    """Return random English documents of about 1.5 kB."""
    rng = random.Random(seed)

    def paragraph(length: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(length)).capitalize() + "."

    return ["\n\n".join(paragraph(rng.randint(30, 120)) for _ in range(rng.randint(2, 6))) for _ in range(n)]


def code_documents(n: int) -> list[str]:
    """Return documents of generated Python, a text on which the packaged model is poor."""
    rng = random.Random(3)

    def line(i: int) -> str:
        return f"def f{rng.randint(0, 999)}(x{i}, y): return {{'k{i}': [x{i} ** {rng.randint(2, 9)}, y // {rng.randint(2, 9)}]}}"

    return ["\n".join(line(i) for i in range(60)) for _ in range(n)]


def write_jsonl(path: Path, rows: Sequence[Any], *, key: str = "text") -> Path:
    """Write a row per value; a value may already be a line of JSON (`bytes`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for row in rows:
            file.write((row if isinstance(row, bytes) else json.dumps({key: row}).encode()) + b"\n")
    return path


def write_padded_rows(folder: Path) -> tuple[Path, Path]:
    """Write sentences as token ids, once padded on the right to 128 with an attention mask and once without padding."""
    tokenizer, end_of_text = load_tokenizer("tiny")
    documents = [d.text for source in ("kjv", "moby-dick") for d in packaged_documents(source)]
    sentences = [p for d in documents[:400] for p in d.split("\n") if 60 < len(p) < 400][:6000]
    ids = [[*tokenizer.encode(s, add_special_tokens=False).ids[:127], end_of_text] for s in sentences]
    padded, unpadded = folder / "padded.parquet", folder / "unpadded.parquet"
    table = {
        "input_ids": [row + [end_of_text] * (128 - len(row)) for row in ids],
        "attention_mask": [[1] * len(row) + [0] * (128 - len(row)) for row in ids],
    }
    pq.write_table(pa.table(table), padded)
    pq.write_table(pa.table({"input_ids": ids}), unpadded)
    return padded, unpadded


def write_model(folder: Path, make: Callable[[], tuple[type[PreTrainedModel], PreTrainedConfig]]) -> Path:
    """Write a random network with the packaged tokenizer."""
    model_class, config = make()
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(str(files("crux.assets") / "tiny" / name), folder / name)
    return folder


def small_config(kind: type[PreTrainedConfig], **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a network with 4 blocks of width 64."""
    sizes: dict[str, Any] = {
        "vocab_size": 2048, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
        "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return kind(**(sizes | changes))


def write_llama_tokenizer(folder: Path, documents: Sequence[str]) -> None:
    """Replace a model's tokenizer by one of Llama 2's build: BPE with byte fallback, `▁` for spaces, and a decoder that strips."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, initial_alphabet=[], show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(documents, trainer)
    parts = json.loads(tokenizer.to_str())
    parts["pre_tokenizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "bos_token": "<s>"}), encoding="utf-8"
    )


def write_saelens_folder(
    folder: Path, config: dict[str, Any], **extra: torch.Tensor
) -> tuple[Path, dict[str, np.ndarray]]:
    """Write a random SAE of d_in 128 and d_sae 256 with this cfg.json; return its folder and its weights in float64."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        "W_enc": torch.randn(128, 256, generator=generator) / 11,
        "b_enc": torch.randn(256, generator=generator) / 3,
        "W_dec": torch.randn(256, 128, generator=generator) / 11,
        "b_dec": torch.randn(128, generator=generator),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights | extra, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    return folder, {name: w.double().numpy() for name, w in weights.items()}


SAELENS_5: dict[str, Any] = {
    "architecture": "standard", "d_in": 128, "d_sae": 256, "activation_fn_str": "relu", "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False, "context_size": 1024, "model_name": "gemma-2b",
    "hook_name": "blocks.6.hook_resid_post", "hook_layer": 6, "hook_head_index": None, "prepend_bos": True,
    "dataset_path": "HuggingFaceFW/fineweb", "normalize_activations": "none", "dtype": "torch.float32",
    "device": "cuda", "sae_lens_training_version": "5.1.0", "activation_fn_kwargs": {},
}  # fmt: skip
"""cfg.json as SAELens 5 writes it."""
GPT2_SMALL_RES_JB: dict[str, Any] = {
    "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8,
    "hook_point_head_index": None, "dataset_path": "Skylion007/openwebtext", "context_size": 128, "d_in": 128,
    "d_sae": 256, "dtype": "torch.float32", "b_dec_init_method": "geometric_median", "expansion_factor": 2,
}  # fmt: skip
"""cfg.json in the layout of the published SAEs gpt2-small-res-jb."""
