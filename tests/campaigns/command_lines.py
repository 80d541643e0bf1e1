"""Random command lines over all keys of all experiments: wrong ones end in one line that names what was typed, right ones start.

A case is wrong by construction: its value is no value of the key's type or beyond every bound, its key does not exist or belongs to
another job, its group, flag or grid cannot be read. Each runs in a fork of a warm process, in which a job ends as soon as it would
start. Long form: `python -m tests.campaigns.command_lines --cases 1000`, and 30 of the cases once more in processes of their own.
"""

import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from crux.config.catalogue import (
    Choice,
    find_annotation,
    has_key,
    list_groups,
    option_files,
    options_class,
    read_experiment,
)
from crux.config.paths import ROOT
from crux.config.registry import known_keys, list_keys, options_by_group
from tests.campaigns.forks import CommandOutcome, run_command
from tests.campaigns.outcomes import Outcomes, run_campaign
from tests.support.experiments import NEED_A_FOLDER

MAX_CPU_SECONDS = 1.0
"""CPU seconds within which a wrong command line must be answered."""
COLD_CASES = 30
"""Cases of the long form that are also run in a process of their own, with the imports."""
STARTED = "the job would start now"

NO_NUMBERS = ("nan", "inf", "-inf", "1e300", "-1e300", "1" + 30 * "0", "-1" + 30 * "0", "18446744073709551616", "many", "true",
              "{a:1}", "", "${nowhere}", "${oc.env:CRUX_NO_SUCH_VARIABLE}", "${foo:1}", "9" * 5000, "'1,2'", "1e", "--3", "0x10",
              "½")  # fmt: skip
NO_BOOLS = ("3", "2.5", "maybe", "null", "[true]", "{a:true}", "", "${nowhere}", "tru")
NO_NAMES = ("", "[a]", "{a:1}", "${nowhere}", "' '")
NO_LISTS = ("3", "nan", "text", "true", "[[[1]]]", "[nan]", "[${nowhere}]", "[{a:1}]", "[1,2")
NO_OPTIONS = ("null", "0", "3.5", "true", "[a,b]", "", "no_such_option", "../tiny", "[]", "a/b/c")
ODD_PATHS = (
    "a=b.txt",
    "it's.txt",
    "(x).txt",
    "é.txt",
    "a#b",
    "a;b",
    "<x>",
    "{x}.txt",
    "~/no such file.txt",
    "a[1].txt",
    'x"y',
)


class Case(NamedTuple):
    """A command line, and what it must do."""

    words: list[str]
    names: str
    """What the one line must contain; empty for a command line that must start."""
    kind: str
    """The kind of mistake, for the table."""


EXPERIMENTS = [None, None, *(n for n in option_files("experiment") if n not in {*NEED_A_FOLDER, "report"})]
"""The experiments whose keys are drawn; those left out need a folder."""


def list_typed_keys(choice: Choice) -> list[str]:
    """Return every key of a job, as it is typed, except sections."""
    keys = set(list_keys(options_by_group()["job"][choice.job]))
    for group, option in choice.options.items():
        if (kind := options_class(group, option)) is not None:
            keys |= {f"{group}.{key}" for key in list_keys(kind)}
    hints = {key: find_annotation(choice, key) for key in sorted(keys)}
    return [key for key, hint in hints.items() if hint is not None and not hasattr(hint, "__dataclass_fields__")]


def split_annotation(hint: Any) -> tuple[type, bool, int]:
    """Return the plain type of an annotation, whether it may be null, and how deep its lists are nested."""
    optional, depth = False, 0
    while True:
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        elif get_origin(hint) in (Union, UnionType):
            optional = True
            hint = next(kind for kind in get_args(hint) if kind is not type(None))
        elif get_origin(hint) is list:
            depth += 1
            hint = get_args(hint)[0]
        else:
            return get_origin(hint) or hint, optional, depth


