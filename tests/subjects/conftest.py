"""Tiny random subjects in Hugging Face layout, and the same networks in TransformerLens, with which subjects are compared."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.support.tiny_subjects import CONFIGS, write_tokenizer


@pytest.fixture(scope="session")
def subject_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the folder of a random network in `CONFIGS`; all its weights are perturbed, biases and norms too."""

    @cache
    def make(kind: str) -> Path:
        config = CONFIGS[kind]()
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path_factory.mktemp(kind)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
        if config.tie_word_embeddings:
            del weights["lm_head.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def bridge(subject_folder: Callable[[str], Path]) -> Callable[..., torch.nn.Module]:
    """A function that returns a network in `CONFIGS` as a TransformerBridge, in float32, with processed or raw weights.

    The bridge is TransformerLens's wrapper of a Hugging Face model: it adds hook points, at which functions read or replace activations.
    """

    @cache
    def make(kind: str, *, processed: bool = False) -> torch.nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # caused by the library itself
            from transformer_lens.model_bridge import TransformerBridge

            network = TransformerBridge.boot_transformers(str(subject_folder(kind)), device="cpu", dtype=torch.float32)
            if processed:
                network.enable_compatibility_mode(disable_warnings=True)
        return network

    return make
