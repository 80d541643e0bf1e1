"""Short commands that together use most of crux, and the numbers that they must end with.

same_numbers.json holds a record of each of several kinds of machines. `python tests/same_numbers.py record` runs the commands and
writes the record of the present one. The slow test in test_same_numbers.py runs them again. Machines, and ways to order a sum, round
differently: numbers must agree to 5e-4, relative or absolute, and text is not compared. Where a short training ends may depend on a
rounding error: of a command whose recorded numbers differ by more than 5e-4 between the records, only the names of the numbers are
compared.
"""

import csv
import hashlib
import json
import lzma
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RECORDED = Path(__file__).with_suffix(".json")

SAE = (
    "debug=limit", "trainer.progress=false", "trainer.max_steps=8", "trainer.batch=4", "trainer.val_every=4",
    "model.context=64", "sae.n_latents=256", "optimizer.warmup_steps=2", "evaluation.tokens=1024",
    "evaluation.val_tokens=256", "evaluation.latents=0",
)  # fmt: skip
TOY = (
    "trainer.progress=false",
    "trainer.max_steps=100",
    "trainer.log_every=20",
    "toy.held_out=1024",
    "trainer.batch=64",
)
TOY_SAE = ("experiment=toy/sae", "sae.n_latents=10", "trainer.max_steps=150", "trainer.progress=false",
           "evaluation.tokens=4096", "model.path={intro_polygon.folder}")  # fmt: skip
LLC = ("trainer.progress=false", "llc.chains=2", "llc.burn_in=4", "llc.draws=8", "llc.nbetas=[1e4]")
BASIS = ("trainer.progress=false", "interaction_basis.compare.batch=100")
ADDITION = ("trainer.progress=false", "interaction_basis.addition.p=7", "interaction_basis.addition.d_mlp=32")

