"""sae-lens itself opens the SAEs that crux saves, in a separate environment (it needs TransformerLens < 4)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crux.sae.formats import saelens
from tests.support.saved_saes import METADATA, SAVED_AS, TRANSCODERS, draw_activations, make_trained_sae

READ = """
import sys
from safetensors.torch import load_file, save_file
from sae_lens import SAE
inputs, outputs, *folders = sys.argv[1:]
found = {}
for i, folder in enumerate(folders):
    sae = SAE.load_from_disk(folder)
    x = load_file(inputs)["x"]
    codes = sae.encode(x.view(-1, 2, 3) if sae.hook_z_reshaping_mode else x)
    found |= {f"{i}.codes": codes.detach(), f"{i}.x_hat": sae.decode(codes).detach().flatten(1)}
    metadata = sae.cfg.metadata
    print(type(sae).__name__, metadata.hook_name, metadata.hook_name_out, metadata.model_name, metadata.context_size)
save_file(found, outputs)
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the interpreter of an environment with sae-lens, which is built once and kept in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crux-tests"
    home = cache / f"sae-lens-{saelens.FORMAT_VERSION}-torch-{torch.__version__}"
    interpreter = home / "bin" / "python"
    if not (home / "ready").exists():
        pip = [interpreter, "-m", "pip", "install", "--quiet"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", home],
            # torch first, in the version that runs here, so that sae-lens does not install another one
            [*pip, f"torch=={torch.__version__.split('+')[0]}"],
            [*pip, f"sae-lens=={saelens.FORMAT_VERSION}", "transformer-lens<4"],
        ):
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            if built.returncode:
                pytest.skip(f"no environment with sae-lens can be built here: {built.stderr.strip()[-300:]}")
        (home / "ready").touch()
    return interpreter


CLASSES = {
    "standard": "StandardSAE",
    "topk": "TopKSAE",
    "jumprelu": "JumpReLUSAE",
    "gated": "GatedSAE",
    "transcoder": "Transcoder",
    "jumprelu_transcoder": "JumpReLUTranscoder",
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sae_lens_reads_the_same_codes(python: Path, tmp_path: Path) -> None:
    residual, heads, out = "blocks.6.hook_resid_pre", "blocks.6.attn.hook_z", "blocks.6.hook_mlp_out"
    cases = [(make_trained_sae(kind), name, residual, None) for kind, name in SAVED_AS.items()]
    cases += [(make_trained_sae(kind, d_out=5), name, residual, out) for kind, name in TRANSCODERS.items()]
    cases += [(make_trained_sae("topk"), "topk", residual, out), (make_trained_sae("topk"), "topk", heads, None)]
    folders = [str(tmp_path / f"sae_{i}") for i in range(len(cases))]
    for folder, (sae, _, hook, output_hook) in zip(folders, cases, strict=True):
        written = {} if output_hook is None else {"hook_name_out": output_hook}
        saelens.save_sae(sae, folder, METADATA | {"hook_name": hook} | written)
    x = draw_activations()
    save_file({"x": x}, tmp_path / "x.safetensors")
    arguments = [tmp_path / "x.safetensors", tmp_path / "out.safetensors", *folders]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    ran = subprocess.run([python, "-c", READ, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    theirs = load_file(tmp_path / "out.safetensors")
    for i, (line, (sae, name, hook, output_hook)) in enumerate(zip(ran.stdout.splitlines(), cases, strict=True)):
        assert line.split() == [CLASSES[name], hook, str(output_hook), "tiny", "256"]
        folded = sae.fold()
        codes = folded.encode(x)
        torch.testing.assert_close(theirs[f"{i}.codes"], codes.c.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs[f"{i}.x_hat"], folded.decode(codes).detach(), rtol=1e-5, atol=1e-5)
        assert 0.05 < (codes.c > 0).float().mean() < 0.95