def draw_wrong_value(rng: random.Random, key: str, hint: Any) -> str:
    """Draw a value that a key certainly cannot have."""
    plain, optional, depth = split_annotation(hint)
    if depth:
        wrong = [value for value in NO_LISTS if plain in (int, float) or value not in ("[nan]",)]
        wrong += ["[-1]", "[1e300]"] if plain in (int, float) and depth == 1 else []
        wrong = [value for value in wrong if not (depth == 3 and value == "[[[1]]]")]
        return rng.choice(wrong)
    if plain is bool:
        return rng.choice([value for value in NO_BOOLS if value != "null" or not optional])
    if plain in (int, float):
        wrong = [*NO_NUMBERS, "-1", *([] if optional else ["null"]), *(["1.5", "1e30"] if plain is int else [])]
        return rng.choice(wrong)
    if isinstance(plain, type) and issubclass(plain, Enum):
        return rng.choice(["no_such_name", "1", "[a]", "{a:1}", "", "null", "true"])
    return rng.choice([*NO_NAMES, *([] if optional else ["null"])])


def misspell(rng: random.Random, key: str) -> str:
    """Return a key with one character more, which is no key of anything."""
    place = rng.randrange(1, len(key))
    return key[:place] + rng.choice("qxzj") + key[place:]


def draw_wrong_key(rng: random.Random, base: list[str], choice: Choice) -> Case:
    own = list_typed_keys(choice)
    prefix = rng.choice(["", "", "+", "++"])
    match rng.randrange(3):
        case 0:
            key = misspell(rng, rng.choice([key for key in own if "callbacks" not in key]))
            return Case([*base, f"{prefix}{key}=1"], key.partition(".")[0] if prefix == "" else key, "no such key")
        case 1:
            others = [key for key in known_keys() if not has_key(choice, key) and "_target_" not in key]
            key = rng.choice(sorted(others))
            leaf = key.rpartition(".")[2]
            return Case([*base, f"{prefix}{key}={rng.choice(['1', 'x', 'null', '[1]'])}"], leaf, "key of another job")
        case _:
            key = rng.choice([key for key in own if not key.startswith("callbacks")])
            return Case([*base, f"{key}.x=1"], key, "key within a value")


def draw_wrong_group(rng: random.Random, base: list[str], choice: Choice) -> Case:
    groups = [group for group in list_groups() if group not in ("experiment",)]
    group = rng.choice([*groups, "job", "llc", "toy", "interaction_basis", "hydra"])
    unread = [g for g in ("sae", "loss", "model", "data", "evaluation") if g not in choice.options]
    if unread and rng.random() < 0.3:
        group = rng.choice(unread)
        return Case(
            [*base, f"{group}={rng.choice(list(option_files(group)))}"], group, "group that the job does not read"
        )
    return Case(
        [*base, f"{rng.choice(['', '', '+', '++'])}{group}={rng.choice(NO_OPTIONS)}"], group, "no option of a group"
    )


def draw_wrong_form(rng: random.Random, base: list[str], choice: Choice) -> Case:
    key = rng.choice([key for key in list_typed_keys(choice) if not key.startswith("callbacks")])
    word, names = rng.choice([
        (f"~{key}", key), (key, key), (f"{key}==1", key), ("=1", "=1"), (f"é{key}=1", f"é{key}"), (f"{key} 1", key), (f"{key} = 1", key),
        (f"{key}@x=1", key), (f"{key}=(1)", key), (f"{key}=[1", key), (f"{key}='a", key), (f"{key}=a,,b", key), (f"/{key}=1", key),
        (f".{key}=1", key), (f"{key}.=1", key), ("", "cannot be read"), (f"~{key}=1", key), (f"+{key}", key), (f"{key}=1=2", key),
    ])  # fmt: skip
    return Case([*base, word], names, "unreadable word")


def draw_wrong_flag(rng: random.Random, base: list[str], choice: Choice) -> Case:
    key = rng.choice(list_typed_keys(choice))
    words, names = rng.choice([
        ([f"--{key}=1"], key), ([f"--{key}"], key), (["--cfg"], "--cfg"), (["--cfg", "nope"], "--cfg"), (["-x"], "-x"), (["-m", "--cfg",
        "job"], "--cfg"),
        (["--resolve"], "--resolve"), (["-p", "x"], "-p"), (["--info", "nope"], "nope"), (["-m", "--info"], "--info"), (["--config-name",
        "x"], "--config-name"),
        (["--config-path=/tmp"], "--config-path"), (["--experimental-rerun", "x"], "--experimental-rerun"), (["-mseed=1"], "-mseed"),
        (["--"], "--"),
        (["-m"], "-m"), (["-"], "-"), (["--config-dir"], "--config-dir"), (["--multirun=3"], "--multirun"), (["--run"], "--run"),
    ])  # fmt: skip
    if words == ["--info", "nope"]:
        return Case([*base, *words], "nope", "wrong flag")
    if words == ["-m"]:
        return Case(["-m"], "-m starts a grid", "wrong flag")
    return Case(
        [*base, *words], names.lstrip("-") if names.startswith("--") and len(names) > 2 else names, "wrong flag"
    )


