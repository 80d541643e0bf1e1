"""The record of when each latent last fired, by hand and in the training module."""

import torch
from torch import Tensor

from crux.sae.training.activations import Activations
from crux.sae.training.tally import Tally
from tests.support.small_runs import HOOK, make_gpt2, make_module


def choose(*latents: int) -> Tensor:
    """Return true for these of five latents."""
    fired = torch.zeros(5, dtype=torch.bool)
    fired[list(latents)] = True
    return fired


def test_by_hand() -> None:
    tally = Tally(5)
    assert tally.alive(10) == (0, 0)
    assert not tally.dead(after=0).any()
    tally.count(choose(0, 1, 2), n_tokens=3)
    tally.count(choose(0, 1), n_tokens=4)
    tally.count(choose(0), n_tokens=2)
    assert int(tally.tokens_seen) == 9
    assert tally.last_fired.tolist() == [9, 7, 3, -1, -1]
    # alive: fired within the last N tokens; all tokens of a batch count as its last one
    assert tally.alive(2) == (1, 2)
    assert tally.alive(3) == (2, 3)
    assert tally.alive(6) == (2, 6)
    assert tally.alive(7) == (3, 7)
    assert tally.alive(500) == (3, 9)
    # dead: has not fired for more than N tokens; a latent that never fired counts from the start
    assert tally.dead(after=1).tolist() == [False, True, True, True, True]
    assert tally.dead(after=2).tolist() == [False, False, True, True, True]
    assert tally.dead(after=6).tolist() == [False, False, False, True, True]
    assert tally.dead(after=8).tolist() == [False, False, False, True, True]
    assert not tally.dead(after=9).any()


def test_a_dead_latent_can_fire_again() -> None:
    tally = Tally(5)
    tally.count(choose(), n_tokens=8)
    assert tally.dead(after=7).all()
    tally.count(choose(3), n_tokens=1)
    assert tally.dead(after=7).tolist() == [True, True, True, False, True]
    assert tally.alive(1) == (1, 1)


def test_counts_continue_from_a_checkpoint() -> None:
    tally, resumed = Tally(5), Tally(5)
    tally.count(choose(0, 4), n_tokens=3)
    resumed.load_state_dict(tally.state_dict())
    for one in (tally, resumed):
        one.count(choose(1), n_tokens=2)
    assert resumed.state_dict().keys() == {"last_fired", "tokens_seen"}
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in tally.state_dict().items())


def test_a_module_counts_training_tokens() -> None:
    subject = make_gpt2()
    module = make_module("local", subject)
    sae, (tally,) = module.sites[0].sae, module.tallies
    assert isinstance(tally, Tally)
    batch = Activations({HOOK: torch.zeros(3, subject.d_model)}, {})
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(-1.0)
        sae.b_enc[:4] = 1.0  # four latents always fire
    for i in range(2):
        module.training_step(batch, i)
    with torch.no_grad():
        sae.b_enc[:3] = -1.0  # one is left
    module.training_step(batch, 2)
    assert int(tally.tokens_seen) == 9
    assert tally.last_fired[:5].tolist() == [6, 6, 6, 9, -1]
    assert tally.alive(3) == (1, 3)  # the last three tokens
    assert tally.alive(4) == (4, 4)
    assert tally.alive(500) == (4, 9)
