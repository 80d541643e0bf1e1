"""The built wheel: configuration, sweeps and assets are in it, and its console script runs a job."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOB = ["debug=limit", "loss=e2e_ds", "trainer.progress=false"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def run_job(command: list[str], cwd: Path, path: str | None) -> None:
    """Run a short job; an installed crux writes into the working directory."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "HF_HUB_OFFLINE": "1"} | ({"PYTHONPATH": path} if path else {})
    done = subprocess.run([*command, *JOB], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (metrics,) = (cwd / "outputs" / "runs").glob("*/metrics.json")
    assert json.loads(metrics.read_text())["final/l0"] > 0
    assert (cwd / "outputs" / "mlflow.db").exists()


def test_the_wheel_holds_configuration_sweeps_and_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for option in (ROOT / "conf").rglob("*.yaml"):
        assert f"crux/conf/{option.relative_to(ROOT / 'conf')}" in names
    assert "hydra_plugins/crux_launchers.py" in names
    for sweep in (ROOT / "sweeps").glob("*.yaml"):
        assert f"crux/sweeps/{sweep.name}" in names
    for script in (ROOT / "src" / "crux" / "sae" / "figures" / "page_scripts").iterdir():
        assert f"crux/sae/figures/page_scripts/{script.name}" in names
    assets = {"tiny/model.safetensors", "tiny/tokenizer.json", "tiny/config.json", "tiny/README.md"}
    assets |= {"text/sotu.jsonl.xz", "text/heldout.txt", "text/LICENSES.md"}
    assert {f"crux/assets/{name}" for name in assets} <= names


def test_an_installed_wheel_runs_a_job(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)
    where = [sys.executable, "-c", "import crux; print(crux.__file__)"]
    found = subprocess.run(
        where, cwd=tmp_path, env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(target)
    run_job([sys.executable, str(target / "bin" / "crux")], tmp_path, str(target))


@pytest.mark.slow
def test_a_wheel_in_a_new_environment_installs_its_dependencies_and_runs_a_job(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    subprocess.run([tmp_path / "venv/bin/pip", "install", "--quiet", str(wheel)], check=True)
    run_job([str(tmp_path / "venv/bin/crux")], tmp_path, None)
