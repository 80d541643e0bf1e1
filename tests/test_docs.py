"""The code in README.md and docs/ does what it says, shortened.

Every code block is tested. A comment `<!-- needs: … -->` before a block names what a plain machine lacks (a GPU, a cluster, the hub, a
server, an earlier run, or hours); its commands are then composed, but not run. `<!-- main -->` and `<!-- tests -->` in README.md mark the
two blocks that .ci/run runs, each in a fresh environment.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

import crux
from crux.api import evaluation
from crux.config.registry import register

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<comment>[\w: ,]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
COMMAND = "python src/main.py "


class Block(NamedTuple):
    """A code block of a page."""

    page: Path
    comment: str
    """What stands in the HTML comment before it, such as `needs: gpu`."""
    language: str
    code: str

    @property
    def needs_more(self) -> bool:
        """True if the block needs something that a plain machine lacks."""
        return self.comment.startswith("needs:")


BLOCKS = [
    Block(page, match["comment"] or "", match["language"], match["code"])
    for page in PAGES
    for match in BLOCK.finditer(page.read_text("utf-8"))
]


def list_commands(*, needs_more: bool) -> list[str]:
    """Return the arguments of the command lines for crux in the blocks with this value of `needs_more`, without repetitions."""
    lines = [
        re.sub(r"\s*#.*", "", line).removeprefix(COMMAND)
        for block in BLOCKS
        if block.language == "bash" and block.needs_more == needs_more
        for line in block.code.splitlines()
        if line.startswith(COMMAND)
    ]
    return list(dict.fromkeys(lines))


TESTED_ELSEWHERE = ("--help", "trainer=ddp", "launcher=cpus", "experiment=")
"""Parts of the commands that test_cli, test_ddp_command, test_launchers and the tests of each experiment run, at lengths of their own."""

RUN = [line for line in list_commands(needs_more=False) if not any(word in line for word in TESTED_ELSEWHERE)]

SEVERAL_JOBS = ("sweeps=", "-m ", "sparsities=", "ks=", "hook_points=")
"""Parts of the commands that start several jobs or train several SAEs, which takes longer."""


def test_the_pages_have_code_of_known_kinds() -> None:
    assert len(RUN) >= 9
    assert len(PAGES) >= 10
    assert {block.language for block in BLOCKS} <= {"bash", "python", "mermaid"}


@pytest.mark.parametrize("group", ["toy", "llc", "degeneracy", "interaction_basis"])
def test_every_experiment_is_in_the_guide(group: str) -> None:
    names = {path.stem.removesuffix("_paper") for path in (ROOT / "conf" / "experiment" / group).glob("[!_]*.yaml")}
    guide = "".join(page.read_text("utf-8") for page in PAGES)
    assert names <= set(re.findall(r"\w+", guide))


def test_blocks_with_other_shell_commands_are_marked() -> None:
    others = [b for b in BLOCKS if b.language == "bash" and not all(x.startswith(COMMAND) for x in b.code.splitlines())]
    assert {block.comment for block in others if not block.needs_more} == {"main", "tests"}  # .ci/run runs these two


@pytest.mark.parametrize(
    "line", list(dict.fromkeys([*list_commands(needs_more=True), *list_commands(needs_more=False)]))
)
def test_a_command_composes(line: str) -> None:
    words = [word for word in shlex.split(line.replace("<toy run>", "toy_run")) if not word.startswith("-")]
    register()
    parsed = OverridesParser.create().parse_overrides(words)
    overrides_of_first_job = [
        f"{override.key_or_group}={next(override.sweep_string_iterator())}" if override.is_sweep_override() else word
        for word, override in zip(words, parsed, strict=True)
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose("config", overrides=overrides_of_first_job)


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=pytest.mark.slow) if any(w in line for w in SEVERAL_JOBS) else line for line in RUN],
)
def test_a_command_runs(
    line: str, run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "my_texts").mkdir()
    prose = "".join(page.read_text("utf-8") for page in PAGES)
    for i in range(4):
        (tmp_path / "my_texts" / f"{i}.txt").write_text(f"{i}\n\n{prose}", "utf-8")
    shutil.copytree(Path(crux.__file__).parent / "assets" / "tiny", tmp_path / "my_gpt2")
    words = re.sub(r"my_(texts|gpt2)/", rf"{tmp_path}/my_\1", line).replace("layer=2,4,6", "layer=2,6").split()
    shorter = {
        "sweeps=architectures": ["hydra.sweeper.params.sae=topk", "hydra.sweeper.params.loss=local"],
        "sweeps=pareto": ["seed=0", "sparsity=2"],
        "sweeps=losses": ["seed=0", "trainer.max_steps=6", "loss=e2e"],
    }
    words += [word for sweep, more in shorter.items() if sweep in words for word in more]
    code = run_crux(*words, *short_job, f"output_dir={tmp_path}/outputs", "tracking=none")
    assert code == 0, capsys.readouterr().err
    assert list((tmp_path / "outputs").glob("*/**/DONE"))


@pytest.fixture(scope="module")
def finished_run(short_job: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one SAE briefly, and return its run folder."""
    outputs = tmp_path_factory.mktemp("finished")
    return crux.train(["loss=local", "tracking=none", *short_job, f"output_dir={outputs}"]).folder


@pytest.fixture
def page_folder(
    finished_run: Path, short_job: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Change to a folder with outputs/runs/<run>, and shorten crux.train and load_text; return the folder."""
    runs = tmp_path / "outputs" / "runs"
    runs.mkdir(parents=True)
    (runs / finished_run.name).symlink_to(finished_run)
    monkeypatch.chdir(tmp_path)
    train, few_tokens = crux.train, partial(evaluation.load_text, n_tokens=512, batch=2)

    def train_briefly(overrides: list[str]) -> crux.Run:
        return train([*overrides, *short_job, "tracking=none", f"output_dir={tmp_path}/outputs"])

    monkeypatch.setattr(crux, "train", train_briefly)
    monkeypatch.setattr(crux, "load_text", few_tokens)
    monkeypatch.setattr(evaluation, "load_text", few_tokens)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    list(dict.fromkeys(b.page for b in BLOCKS if b.language == "python" and not b.needs_more)),
    ids=lambda p: p.name,
)
def test_the_python_of_a_page_runs_in_order(page: Path, page_folder: Path, finished_run: Path) -> None:
    namespace: dict[str, object] = {}
    for block in BLOCKS:
        if block.page == page and block.language == "python" and not block.needs_more:
            code = block.code.replace("<run>", finished_run.name)
            exec(compile(code, page.name, "exec"), namespace)
