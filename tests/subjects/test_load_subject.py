"""Loading a subject: accepted layouts on disk, and folders that must be rejected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crux.config.errors import UserError
from crux.subjects.load import load_subject
from tests.support.tiny_subjects import D_MODEL, D_VOCAB, N_CTX, N_LAYERS


@pytest.fixture
def folder(subject_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny GPT-2 that a test may damage."""
    return Path(shutil.copytree(subject_folder("gpt2"), tmp_path / "model"))


def _edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _compute_final_residual(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    subject = load_subject(folder, process_weights=False, dtype=dtype)
    final = subject.clean(torch.arange(10)[None], capture=[]).final
    assert final is not None
    return final


def test_properties_of_a_loaded_subject(folder: Path) -> None:
    subject = load_subject(str(folder), process_weights=False)
    assert (subject.n_layers, subject.d_model, subject.d_vocab, subject.n_ctx) == (N_LAYERS, D_MODEL, D_VOCAB, N_CTX)
    assert subject.name == str(folder)
    assert subject.process_weights is False
    assert subject.device.type == "cpu"
    assert subject.dtype == torch.float32


def test_float16_weights_are_cast_to_the_requested_dtype(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: w.half() for name, w in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    subject = load_subject(folder, process_weights=False)
    assert {p.dtype for p in subject.model.parameters()} == {torch.float32}
    torch.testing.assert_close(
        subject.model.get_parameter("transformer.wte.weight"),
        weights["transformer.wte.weight"].half().float(),
        rtol=0,
        atol=0,
    )
    assert load_subject(folder, process_weights=True, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_layout_of_gpt2_on_the_hub(folder: Path) -> None:
    """Its keys have no `transformer.` prefix, and causal masks are stored with the weights."""
    want = _compute_final_residual(folder)
    weights = load_file(folder / "model.safetensors")
    hub_weights = {name.removeprefix("transformer."): w for name, w in weights.items()}
    hub_weights |= {f"h.{layer}.attn.bias": torch.ones(1, 1, N_CTX, N_CTX) for layer in range(N_LAYERS)}
    save_file(hub_weights, folder / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(_compute_final_residual(folder), want, rtol=0, atol=0)


def test_sharded_weights(folder: Path) -> None:
    want = _compute_final_residual(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(weights)}
    for part in set(files.values()):
        save_file({n: w for n, w in weights.items() if files[n] == part}, folder / part, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    torch.testing.assert_close(_compute_final_residual(folder), want, rtol=0, atol=0)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"no part-1\.safetensors in it"):
        load_subject(folder, process_weights=False)


def _assert_rejected(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_subject(folder, process_weights=False)
    assert "\n" not in str(caught.value)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    _assert_rejected(folder, r"no model\.safetensors in it \(pickled weights are never read\)$")


def test_truncated_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    _assert_rejected(folder, r"model\.safetensors: not a safetensors file, or a broken one")


def test_missing_weights_are_not_initialised_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _assert_rejected(folder, r"do not fit config\.json: transformer\.h\.1\.mlp\.c_fc\.weight is missing$")


def test_too_few_layers_in_the_config(folder: Path) -> None:
    _edit_config(folder, n_layer=2)
    _assert_rejected(folder, r"do not fit config\.json: transformer\.h\.2\..* is unknown and \d+ more$")


def test_wrong_width_in_the_config(folder: Path) -> None:
    _edit_config(folder, n_embd=16)
    _assert_rejected(folder, r"do not fit config\.json: .* is \(.*\), not \(.*\) and \d+ more$")


def test_number_of_heads_that_does_not_divide_the_width(folder: Path) -> None:
    _edit_config(folder, n_head=5)  # does not divide the width, 32
    _assert_rejected(folder, r"config\.json does not describe a model")


def test_quantised_weights(folder: Path) -> None:
    _edit_config(folder, quantization_config={"quant_method": "bitsandbytes"})
    _assert_rejected(folder, "quantised weights are not supported")


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('foreign code ran')")
    _edit_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    _compute_final_residual(folder)


def test_weight_processing_of_gemma_is_rejected(subject_folder: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"not supported for gemma2; allowed are gpt2, gpt_neox, llama"):
        load_subject(subject_folder("gemma2"), process_weights=True)