COMMANDS: dict[str, tuple[str, ...]] = {
    # Every loss and every architecture.
    "relu": (*SAE, "loss=local", "evaluation.latents=2"),
    "relu_paper": (*SAE, "loss=e2e", "sae=relu_paper", "model.process_weights=true"),
    "relu_accumulated": (*SAE, "loss=e2e_ds", "trainer.accumulate=2", "layer=4", "seed=1"),
    "relu_bfloat16": (*SAE, "loss=e2e", "trainer.precision=bfloat16"),
    "p_anneal": (*SAE, "loss=local", "sae=p_anneal"),
    "jumprelu": (*SAE, "loss=e2e_ds", "sae=jumprelu", "target_l0=30"),
    "gated": (*SAE, "loss=e2e", "sae=gated", "target_l0=40"),
    "topk": (*SAE, "loss=local", "sae=topk", "sae.auxk.dead_after=300"),
    "batch_topk": (*SAE, "loss=e2e", "sae=batch_topk"),
    "matryoshka": (*SAE, "loss=local", "sae=matryoshka"),
    "gradient_topk": (*SAE, "loss=e2e", "sae=gradient_topk", "sae.k=16", "sae.gradient_target=sampled"),
    "fisher": (*SAE, "loss=fisher", "sae=topk", "sae.k=16"),
    "fisher_by_position": (*SAE, "loss=fisher", "loss.block_diagonal=true"),
    "kl_finetune": (
        *SAE, "loss=kl_finetune", "sae=topk", "sae.start_from={topk.folder}/sae", "loss.finetune_share=0.5",
    ),
    # Hook points, texts and networks.
    "hook_points_e2e": (
        *SAE, "loss=e2e_ds", "hook_points=[blocks.2.hook_resid_post,blocks.5.attn.hook_z]", "target_l0=60",
    ),
    "hook_points_local": (*SAE, "loss=local", "hook_points=[blocks.1.hook_mlp_out,blocks.3.hook_resid_mid]"),
    "transcoder": (
        *SAE, "loss=e2e", "sae=topk", "hook_point=blocks.4.hook_resid_mid", "sae.output_hook=blocks.4.hook_mlp_out",
    ),
    "left_out_tokens": (*SAE, "loss=local", "loss.skip_positions=[0]", "loss.max_norm=42", "sae.auxk.coefficient=0.03"),
    "own_text": (*SAE, "loss=local", "data.path={text}"),
    "own_model": (*SAE, "loss=e2e", "model.path={pretrain.folder}/model", "model.context=32", "layer=0"),
    # Several runs of one command, and a run of two commands.
    "sparsities": (*SAE, "loss=e2e_ds", "sparsities=[0.5,3]"),
    "ks": (*SAE, "loss=local", "sae=topk", "ks=[16,4]"),
    "resumed": (*SAE, "loss=e2e_ds", "trainer.max_steps=10", "trainer.checkpoint_every=4", "resume=true"),
    "resumed_two": (
        *SAE, "loss=local", "sparsities=[1,3]", "trainer.max_steps=10", "trainer.checkpoint_every=4", "resume=true",
    ),
    "sweep": (*SAE, "-m", "loss=local,e2e", "sparsity=1,20", "sweep_name=grid", "report_l0=[60]"),
    "report": ("experiment=report", "sweep=grid", "report_l0=[40,70]", "output_dir={sweep.outputs}"),
    # Toy models, and SAEs on one of them.
    "basic": ("experiment=toy/basic", *TOY),
    "phase_diagram": (
        "experiment=toy/phase_diagram", *TOY, "toy.sizes=[[2,1,1]]", "toy.densities=[0.3,0.1]",
        "toy.ratios=[0.1,0.316,1.0,3.16,10.0]", "toy.seeds=3", "toy.tile=3",
    ),
    "geometry": (
        "experiment=toy/geometry", *TOY, "toy.n_features=40", "toy.densities=[1.0,0.5,0.1]", "toy.seeds=2",
    ),
    "one_varied_feature": ("experiment=toy/one_varied_feature", *TOY, "toy.ratios=[0.25,0.3]", "toy.seeds=6"),
    "learning_dynamics": ("experiment=toy/learning_dynamics", *TOY, "toy.snapshots=20", "toy.seeds=2"),
    "double_descent": ("experiment=toy/double_descent", *TOY[:-1], "toy.points=[30,3,5]", "toy.seeds=2"),
    "adversarial": (
        "experiment=toy/adversarial", *TOY, "toy.n_features=12", "toy.n_hidden=4", "toy.densities=[1.0,0.3,0.1]",
    ),
    "absolute_value": ("experiment=toy/absolute_value", *TOY, "toy.densities=[1.0,0.01]"),
    "privileged_basis": ("experiment=toy/privileged_basis", *TOY, "toy.densities=[1.0,0.3]", "toy.seeds=3"),
    "pca_collapse": ("experiment=toy/pca_collapse", *TOY, "toy.densities=[0.45,0.18]", "toy.seeds=4"),
    "correlated": ("experiment=toy/correlated", *TOY, "toy.sizes=[[4,2,2],[6,2,3],[10,5,2]]", "toy.densities=[0.04]"),
    "anticorrelated": ("experiment=toy/anticorrelated", *TOY, "toy.densities=[0.05]"),
    "exact_optima": ("experiment=toy/exact_optima", *TOY, "toy.densities=[0.1]", "toy.seeds=6"),
    "intro_polygon": ("experiment=toy/intro_polygon", *TOY, "toy.seeds=2"),
    "sae_on_toy_local": (*TOY_SAE, "sae=topk", "sae.k=1"),
    "sae_on_toy_e2e": (*TOY_SAE, "loss=e2e", "target_l0=0.8", "model.instance=1"),
    # Learning coefficients.
    "llc_calibrate": ("experiment=llc/calibrate", "llc.cases=[regular]", "llc.length=0.1"),
    "llc_kgon": ("experiment=llc/kgon", "llc.corners=[5]", "llc.nbetas=[1e5]", "llc.burn_in=10", "llc.draws=20"),
    "llc_linear": ("experiment=llc/linear", *LLC, "llc.widths=[[2,1,2]]", "llc.ranks=[0]", "llc.leapfrogs=10"),
    "llc_behavioural": ("experiment=llc/behavioural", *LLC, "llc.hidden=[3]", "llc.samples=32"),
    "llc_language_model": (
        "experiment=llc/language_model", *LLC, "model.context=16", "llc.samples=4", "llc.minibatch=2", "llc.every=1",
        "llc.parameters=[transformer.h.7.ln_2.*]", "llc.gradient_text=train",
    ),
    "llc_toy_training": (
        "experiment=llc/toy_training", *LLC, "trainer.max_steps=100", "toy.snapshots=10", "toy.seeds=2",
        "toy.held_out=1024", "llc.checkpoints=3", "llc.samples=32",
    ),
    "llc_sae_training": (
        "experiment=llc/sae_training", *LLC, "trainer.max_steps=60", "llc.checkpoints=3", "llc.samples=64",
    ),
    # Degeneracy and the interaction basis.
    "spectra": (
        "experiment=degeneracy/spectra", "degeneracy.network=mlp", "degeneracy.hidden=[8,6]", "degeneracy.steps=60",
    ),
    "spectra_of_language_model": (
        "experiment=degeneracy/spectra", "degeneracy.sequences=4", "model.context=32",
        "hook_points=[blocks.7.attn.hook_z,blocks.7.hook_attn_out]",
    ),
    "synchronised": ("experiment=degeneracy/synchronised", "degeneracy.hidden=[24]", "degeneracy.steps=60"),
    "basis_mlp": (
        "experiment=interaction_basis/mlp", *BASIS, "interaction_basis.perceptron.hidden=[8]",
        "interaction_basis.perceptron.steps=50", "interaction_basis.compare.hooks=[input,post0,output]",
        "interaction_basis.compare.samples=300", "interaction_basis.compare.judged=100",
    ),
    "basis_language_model": (
        "experiment=interaction_basis/tiny", *BASIS, "interaction_basis.compare.bases=[pca,local]",
        "interaction_basis.compare.hooks=[blocks.6.hook_resid_pre,blocks.7.hook_resid_pre,ln_final.hook_normalized]",
        "interaction_basis.compare.saes=[{relu.folder}/sae]", "interaction_basis.compare.samples=4",
        "interaction_basis.compare.judged=2", "interaction_basis.compare.length=16",
        "interaction_basis.compare.directions=4", "interaction_basis.compare.edge_samples=2",
    ),
    "dictionaries": (
        "experiment=interaction_basis/dictionaries", "interaction_basis.saes=[{relu.folder}/sae,{topk.folder}/sae]",
        "interaction_basis.dictionaries.tokens=1024", "interaction_basis.dictionaries.left_out=0.1",
    ),
    "addition_training": (
        "experiment=interaction_basis/modular_addition_training", *ADDITION, "trainer.max_steps=60",
        "interaction_basis.addition.train_share=0.9",
    ),
    "basis_addition": (
        "experiment=interaction_basis/modular_addition", *BASIS, "model.path={addition_training.folder}",
    ),
    "spectra_of_addition": ("experiment=degeneracy/spectra", "model.path={addition_training.folder}"),
    # A language model from scratch.
    "pretrain": (
        "experiment=pretrain", "trainer.progress=false", "trainer.max_steps=4", "trainer.batch=2", "model.context=32",
        "optimizer.warmup_steps=2", "trainer.log_every=1", "pretrain.vocab_size=512", "pretrain.d_model=16",
        "pretrain.n_layers=1", "pretrain.n_heads=2", "pretrain.horizon=4", "pretrain.cooldown_steps=1",
        "pretrain.stride=32",
    ),
}  # fmt: skip
"""Name and arguments. `{name.folder}` is the run folder of another command and `{name.outputs}` its output_dir; that
command is then run first. A command that names no output_dir has one of its own."""

