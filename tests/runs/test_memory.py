"""The estimate of a job's memory: what cannot fit is refused before the start, and what works is not."""

from collections.abc import Callable

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import crux.runs.memory
from crux.config.catalogue import option_files
from crux.config.compose import build_job
from crux.config.errors import UserError
from crux.config.messages import explain_user_error
from crux.config.paths import ROOT
from crux.config.registry import register
from crux.config.schema import Accelerator, Job
from crux.runs.memory import Need, check_memory, machine_memory
from crux.sae.memory import check_sae_memory
from crux.sae.options import SaeJob
from crux.subjects.shape import Shape

GB = 2**30
GPT2 = Shape(12, 768, 50257, 1024, "gpt2", resid_mid=True, d_z=768)

SetMemory = Callable[[float], None]


@pytest.fixture
def set_memory(monkeypatch: pytest.MonkeyPatch) -> SetMemory:
    """Return a function that sets the memory of this machine, which then has no GPU."""

    def set_gigabytes(n: float) -> None:
        monkeypatch.setattr(crux.runs.memory, "_gpu_memory", lambda: 0)
        monkeypatch.setattr(crux.runs.memory, "machine_memory", lambda: int(n * GB))

    return set_gigabytes


def compose_job(*words: str) -> Job:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build_job(compose("config", overrides=list(words)), words)


def sae_job(*words: str) -> SaeJob:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        job = OmegaConf.to_object(compose("config", overrides=list(words)))
    assert isinstance(job, SaeJob)
    return job


def test_the_message_names_sizes_and_the_key_to_lower(set_memory: SetMemory) -> None:
    set_memory(24)
    needs = [Need("the weights", 30 * GB, ("sae.ratio",)), Need("a batch", GB, ("trainer.batch",))]
    with pytest.raises(UserError) as refused:
        check_memory(needs, accelerator=Accelerator.auto, given={"sae.ratio"})
    line = "sae.ratio: the job needs about 31 GB, mostly for the weights, and this machine has 24 GB; lower sae.ratio"
    assert str(refused.value) == line
    set_memory(32)
    check_memory(needs, accelerator=Accelerator.auto, given=())


def test_a_gpu_is_asked_for_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crux.runs.memory, "_gpu_memory", lambda: 80 * GB)
    monkeypatch.setattr(crux.runs.memory, "machine_memory", lambda: 8 * GB)
    needs = [Need("the weights", 60 * GB, ("sae.ratio",))]
    check_memory(needs, accelerator=Accelerator.auto, given=())
    with pytest.raises(UserError, match=r"this machine has 8\.0 GB"):
        check_memory(needs, accelerator=Accelerator.cpu, given=())
    with pytest.raises(UserError, match="the GPU has 80 GB"):
        check_memory([*needs, *needs], accelerator=Accelerator.cuda, given=())


def test_gpt2_at_ratio_60_needs_what_it_is_counted_to_need(set_memory: SetMemory) -> None:
    """2 · 46,080 · 768 weights of 16 bytes, 2 · 8,192 · 46,080 latents, 6 · 10 · 8,192 · 768 activations and 123.5 M weights of 2."""
    job = sae_job("experiment=paper/gpt2_layer6_e2e")
    expected = 2 * 46_080 * 768 * 16 + 2 * (2 * 8_192 * 46_080 + 60 * 8_192 * 768 + 12 * 12 * 768**2 + 50_257 * 768)
    set_memory(expected / GB + 0.01)
    check_sae_memory(job, GPT2, given=())
    set_memory(expected / GB - 0.01)
    with pytest.raises(UserError, match=r"^trainer\.batch: the job needs about 3\.4 GB, mostly for the latents"):
        check_sae_memory(job, GPT2, given=())


@pytest.mark.parametrize(
    "experiment", [e for e in option_files("experiment") if e not in ("toy/sae", "read", "read/compare", "export")]
)
def test_every_experiment_fits_into_four_gigabytes(experiment: str, set_memory: SetMemory) -> None:
    set_memory(4)
    job = compose_job(f"experiment={experiment}")
    if isinstance(job, SaeJob):
        check_sae_memory(job, GPT2, given=())


TOO_LARGE = [
    "trainer.batch=1000000",
    "sae.ratio=100000",
    "sae.n_latents=1000000000",
    "loss=local data.shuffle_batches=1000000000",
    "experiment=toy/basic toy.n_features=1000000000",
    "experiment=toy/basic toy.seeds=1000000000",
    "experiment=toy/basic toy.snapshots=1000000000",
    "experiment=toy/double_descent toy.points=[1000000000]",
    "experiment=llc/kgon llc.chains=1000000000",
    "experiment=llc/behavioural llc.hidden=[1000000,1000000]",
    "experiment=llc/toy_training toy.n_features=100000000",
    "experiment=degeneracy/synchronised degeneracy.hidden=[1000000,1000000]",
    "experiment=interaction_basis/modular_addition interaction_basis.addition.d_model=1000000000",
    "experiment=interaction_basis/tiny interaction_basis.compare.samples=100000000 interaction_basis.compare.batch=100000000",
    "experiment=pretrain pretrain.d_model=1000000",
]


@pytest.mark.parametrize("line", TOO_LARGE)
def test_a_size_beyond_memory_is_refused_by_the_key_that_was_typed(line: str, set_memory: SetMemory) -> None:
    set_memory(24)
    with pytest.raises(UserError) as refused:
        compose_job(*line.split())
    assert str(refused.value).startswith(f"{line.split()[-1].partition('=')[0]}: the job needs about ")
    assert "this machine has 24 GB; lower " in str(refused.value)


def test_the_memory_of_this_machine_is_positive() -> None:
    assert machine_memory() > GB


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:115] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError("Unable to allocate 7.45 GiB for an array"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_one_line(error: Exception) -> None:
    line = explain_user_error(error, overrides=[])
    assert line is not None
    assert line.startswith("out of memory (")
    assert "lower trainer.batch" in line
    assert explain_user_error(RuntimeError("a bug"), overrides=[]) is None
