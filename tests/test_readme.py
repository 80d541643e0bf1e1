"""The README's command lines do what they say, shortened."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import crux

ROOT = Path(__file__).parents[1]
LINES = re.findall(
    r"^python src/main\.py ([^#\n]+?)\s*(?:#.*)?$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
)
GUIDE = "".join(path.read_text("utf-8") for path in sorted((ROOT / "docs" / "guide").glob("*.md")))
REFUSED = ("experiment=paper", "resume=true", "experiment=report", "launcher=gpus", "launcher=slurm")
"""Without a hub, an unfinished run, a finished sweep, a GPU or a cluster, these end in one line that says so."""
ELSEWHERE = (
    "--help",
    "trainer=ddp",
    "launcher=cpus",
    "experiment=toy/",
    "experiment=llc/",
    "experiment=degeneracy/",
    "=interaction_basis/",
)
"""In test_cli, training/test_ddp_command and test_launchers: they start processes that run a command line of their own.
In experiments/: each experiment has a length of its own that is short."""


def test_there_are_lines_to_try() -> None:
    assert len(LINES) >= 9


@pytest.mark.parametrize("group", ["toy", "llc", "degeneracy", "interaction_basis"])
def test_every_experiment_is_in_the_guide(group: str) -> None:
    names = {path.stem.removesuffix("_paper") for path in (ROOT / "conf" / "experiment" / group).glob("[!_]*.yaml")}
    assert names <= set(re.findall(r"\w+", GUIDE))


@pytest.mark.parametrize("line", [line for line in LINES if not any(e in line for e in ELSEWHERE)])
def test_a_line_of_the_readme(
    line: str, crux_here: Callable[..., int], short: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in (("CUDA_VISIBLE_DEVICES", ""), ("RAY_TMPDIR", str(tmp_path))):  # as on a bare machine
        monkeypatch.setenv(name, value)
    (tmp_path / "my_texts").mkdir()
    prose = (ROOT / "README.md").read_text("utf-8") + (ROOT / "LICENSE").read_text("utf-8")
    for i in range(12):
        (tmp_path / "my_texts" / f"{i}.txt").write_text(f"{i}\n\n{prose}", "utf-8")
    shutil.copytree(Path(crux.__file__).parent / "assets" / "tiny", tmp_path / "my_gpt2")
    words = re.sub(r"my_(texts|gpt2)/", rf"{tmp_path}/my_\1", line).replace("layer=2,4,6", "layer=2,6").split()
    if "sweeps=architectures" in words:
        words += ["hydra.sweeper.params.sae=topk", "hydra.sweeper.params.loss=local"]
    if "sweeps=pareto" in words:
        words += ["seed=0", "sparsity=2"]
    if "sweeps=losses" in words:
        words += ["seed=0", "trainer.max_steps=6"]
    code = crux_here(*words, *short, f"output_dir={tmp_path}/outputs", "tracking=none")
    refused = 2 if any(word in line for word in REFUSED) else 0
    assert code == refused, capsys.readouterr().err
    done = list((tmp_path / "outputs").glob("*/**/DONE"))
    assert bool(done) == (refused == 0)
