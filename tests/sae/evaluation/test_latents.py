import pytest
import torch

from crux.sae.architectures.relu import ReluSAE
from crux.sae.evaluation import latents
from crux.sae.evaluation.latents import NO_TOKEN, choose_latents, logit_effects, strongest_contexts
from crux.subjects.subject import Unembed
from tests.support.toy_subject import ToySubject, make_random_toy


def make_counting_subject(d_vocab: int) -> ToySubject:
    """Return a subject whose residual is the number of the token, so that a latent that copies it fires with that value."""
    embed = torch.arange(d_vocab, dtype=torch.float)[:, None]
    return ToySubject(embed=embed, blocks=[lambda h: h], W_U=torch.zeros(d_vocab, 1))


def make_weighted_sae(*weights: float) -> ReluSAE:
    """Return an SAE whose latent i is ReLU(weights[i] · x)."""
    sae = ReluSAE(
        d_model=1,
        n_latents=len(weights),
        init="tied",
        init_norm=1.0,
        subtract_b_dec=False,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([weights]))
        sae.W_dec.fill_(1.0)
    return sae


def test_contexts_by_hand() -> None:
    """The peaks are 9 (first batch), 8 (second) and 5. Each window appears once, cut at its ends, strongest first."""
    batches = [torch.tensor([[1, 9, 8, 0], [0, 0, 0, 0]]), torch.tensor([[2, 3, 4, 8], [5, 1, 1, 1]])]
    found = strongest_contexts(
        make_counting_subject(10),
        make_weighted_sae(0.0, 2.0, -1.0),
        hook="blocks.0.hook_resid_pre",
        batches=batches,
        latents=torch.tensor([1, 2]),
        n_contexts=3,
        before=1,
        after=2,
    )
    assert found.tokens[0].tolist() == [[1, 9, 8, 0], [4, 8, NO_TOKEN, NO_TOKEN], [NO_TOKEN, 5, 1, 1]]
    assert found.activations[0].tolist() == [[2, 18, 16, 0], [8, 16, 0, 0], [0, 10, 2, 2]]
    assert (found.tokens[1] == NO_TOKEN).all()  # never fires
    assert (found.activations[1] == 0).all()
    assert found.densities.tolist() == [11 / 16, 0.0]
    assert found.latents.tolist() == [1, 2]


def test_contexts_equal_a_plain_search_for_any_batch_size() -> None:
    subject = make_random_toy(seed=0)
    sae = ReluSAE(
        d_model=6,
        n_latents=20,
        init="paper",
        init_norm=1.0,
        subtract_b_dec=False,
        generator=torch.Generator().manual_seed(1),
    )
    tokens = torch.randint(11, (30, 9), generator=torch.Generator().manual_seed(2))
    hook, latents = "blocks.1.hook_resid_pre", torch.tensor([3, 0, 17])
    x = subject.clean(tokens, capture=[hook], final=False).activations[hook]
    codes = sae.encode(x.flatten(0, 1)).c.view(30, 9, 20)[..., latents].detach()
    for batch_size in (30, 4):  # all windows at once, or seven batches of 4 and one of 2
        found = strongest_contexts(
            subject, sae, hook=hook, batches=tokens.split(batch_size), latents=latents, n_contexts=5, before=2, after=2
        )
        for n in range(3):
            values, windows = codes[..., n].amax(1).topk(5)
            torch.testing.assert_close(found.activations[n, :, 2], values)
            for rank, window in enumerate(windows):
                place = int(codes[window, :, n].argmax())
                assert found.tokens[n, rank, 2] == tokens[window, place]
        assert "spliced" not in subject.passes


def test_fewer_windows_than_contexts() -> None:
    found = strongest_contexts(
        make_counting_subject(10),
        make_weighted_sae(1.0),
        hook="blocks.0.hook_resid_pre",
        batches=[torch.tensor([[1, 2]])],
        latents=torch.tensor([0]),
        n_contexts=8,
        before=1,
        after=0,
    )
    assert found.tokens.tolist() == [[[1, 2]]]


def test_logit_effects_are_centred_over_the_vocabulary() -> None:
    W_U = torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 1.0]])
    found = logit_effects(torch.tensor([[1.0, 0.0], [0.0, -3.0]]), Unembed(W_U, None, None), n_top=2)
    assert found.promoted.tolist()[0] == [2, 1]
    assert found.promoted_effects.tolist()[0] == [3.0, -1.0]
    assert found.suppressed.tolist()[0] == [0, 1]
    assert found.suppressed_effects.tolist()[0] == [-2.0, -1.0]
    assert found.suppressed[1, 0] == 2
    assert found.suppressed_effects[1, 0] == -2.0


def test_selected_latents_are_alive_spread_and_strong() -> None:
    densities = torch.linspace(0, 1, 101)  # latent i fires on i % of tokens; latent 0 is dead
    maxima = torch.zeros(101)
    maxima[[7, 42]] = 5.0
    chosen = choose_latents(densities, maxima, n=6).tolist()
    assert len(chosen) == 6
    assert {7, 42, 1, 100} <= set(chosen)
    assert chosen == sorted(chosen, reverse=True)
    assert choose_latents(densities, maxima, n=1000).tolist() == list(range(100, 0, -1))


@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_as_many_latents_are_selected_as_requested(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    densities, maxima = torch.rand(80, generator=generator), torch.rand(80, generator=generator)
    chosen = choose_latents(densities, maxima, n=n)
    assert len(chosen) == len(chosen.unique()) == n


def test_logit_effects_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    directions = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    unembed = Unembed(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), None, None)
    whole = logit_effects(directions, unembed, n_top=3)
    monkeypatch.setattr(latents, "LOGITS_PER_BLOCK", 18)  # two latents at a time
    for a, b in zip(whole, logit_effects(directions, unembed, n_top=3), strict=True):
        torch.testing.assert_close(a, b)