def draw_wrong_hydra_key(rng: random.Random, base: list[str], choice: Choice) -> Case:
    word = rng.choice([
        "hydra.run.dir=/tmp/x", "hydra.mode=MULTIRUN", "hydra.job.chdir=true", "hydra.verbose=true", "hydra.nope=1", "hydra.sweep.dir=x",
        "hydra.launcher._target_=os.system", "hydra.sweeper._target_=os.system", "hydra.searchpath=3", "hydra.searchpath=[/nowhere]",
        "hydra/launcher=nope", "hydra/sweeper=basic", "hydra/launcher=null", "hydra.job.env_set.PATH=x",
        "hydra.callbacks.x._target_=os.system",
        "hydra.sweeper.max_batch_size=-1", "hydra.output_subdir=x", "hydra.help.app_name=x", "+hydra.launcher.nope=3",
    ])  # fmt: skip
    return Case(
        [*base, word], word.lstrip("+").partition("=")[0].rpartition(".")[0] or word.partition("=")[0], "key of Hydra's"
    )


def draw_code(rng: random.Random, base: list[str], choice: Choice) -> Case:
    target = rng.choice(
        [
            "os.system",
            "subprocess.run",
            "builtins.exec",
            "crux_no_such_package.load",
            "nodots",
            "a b.c",
            "3",
            "null",
            "",
        ]
    )
    key = rng.choice(["sae._target_", "loss._target_", "+callbacks.x._target_", "++callbacks.x._target_", "+callbacks.x.y._target_",
                      "+trainer._target_", "++seed._target_", "+_target_", "optimizer._target_"])  # fmt: skip
    return Case([*base, f"{key}={target}"], key.lstrip("+").partition("._target_")[0], "code")


def draw_wrong_grid(rng: random.Random, base: list[str], choice: Choice) -> Case:
    word, names = rng.choice([
        ("seed=range(2,", "seed"), ("seed=range(5,2)", "seed"), ("seed=range(0,5,0)", "seed"), ("seed=choice(", "seed"), ("seed=glob(*)",
        "seed"),
        ("seed=interval(0,1)", "seed"), ("seed=0,-1", "seed=-1"), ("seed=0,x", "seed=x"), ("seed=range(0,1000000000)", "seed"),
        ("seed=0,,1", "seed"),
        ("sweeps=pareto,layers", "one after the other"), ("sweeps=glob(*)", "one after the other"), ("experiment=nope,toy/basic", "nope"),
        ("seed=0,1 layer=range(0,9000)", "jobs"), ("tracking=glob(z*)", "tracking"), ("tracking=none,nope", "nope"), ("seed=0,nan", "seed"),
        ("trainer.progress=true,3", "trainer.progress"), ("output_dir=a,''", "output_dir"), ("seed=0,1 resume=0.5,true", "resume"),
    ])  # fmt: skip
    if "layer" in word:
        base = []
    return Case(["-m", *base, *word.split(" ")], names, "grid")


def draw_wrong_cell(rng: random.Random, base: list[str], choice: Choice) -> Case:
    words, names = rng.choice([
        (["layer=2,99"], "layer=99"), (["sae=topk", "sae.k=32,5000"], "sae.k=5000"), (["loss=local,e2e_ds",
        "hook_point=blocks.7.hook_resid_post"], "loss=e2e_ds"),
        (["sae=relu,batch_topk", "loss.skip_positions=[0]"], "batch_topk"), (["sae=topk,relu", "sparsity=2"], "sae=topk"),
        (["loss=local,fisher", "loss.kl=1"], "loss.kl"),
        (["sae.ratio=16,0.001"], "sae.ratio=0.001"), (["sae.ratio=16,1000000"], "sae.ratio"),
        (["trainer.batch=4,100000000"], "trainer.batch"),
        (["model.context=256,512"], "model.context=512"), (["sweeps=pareto", "layer=8"], "layer=8"), (["target_l0=32",
        "sae=relu,topk"], "target_l0"),
        (["experiment=toy/basic,llc/kgon", "llc.chains=3"], "llc"), (["evaluation.tokens=4096,100"], "evaluation.tokens=100"),
    ])  # fmt: skip
    return Case(["-m", *words], names, "cell of a grid")


