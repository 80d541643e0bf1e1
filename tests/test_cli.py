"""The command line: every error in one line, and what is left when a job is stopped or breaks."""

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from omegaconf import Container, OmegaConf

import crux
import crux.cli
from crux.config.schema import Job

TINY = Path(str(files("crux.assets"))) / "tiny"
HEAVY = {
    "torch", "lightning", "mlflow", "transformers", "transformer_lens", "matplotlib", "datasets", "pandas", "scipy", "sklearn",
    "ray", "submitit", "IPython",
}  # fmt: skip
"""Libraries of which each takes about as long to import as everything that answers the help page and a wrong configuration."""
MODULES = 800
"""Modules that may be imported for such an answer. It takes about 400, and 600 if the Hugging Face hub is asked for a model."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with files and folders that wrong command lines name."""
    place = tmp_path_factory.mktemp("places")
    (place / "file").write_text("in the way")
    (place / "empty.txt").write_text("")
    (place / "latin1.txt").write_bytes(b"caf\xe9 " * 5000)
    (place / "short.txt").write_text("Too short to train on.")
    (place / "folder").mkdir()
    for name in ("broken_config", "cut_weights", "no_weights"):
        shutil.copytree(TINY, place / name)
    (place / "broken_config" / "config.json").write_text('{"model_type": ')
    whole = (TINY / "model.safetensors").read_bytes()
    (place / "cut_weights" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (place / "no_weights" / "model.safetensors").unlink()
    (place / "another").mkdir()
    (place / "another" / "config.yaml").write_text("layer: 3\n")
    return place


def runs(outputs: Path) -> list[Path]:
    return sorted((outputs / "runs").glob("*"))


def list_outputs(outputs: Path) -> list[str]:
    """Return the names in the outputs folder."""
    return sorted(p.name for p in outputs.glob("*")) if outputs.is_dir() else []


# arguments, where {} is the folder of `places`; what the line must say
MISTAKES = {  # common ones
    "loss=e2e_dss": ("loss=e2e_dss", "did you mean e2e_ds", "local"),
    "spasity=1": ("spasity", "did you mean sparsity"),
    "layer=six": ("layer=six", "whole number"),
    "layer=12": ("layer=12", "8 layers", "0 to 7"),
    "hook_point=blocks.6.hook_resid_prr": ("blocks.6.hook_resid_prr", "nearest are blocks.6.hook_resid_pre"),
    "sparsity=-1": ("sparsity=-1", "0 or more"),
    "sae.ratio=0.001": ("sae.ratio=0.001", "no latents", "0.0078125 or more"),
    "data.path={}/missing.txt": ("data.path", "missing.txt"),
    "data.path={}/empty.txt": ("data.path", "empty.txt is empty"),
    "data.path={}/latin1.txt": ("data.path", "latin1.txt is not UTF-8", "offset 3"),
    "data.path={}/short.txt": ("data.path", "short.txt is too short", "512 tokens to train on and 512 held out"),
    "model.path={}/missing": ("missing", "no such folder"),
    "model.path={}/broken_config": ("broken_config/config.json", "not a JSON file"),
    "model.path={}/cut_weights": ("cut_weights/model.safetensors", "a broken one"),
    "model=gpt2": ("gpt2", "HF_HUB_OFFLINE", "model=tiny", "model.path="),
    "output_dir={}/file": ("output_dir", "file"),
    "tracking.uri=http://127.0.0.1:99999": ("tracking.uri=http://127.0.0.1:99999", "Port out of range", "<port>"),
    "resume_from={}/another": ("another", "configuration differs", "layer: 3 / 6"),
}
MORE = {
    "+foo=1": ("foo: no such key; allowed keys: ", "`--help` lists all"),
    "++foo=1": ("foo: no such key",),
    "layer=6 hook_point=blocks.6.hook_resid_pre": ("layer and hook_point both given",),
    "loss.klx=1": ("loss.klx", "did you mean loss.kl?"),
    "trainer.precision=half": ("trainer.precision=half", "auto, float32, bfloat16"),
    "model.context=512": ("model.context=512", "256 tokens"),
    "loss.downstream_hooks=[blocks.3.hook_resid_pre]": (
        "blocks.3.hook_resid_pre",
        "allowed are blocks.7.hook_resid_pre",
    ),
    "loss.downstream_hooks=[nonsense]": ("loss.downstream_hooks", "nonsense", "blocks.7.hook_resid_post"),
    "hook_point=blocks.7.hook_resid_post": ("loss=e2e_ds", "no later residual", "blocks.7.hook_resid_post"),
    "hook_point=blocks.9.hook_resid_pre": ("8 layers", "blocks.0 to blocks.7"),
    "hook_point=nonsense": ("hook_point=nonsense", "blocks.0.hook_resid_pre"),
    "layer=-1": ("layer=-1", "0 to 7"),
    "layer=6.5": ("layer=6.5", "whole number"),
    "layer": ("layer", "key=value"),
    "layer=2,4": ("layer=2,4", "-m", "'layer=\"2,4\"'"),
    "layr=6": ("layr: no such key; did you mean layer? allowed keys: ",),
    "sae.start_from=a=b,c/sae": ("sae.start_from: a=b,c/sae has characters", "write 'sae.start_from=\"a=b,c/sae\"'"),
    "experiment=toy/intro_polygon debug=limit": ("debug=limit: does not fit", "use debug=limit_training"),
    "experiment=toy/phase": ("did you mean toy/phase_diagram?", "`--help experiment` lists all"),
    "experiment=pareto": ("did you mean sweeps=pareto?",),
    "~layer": ("layer",),
    "--layer=6": ("--layer=6", "no dashes", "layer="),
    "sparsity=much": ("sparsity=much", "a number"),
    "sparsity=nan": ("sparsity=nan", "0 or more"),
    "seed=null": ("seed=null", "must have a value"),
    "resume=maybe": ("resume=maybe", "true or false"),
    "resume=true": ("resume=true", "no unfinished run"),
    "resume_from={}/folder": ("folder", "not a run folder"),
    "resume=true resume_from={}/folder": ("both given",),
    "experiment=paper/gpt2_layer7_local": ("gpt2_layer7_local", "did you mean paper/gpt2_layer"),
    "experiment=paper/gpt2_layer2_local layer=12": ("layer=12", "12 layers", "0 to 11"),
    "tracking=mlfow": ("tracking=mlfow", "did you mean mlflow?"),
    "tracking.uri=elsewhere://x": ("tracking.uri=elsewhere://x", "sqlite", "tracking=none"),
    "sae.n_latents=0": ("sae.n_latents=0", "1 or more"),
    "sae.ratio=null": ("sae.ratio", "sae.n_latents"),
    "optimizer.betas=[0.9]": ("optimizer.betas=[0.9]", "two numbers"),
    "optimizer.lr=0": ("optimizer.lr=0", "more than 0"),
    "optimizer.min_lr_factor=2": ("optimizer.min_lr_factor=2", "0 to 1"),
    "trainer.accelerator=tpu": ("trainer.accelerator=tpu", "cpu, cuda"),
    "trainer.max_steps=0": ("trainer.max_steps=0", "1 or more"),
    "data.path={}/folder": ("data.path", "no text"),
    "data.path={}/short.txt data.name=x": (
        "data.name: data=packaged has no such key; data=hub, data=openwebtext_gpt2 have it",
    ),
    "model.path={}/no_weights": ("no_weights", "no model.safetensors"),
    "output_dir={}/file/deeper": ("output_dir", "file/deeper"),
    "cache={}/file": ("cache", "is a file"),
    # a path that is read as something else than a text
    "data.path=1e5": ("data.path: 1e5 is read as a number", "write 'data.path=\"1e5\"'"),
    "data.path=a=b.txt": ("data.path: a=b.txt has characters that need quotes", "write 'data.path=\"a=b.txt\"'"),
    # keys that this job does not have, groups without an option, and keys of Hydra's own
    "llc.chains=3": ("llc.chains: this job has no section llc; experiment=llc/",),
    "+llc.chains=3": ("llc.chains: this job has no section llc",),
    "++toy.seeds=2": ("toy.seeds: this job has no section toy", "experiment=toy/"),
    "toy={seeds:2}": ("toy.seeds: this job has no section toy",),
    "pretrain.lr=1": ("pretrain.lr: this job has no section pretrain; experiment=pretrain has it",),
    "experiment=pretrain layer=3": ("layer: this job has no such key; the main job has it",),
    "experiment=pretrain sae.ratio=3": ("sae.ratio: this job has no section sae; the main job has it",),
    "experiment=toy/basic loss=local": ("loss: has no meaning for this experiment",),
    "experiment=toy/basic sae.ratio=3": ("sae.ratio: this job has no section sae",),
    "experiment=llc/kgon optimizer.lr=1": ("optimizer.lr: this job has no section optimizer",),
    "experiment=toy/basic toy.experiment=x": ("toy.experiment=x: cannot be set",),
    "data=null": ("data=null: no such option; allowed are hub",),
    "trainer=0": ("trainer=0: no such option",),
    "loss=[local,e2e]": ("loss=[local,e2e]: no such option",),
    "llc=3": ("llc: has no meaning for this experiment",),
    "job=toy": ("job=toy: cannot be set; choose an experiment, experiment=toy/",),
    "sweeps=null": ("sweeps=null: leave it out",),
    "+sae=topk": ("+sae=topk: write sae=topk, without +",),
    "+layer=3": ("+layer=3: write layer=3, without +",),
    "~seed": ("~seed: a key cannot be removed",),
    "=3": ("=3: cannot be read; write key=value",),
    "é=1": ("é=1: cannot be read",),
    "seed.x=3": ("seed.x: no such key; seed is a value",),
    "hydra=null": ("hydra: crux sets Hydra's own keys",),
    "hydra.run.dir=x": ("hydra.run.dir: crux sets Hydra's own keys; allowed are hydra/launcher",),
    "hydra.searchpath=[/nowhere]": ("hydra.searchpath: /nowhere is no folder",),
    # code is named only at the documented places
    "sae._target_=os.system": ("sae._target_: cannot be set on the command line", "docs/guide/extending.md"),
    "loss={_target_:os.system}": ("loss._target_: cannot be set on the command line",),
    "model._target_=os.system": ("model._target_=os.system: must be a function load(",),
    "model._target_=nowhere.load": ("model._target_=nowhere.load: there is no package nowhere",),
    "+callbacks.x._target_=os.system": (
        "callbacks.x._target_=os.system: must be a class derived from lightning.Callback",
    ),
    "+callbacks.x._target_=lightning.Callback +callbacks.x.y._target_=os.system": (
        "callbacks.x.y._target_: cannot be set",
    ),
    "+callbacks.x.every=3": ("callbacks.x.every: a callback needs its class",),
    "callbacks.x._target_=lightning.Callback": ("is added by +callbacks.x._target_=lightning.Callback",),
    # values that would be converted silently, that are empty, not finite, or beyond any use
    "trainer.progress=3": ("trainer.progress=3: must be true or false",),
    "sparsity=true": ("sparsity=true: must be a number",),
    "output_dir=": ("output_dir=: must not be empty",),
    "data.path=": ("data.path=: must not be empty; data.path=null is the default",),
    "optimizer.betas=[0.9,[1]]": ("optimizer.betas=[0.9,[1]]: must be a list of single values",),
    "layer=${nowhere}": ("layer: refers to nowhere",),
    "layer=${nowhere:1}": ("layer: ${nowhere:…} is no function",),
    "sae.ratio=inf": ("sae.ratio=inf: must be 1,000,000 or less",),
    "sae.ratio=nan": ("sae.ratio=nan: must be more than 0",),
    "sae.ratio=1e300": ("sae.ratio=1e+300: must be 1,000,000 or less",),
    "seed=18446744073709551616": ("seed=18446744073709551616: must be 4,294,967,295 or less",),
    "trainer.max_steps=1e30": ("trainer.max_steps=1e+30: must be a whole number",),
    "trainer.accumulate=9223372036854775808": (
        "trainer.accumulate=9223372036854775808: must be 1,000,000,000 or less",
    ),
    "trainer.val_every=1000000000000000000000000000000": ("trainer.val_every=1", "must be 1,000,000,000 or less"),
    # keys without effect
    "sae.ratio=4 sae.n_latents=512": ("sae.ratio: has no effect, because sae.n_latents takes precedence",),
    "model.name=gpt2 model.path={}/folder": ("model.name: has no effect, because model.path takes precedence",),
    "model.n_layers=8": ("model.n_layers: has no effect",),
    "sparsity=3 sae.sparsity_scale=2": ("sae.sparsity_scale: has no effect, because sparsity is given",),
    "sparsities=[1,2] loss.default_sparsity=2": ("loss.default_sparsity: has no effect, because sparsities is given",),
    "sae.auxk.k=3": ("sae.auxk.k: has no effect, because there is no AuxK",),
    "sae=relu_paper sae.init_norm=0.1": ("sae.init_norm: has no effect, because sae.init=paper",),
    "report_l0=[30]": ("report_l0: has no effect, because this is no sweep",),
    "report_geometry=pca": ("report_geometry: has no effect, because this is no sweep",),
    "retry_failed=true": ("retry_failed: has no effect, because this is no sweep",),
    "experiment=llc/kgon callbacks=timer": ("callbacks: has no effect, because this job trains nothing",),
    "experiment=degeneracy/spectra degeneracy.hidden=[3]": ("degeneracy.hidden: has no effect",),
    "experiment=degeneracy/spectra degeneracy.network=mlp degeneracy.sequences=3": (
        "degeneracy.sequences: has no effect",
    ),
    "experiment=toy/basic toy.n_sets=2": ("toy.n_sets: has no effect, because features are independent",),
    # flags
    "--cfg nope": ("--cfg: must be followed by one of job, hydra, all",),
    "-m layer=2,4 --cfg job": ("-m and --cfg both given",),
    "-m --info": ("both given",),
    "--resolve": ("--resolve: needs --cfg job",),
    "--config-name x": ("--config-name: no such flag",),
    "-x": ("-x: no such flag",),
    "-mlayer=2": ("-mlayer: no such flag",),
    "--shell-completion": ("--shell-completion: must be followed by install=<shell>",),
    # a grid with spaces, and lists of lists
    "-m layer=2, 4": ("layer=2,: ends in a comma", "without spaces"),
    "-m loss=local,e2e, layer=2": ("loss=local,e2e,: ends in a comma", "such as loss=a,b"),
    "experiment=llc/linear llc.widths=[4]": ("llc.widths: must be a list",),
    "experiment=llc/linear llc.widths=[[4,x]]": ("llc.widths[0]=x: must be a whole number",),
    "data=hub": ("data.name: must be given",),
    "experiment=toy/sae loss=local": ("model.path=null: must be the run folder of a toy experiment",),
    # architectures and losses
    "sae=topkk": ("sae=topkk", "did you mean topk?"),
    "sae=topk sae.k=5000": ("sae.k=5000", "2048 latents"),
    "sae=topk sae.k=0": ("sae.k=0", "1 or more"),
    "sae=topk sae.k=null": ("sae.k=null", "must have a value"),
    "sae=relu sae.k=5": ("sae.k: sae=relu has no such key", "sae=topk"),
    "sae=gradient_topk sae.beta=-1": ("sae.beta=-1", "0 or more"),
    "sae=gradient_topk sae.gradient_target=kl": ("sae.gradient_target=kl", "data, sampled, top_logit"),
    "sae=topk sparsity=2": ("sparsity=2", "fixes L0 by sae.k=32"),
    "sae=topk target_l0=30": ("target_l0=30", "fixes L0 by sae.k", "give sae.k=30"),
    "target_l0=3000": ("target_l0=3000", "2048 latents"),
    "target_l0=0": ("target_l0=0", "more than 0"),
    "target_l0=30 sparsity=0": ("target_l0", "sparsity must be more than 0"),
    "sae=jumprelu sae.bandwidth=0": ("sae.bandwidth=0", "more than 0"),
    "sae=matryoshka sae.prefixes=[0.5,0.2]": ("sae.prefixes=[0.5, 0.2]", "increasing shares"),
    "sae=p_anneal sae.p_end=2": ("sae.p_end=2", "between 0 and 1"),
    "sae=jumprelu sae.threshold_rate=0": ("sae.threshold_rate=0", "more than 0"),
    "sae.auxk.coefficient=-1": ("sae.auxk.coefficient=-1", "0 or more"),
    "loss=kl_finetune loss.finetune_share=2": ("loss.finetune_share=2", "0 to 1"),
    "loss=fisher loss.kl=1": ("loss.kl: loss=fisher has no such key", "loss=e2e"),
    "hook_points=[blocks.4.hook_resid_pre,blocks.2.hook_resid_pre]": ("hook_points", "out of order"),
    "hook_points=[blocks.4.hook_resid_pre,blocks.4.hook_resid_pre]": ("hook_points", "out of order"),
    "hook_points=[]": ("hook_points=[]", "at least one"),
    "hook_points=[blocks.2.hook_resid_pre] layer=2": ("hook_points and layer both given",),
    "hook_points=[blocks.2.hook_resid_pr]": (
        "hook_points=blocks.2.hook_resid_pr:",
        "nearest are blocks.2.hook_resid_pre",
    ),
    "sae.output_hook=blocks.7.hook_mlp": ("sae.output_hook=blocks.7.hook_mlp:", "nearest are blocks.7.hook_mlp_out"),
    "sae.output_hook=blocks.2.hook_mlp_out": (
        "sae.output_hook=blocks.2.hook_mlp_out",
        "is not after blocks.6.hook_resid_pre",
    ),
    "sae.output_hook=blocks.7.hook_resid_post": ("loss=e2e_ds", "no later residual", "blocks.7.hook_resid_post"),
    "hook_points=[blocks.2.hook_resid_pre] sae.output_hook=blocks.4.hook_mlp_out": ("needs one hook_point",),
    "sae.name=mine": ("sae.name=mine", "choose an architecture by sae="),
    "loss=local loss.reconstruction=0": ("loss=local", "nothing to minimise"),
    "sae=topk gradient.target=sampled": (
        "gradient.target: called sae.gradient_target here, but",
        "sae=gradient_topk has it",
    ),
    "sae=topk sae.gradient_target=sampled": (
        "sae.gradient_target: sae=topk has no such key; sae=gradient_topk has it",
    ),
    "loss=local loss.block_diagonal=true": ("loss.block_diagonal: loss=local has no such key; loss=fisher has it",),
    "sae=p_anneal sae.p_end=1": ("sae.p_end=1", "between 0 and 1"),
    "sae=batch_topk loss.skip_positions=[0]": ("sae=batch_topk", "the loss cannot leave out any token"),
    "hook_points=[blocks.5.hook_resid_post,blocks.6.hook_resid_pre]": ("hook_points", "out of order"),
    "sae.start_from={}/folder": ("sae.start_from", "not an SAE folder"),
    # many SAEs at once
    "sparsities=[1,2] trainer=ddp trainer.devices=2": ("sparsities", "one device"),
    "sparsities=[]": ("sparsities=[]", "at least one"),
    "sparsities=[1,2,1.0]": ("sparsities=[1.0, 2.0, 1.0]", "contains a value twice"),
    "sparsities=[1,-2]": ("sparsities=[1.0, -2.0]", "0 or more"),
    "sparsities=[1,2] sparsity=3": ("sparsities and sparsity both given",),
    "sparsities=[1,2] target_l0=30": ("sparsities and target_l0 both given",),
    "sparsities=[1,2] hook_points=[blocks.2.hook_resid_pre,blocks.4.hook_resid_pre]": ("one hook point, not 2",),
    "sparsities=[1,2] sae=topk": ("are for sae=relu, not sae=topk; give ks",),
    "sparsities=[1,2] sae=jumprelu": ("are for sae=relu, not sae=jumprelu, one run for each value",),
    "sparsities=[one,two]": ("sparsities", "one"),
    "ks=[16,32]": ("are for sae=topk, not sae=relu; give sparsities",),
    "ks=[16,5000] sae=topk": ("sae.k=5000", "2048 latents"),
    "ks=[0,2] sae=topk": ("ks=[0, 2]", "1 or more"),
    "ks=[1.5,2] sae=topk": ("ks", "1.5"),
    "ks=[16,32] sae=topk sae.k=8": ("ks and sae.k both given",),
}


def words(line: str, places: Path, outputs: Path) -> list[str]:
    given = line.replace("{}", str(places)).split(" ")
    return given if any(w.startswith("output_dir") for w in given) else [*given, f"output_dir={outputs}"]


def check_line(err: str, *said: str) -> None:
    assert err.count("\n") == 1, err
    assert err.startswith("crux: "), err
    for part in said:
        assert part in err, f"{part!r} is not in {err!r}"


def run_counting_imports(
    command: list[str], *words: str, folder: Path
) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a command line; return what it printed, and the modules that it imported."""
    ended = subprocess.run(
        [command[0], "-X", "importtime", *command[1:], *words], capture_output=True, text=True, cwd=folder, check=False
    )
    lines = ended.stderr.splitlines(keepends=True)
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    ended.stderr = "".join(line for line in lines if not line.startswith("import time:"))
    return ended, modules


def check_light(modules: set[str]) -> None:
    assert "crux.cli" in modules
    assert not HEAVY & {module.partition(".")[0] for module in modules}
    assert len(modules) < MODULES


@pytest.mark.parametrize("line", MISTAKES)
def test_an_error_is_one_line_and_imports_nothing_heavy(
    line: str, places: Path, tmp_path: Path, command: list[str]
) -> None:
    ended, modules = run_counting_imports(command, *words(line, places, tmp_path / "out"), folder=tmp_path)
    assert ended.returncode == 2
    check_line(ended.stderr, *MISTAKES[line])
    assert ended.stdout == ""
    assert list_outputs(tmp_path / "out") == []
    check_light(modules)


@pytest.mark.parametrize("topic", ["", "loss", "trainer", "sae=jumprelu", "sae.k", "toy.tile", "experiment=toy/basic"])
def test_help_imports_nothing_heavy(topic: str, tmp_path: Path, command: list[str]) -> None:
    ended, modules = run_counting_imports(command, "--help", *filter(None, [topic]), folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout
    check_light(modules)


@pytest.mark.parametrize(
    ("words", "most"), [(["--help"], 25), (["--help", "loss"], 25), (["--help", "sae.k"], 25), (["spasity=1"], 45)]
)
def test_an_answer_loads_only_the_files_of_its_job(
    words: list[str], most: int, run_crux: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A composition loads 19 files, however many experiments there are; Hydra's command line composes twice."""
    loaded: list[object] = []

    def load(file: object) -> Container:
        loaded.append(file)
        return original(file)  # pyright: ignore[reportArgumentType]

    original = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", load)
    run_crux(*words)
    assert 0 < len(loaded) <= most


@pytest.mark.parametrize("line", MORE)
def test_an_error_names_the_key_and_the_allowed_values(
    line: str, places: Path, tmp_path: Path, run_crux: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_crux(*words(line, places, tmp_path / "out")) == 2
    out, err = capfd.readouterr()
    check_line(err, *MORE[line])
    assert out == ""
    assert list_outputs(tmp_path / "out") == []


def test_of_two_values_of_a_key_the_last_counts_and_a_line_says_so(
    run_crux: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Job] = []
    monkeypatch.setattr(crux.cli, "start_job", lambda job, *, folder: started.append(job))
    assert run_crux("layer=2", "layer=3", f"output_dir={tmp_path}") == 0
    assert capfd.readouterr().err == "crux: layer is given more than once; the last one counts, layer=3\n"
    assert [getattr(job, "layer", None) for job in started] == [3]
    assert run_crux("layer=2", "layer=9", f"output_dir={tmp_path}") == 2
    check_line(capfd.readouterr().err, "layer=9: the model has 8 layers")


def test_an_override_may_refer_to_another_key(
    tmp_path: Path, run_crux: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    """Hydra keeps the overrides in its own configuration, where ${layer} does not exist."""
    given = ["hook_point='blocks.${seed}.hook_resid_pre'", "seed=9", f"output_dir={tmp_path}"]
    assert run_crux(*given) == 2
    check_line(capfd.readouterr().err, "hook_point=blocks.9.hook_resid_pre", "8 layers")


def test_a_librarys_error_ends_failed_with_a_traceback(
    tmp_path: Path, run_crux: Callable[..., int], short_job: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("not the user's fault")

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", broken)
    with pytest.raises(ValueError, match="not the user's fault"):  # Python prints the traceback, exit code 1
        run_crux(*short_job, "loss=local", f"output_dir={tmp_path}")
    assert states(tmp_path) == ["FAILED"]
    (run,) = runs(tmp_path)
    assert not (run / "DONE").exists()


def states(outputs: Path) -> list[str]:
    """Return the final states of the runs in MLflow."""
    connection = sqlite3.connect(outputs / "mlflow.db")
    found = [status for (status,) in connection.execute("SELECT status FROM runs")]
    connection.close()
    return found


def test_a_full_disk_is_reported(
    tmp_path: Path,
    run_crux: Callable[..., int],
    short_job: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from crux.runs.run_folder import RunFolder

    def full(self: RunFolder, step: int, row: dict[str, float]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / "history.jsonl"))

    monkeypatch.setattr(RunFolder, "add_row", full)
    assert run_crux(*short_job, "loss=local", "tracking=none", f"output_dir={tmp_path}") == 2
    check_line(capfd.readouterr().err, "history.jsonl", "No space left on device")
    (run,) = runs(tmp_path)
    assert not (run / "DONE").exists()


def test_a_locked_database_is_reported_once_and_the_run_goes_on(
    tmp_path: Path,
    run_crux: Callable[..., int],
    short_job: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import crux.runs.database

    monkeypatch.setattr(crux.runs.database, "LOCK_SECONDS", 0.2)
    holder = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    holder.execute("CREATE TABLE held (x)")
    holder.execute("BEGIN EXCLUSIVE")
    try:
        assert run_crux(*short_job, "loss=local", f"output_dir={tmp_path}") == 0
    finally:
        holder.close()
    warning, note = (line for line in capfd.readouterr().err.splitlines() if line.startswith("crux: "))
    assert "mlflow.db (database is locked); the run goes on" in warning
    assert "MLflow does not have the run yet" in note
    (run,) = runs(tmp_path)
    assert (run / "DONE").exists()
    assert run_crux(*short_job, "loss=local", "seed=1", f"output_dir={tmp_path}") == 0
    assert states(tmp_path) == ["FINISHED", "FINISHED"]
    assert not (tmp_path / "mlflow_unsent").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_stopped_run_is_killed_in_mlflow_and_keeps_its_checkpoint(
    number: signal.Signals, code: int, tmp_path: Path, short_job: tuple[str, ...], command: list[str]
) -> None:
    given = ["loss=local", "trainer.max_steps=1000000", "trainer.val_every=0", f"output_dir={tmp_path}"]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    process = subprocess.Popen(
        [*command, *short_job, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, inherited)
    try:
        deadline = time.monotonic() + 120
        # Ctrl-C does not wait for a database that is still being created
        while not (list(tmp_path.glob("runs/*/checkpoints/last.ckpt")) and list(tmp_path.glob("runs/*/mlflow_run_id"))):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    assert err.count("\n") == 1, err
    assert states(tmp_path) == ["KILLED"]
    (run,) = runs(tmp_path)
    assert f"the same command with resume=true continues {run}" in err
    assert not (run / "DONE").exists()
    import torch

    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] >= 2


def test_the_version_is_that_of_crux(run_crux: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_crux("--version") == 0
    assert capsys.readouterr().out == f"crux {crux.__version__}\n"
