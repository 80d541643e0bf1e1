"""Training with two processes that share each batch: it gives the numbers of one process, and the same state in both."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from crux.training.processes import torchrun_variables
from tests.support.two_ranks import STEPS, Trace, train_job

ROOT = Path(__file__).resolve().parents[3]
EQUAL_TO_ONE_PROCESS = [  # among them strong clipping, AuxK with dying latents, accumulation, and skipped positions
    "local/relu/auxk",
    "local/topk/clip",
    "e2e/relu/skip",
    "e2e/topk/auxk",
    "e2e_ds/relu/accumulate",
    "e2e_ds/topk",
]
"""Jobs with the same numbers as in one process, in the quick tests."""
MORE_EQUAL_TO_ONE_PROCESS = [
    "local/relu/accumulate",
    "local/relu/steered",
    "e2e/relu/steered/accumulate",
    "local/jumprelu/steered",
    "e2e/gated",
    "e2e/p_anneal/steered",
    "fisher/relu/skip",
    "kl_finetune/relu",
    "kl_finetune/gated",
]
"""Further such jobs, in the slow tests. Only loss=fisher has other numbers, since each process draws its own labels."""
DIFFERENT_FROM_ONE_PROCESS = [
    "local/batch_topk",
    "e2e/batch_topk/accumulate",
    "local/matryoshka",
    "local/gradient_topk",
    "e2e/gradient_topk",
    "e2e_ds/gradient_topk/sampled",
]
"""Jobs in which each process selects latents within its share of the batch, or uses a gradient of its share or of its own labels."""
RESUMED = ["local/batch_topk/steered/resume", "fisher/topk/accumulate/resume", "kl_finetune/p_anneal/resume"]


def train_on_two_ranks(jobs: list[str], folder: Path) -> dict[str, list[list[Trace]]]:
    """Return the traces by job and rank: one per job, or two for a resumed job."""
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.two_ranks", str(folder), *jobs]
    logs = [folder / f"log_{rank}" for rank in (0, 1)]
    with ExitStack() as stack:
        processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **variables, **rank},
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            for rank, log in zip(torchrun_variables(2), logs, strict=True)
        ]
    try:
        codes = [process.wait(550) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    return {
        job: [[Trace(**t) for t in torch.load(f"{folder / job.replace('/', '_')}_{rank}.pt")] for rank in (0, 1)]
        for job in jobs
    }


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[Trace]]]:
    return train_on_two_ranks(EQUAL_TO_ONE_PROCESS, tmp_path_factory.mktemp("same"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[Trace]]]:
    return train_on_two_ranks(
        [*MORE_EQUAL_TO_ONE_PROCESS, *DIFFERENT_FROM_ONE_PROCESS, *RESUMED, "e2e/relu/broken"],
        tmp_path_factory.mktemp("others"),
    )


def assert_equal_states(a: Trace, b: Trace) -> None:
    """Assert that weights, thresholds, tallies, λ, running sums and the first bad step are equal bit for bit."""
    assert a.state.keys() == b.state.keys() >= {"saes.0.W_dec", "tallies.0.last_fired", "watch.first_bad_step"}
    for name, value in a.state.items():
        assert torch.equal(value, b.state[name]), name
    for one, other in zip(a.gradients, b.gradients, strict=True):
        assert all(torch.equal(g, h) for g, h in zip(one, other, strict=True))


def assert_numbers_of_one_process(job: str, ranks: list[list[Trace]], folder: Path) -> None:
    """Assert that losses, other numbers of the history and gradients agree to 1e-5 in all steps, and counts exactly."""
    one_process = train_job(job, devices=1, rank=0, folder=folder)
    ((first,), (second,)) = ranks
    assert len(one_process.rows) == len(one_process.gradients) == STEPS
    for a, b in zip(one_process.rows, first.rows, strict=True):
        assert a.keys() == b.keys() >= {"train/loss", "train/l0", "train/grad_norm"}
        assert all(b[name] == pytest.approx(value, rel=1e-5, abs=1e-5) for name, value in a.items()), (a, b)
    for a, b in zip(one_process.gradients, first.gradients, strict=True):
        assert any(g.any() for g in a)
        for g, h in zip(a, b, strict=True):
            torch.testing.assert_close(h, g, rtol=1e-5, atol=1e-5)
    for name in ("tallies.0.last_fired", "tallies.0.tokens_seen"):
        assert torch.equal(one_process.state[name], first.state[name])
    for name, value in one_process.state.items():
        torch.testing.assert_close(first.state[name], value, rtol=1e-4, atol=1e-4)  # Adam amplifies rounding errors
    assert_equal_states(first, second)


@pytest.mark.parametrize("job", EQUAL_TO_ONE_PROCESS)
def test_two_ranks_have_the_numbers_of_one_process(
    job: str, same: dict[str, list[list[Trace]]], tmp_path: Path
) -> None:
    assert_numbers_of_one_process(job, same[job], tmp_path)
    if "auxk" in job:
        assert any(row["train/auxk"] > 0 for row in same[job][0][0].rows), "latents should have died"
    if "clip" in job:
        assert all(row["train/grad_norm"] > 0.05 for row in same[job][0][0].rows), "it should have been clipped"


@pytest.mark.slow
@pytest.mark.parametrize("job", [job for job in MORE_EQUAL_TO_ONE_PROCESS if not job.startswith("fisher")])
def test_every_loss_without_drawn_labels_has_the_numbers_of_one_process(
    job: str, others: dict[str, list[list[Trace]]], tmp_path: Path
) -> None:
    assert_numbers_of_one_process(job, others[job], tmp_path)
    if "steered" in job:
        weights = {row["train/lambda"] for row in others[job][0][0].rows}
        assert len(weights) > 3, "λ should have moved"


@pytest.mark.slow
@pytest.mark.parametrize("job", [*MORE_EQUAL_TO_ONE_PROCESS, *DIFFERENT_FROM_ONE_PROCESS])
def test_both_processes_have_the_same_state(job: str, others: dict[str, list[list[Trace]]]) -> None:
    ((first,), (second,)) = others[job]
    assert len(first.gradients) == STEPS
    assert_equal_states(first, second)
    architecture = job.split("/")[1]
    running_means = {"batch_topk": "threshold", "gradient_topk": "effect", "p_anneal": "sums"}
    if architecture in running_means:
        assert first.state[f"saes.0.{running_means[architecture]}"].any(), "the running mean should have been updated"


@pytest.mark.slow
@pytest.mark.parametrize("job", RESUMED)
def test_a_resumed_run_equals_an_uninterrupted_one(job: str, others: dict[str, list[list[Trace]]]) -> None:
    """A resumed run equals an uninterrupted one bit for bit in both processes, each of which draws its own labels."""
    for whole, again in others[job]:
        assert len(whole.gradients) == STEPS
        assert len(again.gradients) == STEPS - 5, "it should continue from the checkpoint of step 5"
        assert_equal_states(whole._replace(gradients=whole.gradients[5:]), again)
        assert whole.rows[5:] == again.rows
    assert_equal_states(*(traces[0] for traces in others[job]))


@pytest.mark.slow
def test_a_non_finite_number_in_one_process_stops_both(others: dict[str, list[list[Trace]]]) -> None:
    ((first,), (second,)) = others["e2e/relu/broken"]
    assert "at step 4;" in first.error
    assert first.error == second.error
    assert int(first.state["watch.first_bad_step"]) == int(second.state["watch.first_bad_step"]) == 4