Numbers = dict[str, float | str]
"""Value by `<folder>/<metric>`, by `<folder>/<file>/<key>` for other files, and by `runs.csv/<row>/<column>`."""


class Finished(NamedTuple):
    """What a command has left."""

    outputs: Path
    numbers: Numbers

    @property
    def folder(self) -> Path:
        (found,) = (self.outputs / "runs").iterdir()
        return found


class Session(dict[str, Finished]):
    """Runs a command when its name is looked up for the first time, after those that it builds on."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def __missing__(self, name: str) -> Finished | Path:
        if name == "text":
            return write_text(self.place / "text.txt")
        given = (f"output_dir={self.place / name}", "tracking=none", *COMMANDS[name])
        arguments = [argument.format_map(self) for argument in given]
        outputs = Path([a for a in arguments if a.startswith("output_dir=")][-1].partition("=")[2])
        for path in [*outputs.rglob("runs.csv"), *outputs.rglob("report.md")]:  # a report must write them anew
            path.unlink()
        uninterrupted = None
        if "resume=true" in arguments:
            run_command(*(a for a in arguments if a != "resume=true"))
            uninterrupted = collect_numbers(outputs)
            undo_the_end(outputs)
        run_command(*arguments)
        numbers = collect_tables(outputs) if "experiment=report" in arguments else collect_numbers(outputs)
        assert uninterrupted in (None, numbers), "a resumed run must end like an uninterrupted one"
        self[name] = Finished(outputs, numbers)
        return self[name]


def write_text(path: Path) -> Path:
    """Write the first chapters of the packaged Moby-Dick into a plain text file."""
    (packaged,) = (ROOT / "src").rglob("moby-dick.jsonl.xz")
    with lzma.open(packaged, "rt", encoding="utf-8") as f:
        path.write_text("\n\n".join(json.loads(f.readline())["text"] for _ in range(12)), "utf-8")
    return path


def undo_the_end(outputs: Path) -> None:
    """Remove the marks of a finished run, so that it can be resumed from its last checkpoint."""
    for path in [*outputs.rglob("DONE"), *outputs.rglob("metrics.json")]:
        path.unlink()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that the order of every sum is fixed."""
    import scipy.linalg  # noqa: F401 - loads its BLAS, whose threads can then be limited
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def run_command(*arguments: str) -> None:
    """Run a command line in this process and put back what it changes there; it must succeed."""
    from crux.cli import main

    argv, environment, handler = sys.argv, dict(os.environ), signal.getsignal(signal.SIGTERM)
    code: object = 0
    try:
        sys.argv = ["main.py", *arguments]
        with one_thread(), redirect_stdout(StringIO()):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGTERM, handler)
    assert code == 0, f"exit code {code}: main.py {' '.join(arguments)}"


