"""The contents of the figures, read back from their axes."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from crux.sae.figures.densities import plot_densities
from crux.sae.figures.downstream import plot_downstream
from crux.sae.figures.loss_curves import plot_loss_curves
from tests.support.figures import find_line, find_panel, points

METRICS = {
    "mse": 0.5,
    "mse/rest": 0.4,
    "explained_variance": 0.7,
    "explained_variance/rest": -3.0,
    "downstream_mse/7": 0.8,
    "downstream_mse/7/rest": 0.6,
    "downstream_ev/7": 0.6,
    "downstream_mse/8": 0.9,
    "downstream_ev/8": 0.5,
}


def render(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def test_loss_curves_show_every_term() -> None:
    history = [{"step": s, "train/kl": 1 / s, "train/l0": 50.0 - s} for s in range(1, 30)]
    history += [{"step": 30, "val/kl": 0.5}]
    figure = plot_loss_curves(
        history, terms={"train/kl": "KL (nats/token)", "val/kl": "held out", "train/none": "none"}, l0="train/l0"
    )
    above, below = find_panel(figure, y="loss term"), find_panel(figure, y="L0")
    assert [line.get_label() for line in above.lines] == ["KL (nats/token)", "held out"]
    np.testing.assert_allclose(points(find_line(above, "KL"))[:, 1], [1 / s for s in range(1, 30)])
    assert points(below.lines[0])[-1].tolist() == [29, 21]
    assert "step" in below.get_xlabel()
    assert render(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "history", [[], [{"step": 1, "train/l0": 0.0, "train/kl": 0.0}], [{"step": 1, "train/kl": float("nan")}]]
)
def test_loss_curves_of_short_or_broken_runs(history: list[dict[str, float]]) -> None:
    render(plot_loss_curves(history, terms={"train/kl": "KL"}, l0="train/l0"))


def test_downstream_starts_at_the_sae_without_missing_values() -> None:
    figure = plot_downstream(METRICS, hook="blocks.6.hook_resid_pre", n_layers=8, at=6)
    left, right = find_panel(figure, y="MSE"), find_panel(figure, y="explained variance")
    assert points(left.lines[0]).tolist() == [[6, 0.5], [7, 0.8], [8, 0.9]]
    assert points(left.lines[1]).tolist() == [[6, 0.4], [7, 0.6]]
    assert points(right.lines[0]).tolist() == [[6, 0.7], [7, 0.6], [8, 0.5]]
    assert right.get_ylim()[0] < -3
    assert [left.xaxis.get_major_formatter()(k, 0) for k in (6, 7, 8)] == ["6", "7", "end"]


def test_downstream_at_the_last_residual_is_rendered() -> None:
    render(plot_downstream({"mse": 1.0}, hook="blocks.7.hook_resid_post", n_layers=8, at=8))


def test_densities_count_the_dead() -> None:
    densities = np.array([0.0, 0.0, 0.001, 0.5, 1.0])
    figure = plot_densities(densities, n_tokens=1000)
    axes = find_panel(figure)
    assert sum(bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)) == 3
    assert axes.get_title(loc="left") == "3 of 5 latents fire in 1,000 tokens; 2 (40.0 %) never do"
    render(figure)


def test_densities_of_an_sae_that_is_dead() -> None:
    render(plot_densities(np.zeros(4), n_tokens=100))