def draw_too_large(rng: random.Random, base: list[str], choice: Choice) -> Case:
    words, names = rng.choice([
        (["trainer.batch=100000000"], "trainer.batch"), (["sae.ratio=900000"], "sae.ratio"), (["sae.n_latents=900000000"], "sae.n_latents"),
        (["experiment=toy/basic", "toy.seeds=900000000"], "toy.seeds"), (["experiment=toy/basic",
        "toy.n_features=900000000"], "toy.n_features"),
        (["experiment=toy/basic", "toy.snapshots=900000000"], "toy.snapshots"), (["experiment=llc/kgon",
        "llc.chains=900000000"], "llc.chains"),
        (["experiment=pretrain", "pretrain.d_model=800000"], "pretrain.d_model"), (["experiment=pretrain",
        "trainer.batch=900000000"], "trainer.batch"),
        (["experiment=degeneracy/synchronised", "degeneracy.hidden=[900000,900000]"], "degeneracy.hidden"),
        (["loss=local", "data.shuffle_batches=900000000"], "data.shuffle_batches"), (["experiment=llc/behavioural",
        "llc.hidden=[900000,900000]"], "llc.hidden"),
        (["experiment=llc/language_model", "llc.chains=9000000"], "llc.chains"),
    ])  # fmt: skip
    return Case(words, f"{names}: the job needs about", "too large for memory")


def draw_path(rng: random.Random, base: list[str], choice: Choice) -> Case:
    key = rng.choice(["data.path", "model.path", "sae.start_from", "resume_from"])
    return Case([f"{key}={rng.choice(ODD_PATHS)}"], f"write '{key}=", "path without quotes")


def draw_two_mistakes(rng: random.Random, base: list[str], choice: Choice) -> Case:
    first, second = draw_wrong_key(rng, base, choice), draw_wrong_form(rng, [], choice)
    words = [*first.words, *second.words]
    return Case(words, "", "two mistakes")


def draw_right(rng: random.Random, base: list[str], choice: Choice) -> Case:
    words = rng.choice([
        ["++seed=3"], ["seed=4294967295"], ["trainer.progress=False"], ["tracking.experiment='é, (x)'"], ["sweep_name=null"],
        ["tracking=none"], ["seed=007"], ["output_dir=a=b".replace("=b", "_b")], ["-m", "seed=0,0"], ["-m", "seed=range(0,3)"], ["seed=1",
        "seed=1"],
        ["tracking.uri=sqlite:///x.db"], ["-m", "seed=0", "sweep_name=x"], ["tracking={mlflow:false}"], ["seed=${oc.decode:'3'}"],
        ["-m", "seed=0,1", "tracking=none"], ["retry_failed=false", "-m"], ["callbacks=none"], ["seed=1", "seed=2"],
    ])  # fmt: skip
    base = [] if "gpt2" in " ".join(base) else base  # GPT-2 would have to be downloaded
    flags = [word for word in words if word == "-m"]
    return Case([*flags, *base, *(word for word in words if word != "-m")], "", "odd but right")


DRAWS: list[tuple[float, Callable[[random.Random, list[str], Choice], Case]]] = [
    (8, draw_wrong_key), (4, draw_wrong_group), (4, draw_wrong_form), (2, draw_wrong_flag), (2, draw_wrong_hydra_key), (2, draw_code),
    (2, draw_wrong_grid), (1, draw_wrong_cell), (1, draw_too_large), (1, draw_path), (1, draw_two_mistakes), (3, draw_right),
]  # fmt: skip


def draw_case(seed: int, number: int) -> Case:
    """Return a case: a pure function of the seed and its number. Half of the cases give one key of one job a wrong value."""
    rng = random.Random(f"{seed} {number}")
    experiment = rng.choice(EXPERIMENTS)
    choice = read_experiment(experiment)
    base = [f"experiment={experiment}"] if experiment else []
    if rng.random() < 0.5:
        keys = [
            key for key in list_typed_keys(choice) if not key.startswith("callbacks") and not key.endswith("_target_")
        ]
        key = rng.choice(keys)
        value = draw_wrong_value(rng, key, find_annotation(choice, key))
        return Case([*base, f"{key}={value}"], key, "wrong value of a key")
    draw = rng.choices([draw for _, draw in DRAWS], [weight for weight, _ in DRAWS])[0]
    return draw(rng, base, choice)


