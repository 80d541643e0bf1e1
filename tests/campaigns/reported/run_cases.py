"""Reported cases about tracking, terminals, sweeps and command lines."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from mlflow import MlflowClient

from tests.campaigns.forks import start_command, wait_for_command
from tests.campaigns.reported.case import QUICK, Observation, Workplace, case, combine, expect_refusal, expect_success
from tests.campaigns.reported.inputs import english_documents, write_jsonl

ROOT = Path(__file__).resolve().parents[3]
UNTRACKED = tuple(word for word in QUICK if word != "tracking=none")


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start an MLflow server on this machine and wait until it answers; return it with its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    store = f"sqlite:///{folder / 'm.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.5)
    return server, f"http://127.0.0.1:{port}"


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """Kill a server with its workers."""
    os.killpg(server.pid, 9)
    server.wait()


@case(
    9,
    "the MLflow server goes away during training",
    correct="one warning, the run ends with exit code 0, the rows are kept and sent later",
)
def server_goes_away(work: Workplace) -> Observation:
    server, uri = start_server(work.folder / "server")
    words = (
        "loss=local", "layer=2", "debug=limit", "trainer.max_steps=120", "trainer.log_every=5", "trainer.val_every=0",
        "evaluation.tokens=512", "evaluation.val_tokens=512", "evaluation.latents=0", "trainer.progress=false",
        f"tracking.uri={uri}", f"output_dir={work.folder / 'outputs'}",
    )  # fmt: skip
    work.commands.append(
        f"python src/main.py {' '.join(words[:4])} tracking.uri=<a server that is killed after some rows>"
    )
    started, folder = time.monotonic(), work.folder / "output"
    pid = start_command(words, folder=folder, environment={})
    try:
        while time.monotonic() - started < 120 and not any(
            len(p.read_text().splitlines()) >= 5 for p in (work.folder / "outputs").glob("runs/*/history.jsonl")
        ):
            time.sleep(0.05)
    finally:
        stop_server(server)
    outcome = wait_for_command(pid, folder=folder, started=started, timeout=180)
    rows = len((work.run_folder() / "history.jsonl").read_text().splitlines())
    warned = [
        line for line in outcome.err.splitlines() if uri in line or "tracking" in line.lower() or "MLflow" in line
    ]
    return expect_success(
        outcome,
        also=rows == 24 and 1 <= len(warned) <= 2,
        observed=f"{rows} rows, {outcome.seconds:.0f} s, {warned[:1]}",
    )


@case(10, "output that is not UTF-8", correct="exit 0; the sweep's jobs are done")
def other_encodings(work: Workplace) -> Observation:
    observations = []
    main = [sys.executable, str(ROOT / "src" / "main.py")]
    grid = ("-m", "loss=local", "layer=2,4", "trainer.max_steps=2", "sweep_name=asc", *QUICK)
    for encoding, words in (
        ("ascii", ("loss=local", "layer=4", *QUICK)),
        ("latin-1", ("loss=local", "layer=4", *QUICK)),
        ("ascii", grid),
    ):
        work.commands.append(
            f"PYTHONIOENCODING={encoding} python src/main.py {' '.join(w for w in words if w not in QUICK)}"
        )
        ended = subprocess.run(
            [*main, *words, f"output_dir={work.folder / 'outputs'}"],
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )
        failed = list((work.folder / "outputs").glob("**/FAILED"))
        observations.append(
            Observation(
                ended.returncode == 0 and b"Traceback" not in ended.stderr and not failed,
                f"{encoding}: exit {ended.returncode}",
            )
        )
    line = " ".join([*main, "loss=local", "layer=4", *QUICK, f"output_dir={work.folder / 'outputs'}"])
    work.commands.append("python src/main.py loss=local layer=4 | head -1")
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {line} | head -1"], capture_output=True, check=False)
    observations.append(
        Observation(ended.returncode == 0 and b"Traceback" not in ended.stderr, f"closed pipe: exit {ended.returncode}")
    )
    return combine(observations)


@case(
    16,
    "the MLflow experiment was deleted",
    correct="one warning that names the experiment and says how to restore it; exit 0",
)
def deleted_experiment(work: Workplace) -> Observation:
    words = ("loss=local", "layer=4", *UNTRACKED)
    if (first := work.run(*words)).code:
        return expect_success(first)
    uri = f"sqlite:///{work.folder / 'outputs' / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("crux")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    outcome = work.run(*words)
    said = "restore" in outcome.err and "tracking.experiment" in outcome.err and "crux" in outcome.err
    refused = work.run(*words, "tracking.uri=file:///tmp/mlruns")
    return combine(
        [
            expect_success(outcome, also=said, observed=outcome.err.strip()[:200]),
            expect_refusal(refused, "tracking.uri"),
        ]
    )


@case(21, "`=` and commas in paths", correct="the line says how to quote; the quoted path works")
def odd_paths(work: Workplace) -> Observation:
    folder = work.folder / "odd dir, with (parens)"
    path = write_jsonl(folder / "epoch=999-step=1.jsonl", english_documents(300))
    words = ("loss=local", "layer=4", *QUICK)
    return combine(
        [
            expect_refusal(work.run(*words, f"data.path={path}"), "data.path", "'"),
            expect_success(work.run(*words, f"data.path='{path}'")),
        ]
    )


@case(22, "paths in a sweep's folder names", correct="one folder per job, none nested; both paths in the table")
def paths_in_a_grid(work: Workplace) -> Observation:
    files = [
        write_jsonl(work.folder / f"{name}.jsonl", english_documents(300, seed=i)) for i, name in enumerate(("a", "b"))
    ]
    outcome = work.run("-m", "loss=local", "layer=4", *QUICK, f"data.path={files[0]},{files[1]}", "sweep_name=r3")
    jobs = [p.parent for p in (work.folder / "outputs" / "sweeps" / "r3").glob("**/DONE")]
    return expect_success(
        outcome, also=len(jobs) == 2 and all(p.parent.name == "r3" for p in jobs), observed=f"{len(jobs)} folders"
    )


@case(23, "a sweep over named sweeps", correct="refused in one line")
def sweep_of_sweeps(work: Workplace) -> Observation:
    return expect_refusal(work.run("-m", "sweeps=layers,losses", "seed=0", *QUICK), "sweeps=")


@case(24, "equal values in a grid", correct="one job; range(2,5) gives three")
def equal_values(work: Workplace) -> Observation:
    observations = []
    for words, n in ((("seed=0,0", "layer=4"), 1), (("layer=range(2,5)",), 3)):
        outcome = work.run("-m", "loss=local", *QUICK, *words, f"sweep_name=n{n}")
        done = len(list((work.folder / "outputs" / "sweeps" / f"n{n}").glob("*/DONE")))
        observations.append(expect_success(outcome, also=done == n, observed=f"{done} jobs"))
    return combine(observations)


@case(29, "leaving out tokens by their id", correct="not offered: the key is refused in one line")
def skip_tokens(work: Workplace) -> Observation:
    return expect_refusal(work.run("loss=local", "layer=4", *QUICK, "loss.skip_tokens=[0]"), "loss.skip_tokens")


@case(31, "models that need a BOS token", correct="not offered: the key is refused in one line")
def prepend_bos(work: Workplace) -> Observation:
    return expect_refusal(work.run("loss=local", "layer=4", *QUICK, "data.prepend_bos=true"), "data.prepend_bos")


@case(32, "training a finished run further", correct="refused, naming sae.start_from, which works")
def train_further(work: Workplace) -> Observation:
    words = ("loss=local", "layer=4", *QUICK)
    if (first := work.run(*words)).code:
        return expect_success(first)
    run = work.run_folder()
    return combine(
        [
            expect_refusal(work.run(*words, f"resume_from={run}", "trainer.max_steps=8"), "sae.start_from"),
            expect_success(work.run(*words, f"sae.start_from={run / 'sae'}", "trainer.max_steps=8")),
        ]
    )


@case(
    36, "attention across documents", correct="not offered: windows run across documents, which the documentation says"
)
def windows_across_documents(work: Workplace) -> Observation:
    work.commands.append("grep 'across documents' docs")
    said = any("across documents" in path.read_text("utf-8") for path in (ROOT / "docs").glob("**/*.md"))
    return Observation(said, "said in the documentation" if said else "not said")


@case(37, "HTML in the text", correct="everything escaped on the latents page")
def html_in_the_text(work: Workplace) -> Observation:
    text = "\n\n".join(
        f'<script>alert({i})</script> "quoted" </table> & more words here {i}\n' * 20 for i in range(120)
    )
    (work.folder / "html.txt").write_text(text, encoding="utf-8")
    outcome = work.run(
        "loss=local", "layer=4", "debug=limit", "evaluation.latents=8", "tracking=none", "trainer.progress=false",
        f"data.path={work.folder / 'html.txt'}",
    )  # fmt: skip
    pages = list(work.run_folder().glob("latents*.html")) if outcome.code == 0 else []
    escaped = bool(pages) and "<script>alert" not in pages[0].read_text("utf-8")
    shutil.rmtree(work.folder / "outputs", ignore_errors=True)
    return expect_success(outcome, also=escaped, observed="escaped" if escaped else "not escaped")
