"""Tests of removing directions: only the affected task gets worse, also in bases other than the neurons."""

import pytest
import torch
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.degeneracy.networks.chain import Chain
from crux.degeneracy.removal import Directions, losses_without, output_without
from crux.subjects.load import load_subject

RNG = torch.Generator().manual_seed(0)
ROTATION = torch.linalg.qr(torch.randn(4, 4, generator=RNG, dtype=torch.float64)).Q


def build_two_tasks() -> Chain:
    """Return a network that computes two separate tasks, of two numbers each, through a rotated hidden activation."""
    chain = Chain(
        {"input": nn.Identity(), "hidden": nn.Linear(4, 4, bias=False), "output": nn.Linear(4, 4, bias=False)}
    ).double()
    weight = torch.block_diag(torch.tensor([[2.0, 1], [0, 1]]), torch.tensor([[1.0, 0], [3, 1]])).double()
    with torch.no_grad():
        chain.get_parameter("stages.hidden.weight").copy_(ROTATION @ weight)
        chain.get_parameter("stages.output.weight").copy_(ROTATION.T)
    return chain


def select_from_rotation(columns: slice, mean: Tensor) -> Directions:
    """Return these directions of the rotated hidden activation: 0 and 1 belong to the first task, 2 and 3 to the second."""
    return Directions(ROTATION[:, columns], ROTATION.T[columns], mean)


TASKS = {
    "first": lambda out, target: (out - target)[:, :2].square().sum(1),
    "second": lambda out, target: (out - target)[:, 2:].square().sum(1),
}


def test_removing_a_module_affects_only_its_task() -> None:
    chain, x = build_two_tasks(), torch.randn(50, 4, generator=RNG, dtype=torch.float64) + 1
    target = chain(x).detach()
    mean = chain.clean(x, capture=["hidden"], final=False).activations["hidden"].mean(0)
    zero = torch.zeros(4, dtype=torch.float64)
    last = torch.eye(4, dtype=torch.float64)[2:]
    removed = {
        "none": {"hidden": select_from_rotation(slice(0, 0), mean)},
        "first": {"hidden": select_from_rotation(slice(0, 2), mean)},
        "second": {
            "hidden": select_from_rotation(slice(2, 4), mean),
            "output": Directions(last.T, last, target.mean(0)),
        },
        "second at zero": {"hidden": select_from_rotation(slice(2, 4), zero)},
    }
    found = losses_without(
        chain, [(x[:30], target[:30]), (x[30:], target[30:])], removed=removed, end="output", tasks=TASKS
    )
    assert found.intact == {"first": 0, "second": 0}
    assert found.without["none"] == pytest.approx({"first": 0, "second": 0}, abs=1e-20)
    variance = target.var(0, correction=0)
    assert found.without["first"] == pytest.approx({"first": float(variance[:2].sum()), "second": 0}, abs=1e-12)
    assert found.without["second"] == pytest.approx({"first": 0, "second": float(variance[2:].sum())}, abs=1e-12)
    square = target.square().mean(0)
    assert found.rise("second at zero", "second") == pytest.approx(float(square[2:].sum()))
    assert found.rise("second at zero", "first") == pytest.approx(0, abs=1e-12)


def test_directions_outside_a_truncated_basis_stay() -> None:
    chain, x = build_two_tasks(), torch.randn(5, 4, generator=RNG, dtype=torch.float64)
    only = select_from_rotation(slice(1, 2), torch.zeros(4, dtype=torch.float64))
    out = output_without(chain, x, removed={"hidden": only}, end="output")
    expected = chain(x).detach().clone()
    expected[:, 1] = 0
    torch.testing.assert_close(out, expected)
    before = output_without(chain, x, removed={"hidden": only}, end="hidden")
    torch.testing.assert_close(before @ ROTATION, expected)


def test_language_model_at_hook_points_on_every_path() -> None:
    subject = load_subject("tiny", process_weights=False)
    tokens = torch.randint(0, 2000, (2, 12), generator=RNG)
    hooks = ["blocks.0.hook_resid_mid", "blocks.1.hook_resid_pre"]
    d = subject.clean(tokens, capture=hooks, final=False).activations[hooks[0]].shape[-1]
    some = torch.linalg.qr(torch.randn(d, 2, generator=RNG)).Q
    removed = dict.fromkeys(hooks, Directions(some, some.T, torch.zeros(d)))
    out = output_without(subject, tokens, removed=removed, end="blocks.2.hook_resid_pre")
    spliced = subject.spliced(
        subject.clean(tokens, capture=[hooks[0]]), dict.fromkeys(hooks, lambda f: f - f @ some @ some.T),
        capture=["blocks.2.hook_resid_pre"],
    )  # fmt: skip
    torch.testing.assert_close(out, spliced.activations["blocks.2.hook_resid_pre"])
    parallel = Directions(torch.eye(d), torch.eye(d), torch.zeros(d))
    with pytest.raises(UserError, match=r"blocks\.1\.hook_mlp_out: the network has a path around it"):
        output_without(
            subject,
            tokens,
            removed={hooks[0]: parallel, "blocks.1.hook_mlp_out": parallel},
            end="blocks.2.hook_resid_pre",
        )


def test_invalid_arguments_are_rejected() -> None:
    chain, x = build_two_tasks(), torch.zeros(2, 4, dtype=torch.float64)
    one = select_from_rotation(slice(0, 1), torch.zeros(4, dtype=torch.float64))
    with pytest.raises(UserError, match="no hook point given"):
        output_without(chain, x, removed={}, end="output")
    with pytest.raises(UserError, match="middle: no such hook point; there are input, hidden, output"):
        output_without(chain, x, removed={"middle": one}, end="output")
    with pytest.raises(UserError, match="from output to hidden: the second lies before the first"):
        output_without(chain, x, removed={"output": one}, end="hidden")
    with pytest.raises(UserError, match="no data"):
        losses_without(chain, [], removed={"a": {"hidden": one}}, end="output", tasks=TASKS)