def stop_before_execution() -> None:
    """In a fork: let a job or a sweep end where it would start to compute, after everything has been checked."""
    import crux.launch.sweep
    import crux.runs.start

    def announce(*arguments: object, **named: object) -> None:
        print(STARTED)
        sys.stdout.flush()
        sys.exit(0)

    crux.runs.start.resolve_name = lambda name: announce
    crux.launch.sweep.track_sweep = announce  # pyright: ignore[reportAttributeAccessIssue]


def judge(case: Case, outcome: CommandOutcome) -> str | None:
    """Return what is wrong with an outcome, or None."""
    must_start = case.kind == "odd but right"
    lines = outcome.err.splitlines()
    if outcome.timed_out:
        return "no answer"
    if outcome.has_traceback:
        return "traceback"
    if STARTED in outcome.out:
        return None if must_start else "accepted"
    if must_start:
        return f"refused: {' '.join(lines)[:200]}"
    if outcome.code != 2 or len(lines) != 1 or not lines[0].startswith("crux: ") or outcome.out:
        return f"not one line with exit code 2, but {outcome.code}: {(outcome.err + outcome.out)[:300]!r}"
    if case.names not in lines[0]:
        return f"does not name {case.names!r}: {lines[0][:300]}"
    if outcome.cpu_seconds > MAX_CPU_SECONDS and case.words[:1] != ["-m"]:
        return f"{outcome.cpu_seconds:.1f} CPU seconds"
    return None


def run_cold(words: Sequence[str], *, environment: dict[str, str], folder: Path) -> tuple[int, float]:
    """Run a command line in a process of its own; return its exit code and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(Path(__file__).parents[2] / "src" / "main.py"), *words]
    ended = subprocess.run(command, capture_output=True, cwd=folder, env=os.environ | environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.returncode, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def campaign(outcomes: Outcomes, cases: int, seed: int, only: int | None) -> None:
    """Run the cases, and count how each kind of mistake was answered."""
    from hydra.core.plugins import Plugins

    import crux.cli
    from crux.config.registry import register

    assert crux.cli.main
    assert ROOT.is_dir()
    register()
    Plugins.instance()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = {"CRUX_OUTPUTS": f"{folder}/outputs", "CRUX_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        before = Path.cwd()
        os.chdir(folder)
        try:
            for number in range(cases) if only is None else [only]:
                case = draw_case(seed, number)
                outcome = run_command(
                    case.words,
                    folder=folder / "output",
                    environment=environment,
                    timeout=60,
                    before=stop_before_execution,
                )
                if (wrong := judge(case, outcome)) is None:
                    outcomes.held(f"{case.kind}: {'starts' if case.kind == 'odd but right' else 'one line'}")
                else:
                    shown = [word if len(word) < 100 else f"{word[:100]}…" for word in case.words]
                    outcomes.fell_short(case.kind, case=number, what=f"{shown}: {wrong}")
            if only is None and cases >= 1000:
                _run_cold_cases(outcomes, seed, environment=environment, folder=folder)
        finally:
            os.chdir(before)


def _run_cold_cases(outcomes: Outcomes, seed: int, *, environment: dict[str, str], folder: Path) -> None:
    numbers = [
        n
        for n in range(10 * COLD_CASES)
        if (case := draw_case(seed, n)).kind != "odd but right" and "-m" not in case.words
    ]
    for number in numbers[:COLD_CASES]:
        case = draw_case(seed, number)
        code, seconds = run_cold(case.words, environment=environment, folder=folder)
        if code == 2 and seconds <= MAX_CPU_SECONDS:
            outcomes.held("in a process of its own: answered within one CPU second")
        else:
            outcomes.fell_short(
                "in a process of its own", case=number, what=f"{case.words}: exit {code}, {seconds:.2f} CPU seconds"
            )


if __name__ == "__main__":
    run_campaign(campaign, name="command_lines", cases=1000)
