"""Training toy models: instances do not depend on each other, losses decrease, and results are written and read back."""

from pathlib import Path

import pytest
import torch

from crux.config.schema import Accelerator, Adam, Trainer
from crux.toy.features import FeatureDistribution, Purpose
from crux.toy.module import SuperpositionModule, initial_weights
from crux.toy.options import Cooccurrence, Kind
from crux.toy.program import Program, TrainedProgram, held_out_loss, load_program, save_program
from crux.toy.superposition import SuperpositionModel, Weights
from crux.training.data import Feed
from crux.training.devices import CPU
from crux.training.fit import fit


def build_program(
    seeds: list[int], *, kind: Kind = Kind.relu_output, density: float = 0.2, n_features: int = 5
) -> Program:
    n = len(seeds)
    return Program(
        name="model",
        kind=kind,
        n_hidden=2,
        distribution=FeatureDistribution(Cooccurrence.independent, 1, kind is Kind.absolute_value),
        seeds=torch.tensor(seeds),
        density=torch.full((n, n_features), density),
        importance=torch.ones(n, 1, n_features),
        points=None,
    )


def build_initial_weights(of: Program) -> Weights:
    """Return the weights from which the instances of a program start."""
    n_settings = of.importance.shape[1]
    return initial_weights(
        of.kind, seeds=of.seeds, n_settings=n_settings, n_features=of.n_features, n_hidden=of.n_hidden, scale=1.0
    )


def train(
    of: Program, steps: int, folder: Path, *, batch: int = 64, lr: float = 1e-3, snapshots: tuple[int, ...] = ()
) -> Weights:
    module = SuperpositionModule(
        SuperpositionModel(of.kind, build_initial_weights(of)),
        importance=of.importance,
        optimizer=Adam(lr, [0.9, 0.999], 1e-8, 0.01, 0, 1.0),
        max_steps=steps,
        log_every=5,
        snapshots={step: folder / "snapshots" / f"{step}.safetensors" for step in snapshots},
    )
    data = of.data(batch=batch, n_batches=steps, purpose=Purpose.training)
    trainer = Trainer(False, Accelerator.cpu, steps, 5, steps)
    rows: list[tuple[int, dict[str, float]]] = []
    fit(
        module, Feed(data, accumulate=1), trainer=trainer, hardware=CPU, items_per_step=batch, unit="samples",
        checkpoints=folder / "checkpoints", resume=None, sinks=[lambda step, row: rows.append((step, row))],
        evaluations=None, bar_labels={}, callbacks=[], on_abandon=None,
    )  # fmt: skip
    assert [step for step, _ in rows] == list(range(5, steps + 1, 5))
    return module.model.weights


@pytest.mark.parametrize("kind", list(Kind))
def test_an_instance_does_not_depend_on_other_instances(kind: Kind, tmp_path: Path) -> None:
    many, k = build_program(list(range(100)), kind=kind), 42  # any one of the seeds
    alone = build_program([k], kind=kind)
    for a, b in zip(build_initial_weights(alone), build_initial_weights(many), strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a[0], b[k])
    together = train(many, 10, tmp_path / "many")
    by_itself = train(alone, 10, tmp_path / "alone")
    for a, b in zip(by_itself, together, strict=True):
        if a is not None and b is not None:
            assert not torch.equal(a, torch.zeros_like(a))
            torch.testing.assert_close(a[0], b[k], atol=1e-5, rtol=0)


def test_initial_weights_have_xavier_scale_for_any_number_of_instances() -> None:
    for n in (1, 500):
        of = build_program(list(range(n)), n_features=200)
        std = build_initial_weights(of).W.std()
        assert std == pytest.approx((2 / 202) ** 0.5, rel=0.15 if n == 1 else 0.01)  # of 400 weights, or of 200,000


def test_settings_share_the_data_and_not_the_weights(tmp_path: Path) -> None:
    importance = torch.tensor([[[1.0] * 5, [5.0] * 5]])
    both = build_program([3])._replace(importance=importance)
    together = train(both, 10, tmp_path / "both")
    for setting in range(2):
        alone = train(both._replace(importance=importance[:, setting : setting + 1]), 10, tmp_path / f"{setting}")
        torch.testing.assert_close(alone.W[:, 0], together.W[:, setting], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", list(Kind))
def test_training_lowers_the_loss(kind: Kind, tmp_path: Path) -> None:
    of = build_program([0, 1], kind=kind, density=0.1)
    after = train(of, 300, tmp_path, lr=1e-2)
    loss_before, loss_after = (
        held_out_loss(of, w, samples=4096, batch=1024) for w in (build_initial_weights(of), after)
    )
    assert bool((loss_after < 0.8 * loss_before).all())


def test_program_and_snapshots_are_restored_from_the_folder(tmp_path: Path) -> None:
    of = build_program([0, 1])
    weights = train(of, 20, tmp_path, snapshots=(0, 7, 20))
    loss = held_out_loss(of, weights, samples=1024, batch=1024)
    save_program(tmp_path, TrainedProgram(of._replace(name=tmp_path.name), weights, loss, {}))
    back = load_program(tmp_path)
    assert sorted(back.snapshots) == [0, 7, 20]
    assert torch.equal(back.snapshots[0].W, build_initial_weights(of).W)
    assert torch.equal(back.snapshots[20].W, weights.W)
    assert torch.equal(back.weights.W, weights.W)
    assert torch.equal(back.loss, loss)
    assert back.program.distribution == of.distribution
    assert torch.equal(back.program.density, of.density)


def test_a_non_finite_loss_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"instances stopped being a finite number by step 5; try a lower optimizer.lr"
    ):  # log_every is 5: losses are looked at every 5 steps
        train(build_program([0]), 10, tmp_path, lr=1e30)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
