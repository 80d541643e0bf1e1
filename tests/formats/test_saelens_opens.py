"""sae-lens itself, in an environment of its own (it needs TransformerLens < 4), opens what crux saves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crux.formats import saelens
from crux.saes.relu import ReluSAE

READ = """
import sys
from safetensors.torch import load_file, save_file
from sae_lens import SAE
folder, inputs, outputs = sys.argv[1:]
sae = SAE.load_from_disk(folder)
x = load_file(inputs)["x"]
codes = sae.encode(x)
save_file({"codes": codes.detach(), "x_hat": sae.decode(codes).detach()}, outputs)
print(type(sae).__name__, sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name, sae.cfg.metadata.context_size)
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with sae-lens; built once, kept in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crux-tests"
    home = cache / f"sae-lens-{saelens.FORMAT_VERSION}-torch-{torch.__version__}"
    found = home / "bin" / "python"
    if not (home / "ready").exists():
        pip = [found, "-m", "pip", "install", "--quiet"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", home],
            # torch first: the build that the running one is, where the index has it beside a larger one
            [*pip, f"torch=={torch.__version__.split('+')[0]}"],
            [*pip, f"sae-lens=={saelens.FORMAT_VERSION}", "transformer-lens<4"],
        ):
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            if built.returncode:
                pytest.skip(f"no environment with sae-lens can be built here: {built.stderr.strip()[-300:]}")
        (home / "ready").touch()
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sae_lens_reads_the_same_codes(python: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sae = ReluSAE(d_model=16, n_latents=64, init="paper", init_norm=1.0, generator=generator)
    sae.start_at(torch.randn(16, generator=generator), input_scale=0.25)
    saelens.save(
        sae,
        tmp_path / "sae",
        {
            "model_name": "gpt2",
            "hook_name": "blocks.6.hook_resid_pre",
            "process_weights": True,
            "context_size": 128,
            "prepend_bos": False,
            "dataset_path": "packaged",
        },
    )
    x = 4 * torch.randn(100, 16, generator=generator)
    save_file({"x": x}, tmp_path / "x.safetensors")
    arguments = [tmp_path / name for name in ("sae", "x.safetensors", "out.safetensors")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    ran = subprocess.run([python, "-c", READ, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split()[-4:] == ["StandardSAE", "blocks.6.hook_resid_pre", "gpt2", "128"]
    theirs = load_file(tmp_path / "out.safetensors")
    folded = sae.folded()
    torch.testing.assert_close(theirs["codes"], folded.encode(x).c.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs["x_hat"], sae(x).detach(), rtol=1e-5, atol=1e-5)
    assert (theirs["codes"] > 0).float().mean() > 0.1