def collect_numbers(outputs: Path) -> Numbers:
    """Read what the runs in a folder ended with, without times; a run folder is named without its date.

    That is every metric, the last row of the history, and the sum of the finite absolute values of every array.
    """
    import numpy as np
    from safetensors.numpy import load_file

    found: Numbers = {}
    for path in sorted(outputs.rglob("metrics.json")):
        name = re.sub(r"^(runs|sweeps)/(\d[\d-]+_[\d-]+_)?", "", str(path.parent.relative_to(outputs)))
        found |= {f"{name}/{key}": value for key, value in json.loads(path.read_text("utf-8")).items()}
        history = path.with_name("history.jsonl")
        for line in history.read_text("utf-8").splitlines()[-1:] if history.exists() else ():
            found |= {f"{name}/history.jsonl/{key}": value for key, value in json.loads(line).items()}
        if (arrays := path.with_name("arrays.safetensors")).exists():
            for key, value in load_file(arrays).items():
                finite = np.nan_to_num(value.astype(float), posinf=0, neginf=0)
                found[f"{name}/arrays.safetensors/{key}"] = float(np.abs(finite).sum())
    return {key: value for key, value in found.items() if "per_second" not in key} | collect_tables(outputs)


def collect_tables(outputs: Path) -> Numbers:
    """Read the cells of a sweep's runs.csv and the lines of the tables in its report.md, without times."""
    found: Numbers = {}
    for path in outputs.rglob("runs.csv"):
        with path.open(encoding="utf-8", newline="") as f:
            for i, row in enumerate(csv.DictReader(f)):
                found |= {f"runs.csv/{i}/{k}": number_or_text(v) for k, v in row.items() if "per_second" not in k}
        sections = path.with_name("report.md").read_text("utf-8").split("\n## ")
        lines = [line for s in sections if not s.startswith("Time") for line in s.splitlines() if line.startswith("|")]
        found |= {f"report.md/{i}": line for i, line in enumerate(lines)}
    return found


def number_or_text(cell: str) -> float | str:
    """Return the number that a cell holds, or else the cell."""
    try:
        return float(cell)
    except ValueError:
        return cell


def describe_machine() -> dict[str, str]:
    """Describe what the last bits of a sum depend on: the processor, the libraries, the number of threads."""
    import numpy
    import torch

    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    lines = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = hashlib.sha256(" ".join(sorted(lines.get("flags", "").split())).encode()).hexdigest()[:16]
    cpu = " ".join(lines.get(key, "") for key in ("model name", "cpu family", "model", "stepping"))
    with one_thread():
        threads = str(torch.get_num_threads())
    return {"cpu": cpu, "flags": flags, "torch": torch.__version__, "numpy": numpy.__version__, "threads": threads}


def list_differences(found: Mapping[str, float | str], recorded: Mapping[str, float | str]) -> list[str]:
    """List the names on one side only and the numbers that differ by more than 5e-4."""
    lines = [f"{name}: gone, was {recorded[name]!r}" for name in recorded if name not in found]
    lines += [f"{name}: new, is {found[name]!r}" for name in found if name not in recorded]
    for name in [name for name in recorded if name in found]:
        a, b = found[name], recorded[name]
        if isinstance(a, str) or isinstance(b, str) or repr(a) == repr(b):  # NaN equals NaN
            continue
        if not math.isclose(a, b, rel_tol=5e-4, abs_tol=5e-4):
            lines.append(f"{name}: is {a!r}, was {b!r}")
    return lines


def read_records(path: Path = RECORDED) -> list[dict[str, Any]]:
    """Return the records in a file: each has the description of its machine and the numbers of each command."""
    return json.loads(path.read_text("utf-8"))["records"]


def compare_with_records(name: str, found: Numbers) -> list[str]:
    """List where a command's numbers differ from its records."""
    first, *others = (one["numbers"][name] for one in read_records())
    if any(list_differences(other, first) for other in others):  # rounding errors decide where it ends
        found = {key: first.get(key, value) for key, value in found.items()}
    return list_differences(found, first)


def record(path: Path, names: list[str]) -> None:
    """Run commands in the given order and write what they ended with."""
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"CRUX_CACHE": f"{place}/cache", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        session = Session(Path(place))
        for name in names:
            start = time.process_time()
            print(f"{name}: {len(session[name].numbers)} numbers, {time.process_time() - start:.1f} CPU s", flush=True)
        found = {name: session[name].numbers for name in COMMANDS if name in session}
        machine = describe_machine()
        others = [r for r in read_records(path) if r["machine"] != machine] if path.exists() else []
        records = [*others, {"machine": machine, "numbers": found}]
        path.write_text(json.dumps({"records": records}, indent=0) + "\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] != ["record"]:
        sys.exit("python tests/same_numbers.py record [FILE [NAME …]]")
    sys.path.insert(0, str(ROOT / "src"))  # the crux of this checkout, not an installed one
    record(Path((sys.argv[2:] or [RECORDED])[0]), sys.argv[3:] or list(COMMANDS))
