"""What the modules minimise equals the formulas of Braun et al. written out plainly, in value and in gradient."""

import pytest
import torch
from small_runs import HOOK, RECIPE, Loss, gpt2, module_for, sae_for, token_batches
from torch import Tensor
from toy_subject import ToySubject, random_toy

from crux.saes.relu import ReluSAE
from crux.training.end_to_end import Coefficients, EndToEndSAE
from crux.training.local import LocalSAE
from crux.training.sae_module import SAEModule

LAMBDA, KL, DOWNSTREAM, RECONSTRUCTION = 0.7, 0.5, 2.5, 0.3
TOKENS = torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(0))
BLOCK_1, LAST = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"


def toy_sae() -> ReluSAE:
    generator = torch.Generator().manual_seed(5)
    return ReluSAE(d_model=6, n_latents=20, init="paper", init_norm=1.0, generator=generator)


def plain_sae(sae: ReluSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """c and x̂ of the paper, s = 1."""
    c = torch.relu(x @ sae.W_enc + sae.b_enc)
    return c, c @ (sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True)) + sae.b_dec


def gradients(module: SAEModule, loss: Tensor) -> dict[str, Tensor]:
    module.sae.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.sae.named_parameters() if p.grad is not None}


def assert_same(module: SAEModule, batch: Tensor, plain: Tensor) -> None:
    expected = gradients(module, plain)
    loss = module.training_step(batch, 0)
    found = gradients(module, loss)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-7)
    assert found.keys() == expected.keys() == {"W_enc", "b_enc", "W_dec", "b_dec"}
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4, f"{name}: nothing to compare"
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def plain_end_to_end(
    toy: ToySubject, sae: ReluSAE, counted: Tensor, *, downstream: bool, reconstruction: float
) -> Tensor:
    """Braun et al. §2.2 and 2.3, with the 1/d of their code; `counted` (batch × pos) says which tokens count."""
    x = toy.blocks[0](toy.embed[TOKENS])
    c, x_hat = plain_sae(sae, x)
    clean, spliced = [toy.blocks[1](x)], [toy.blocks[1](x_hat)]  # entering block 2, then the end
    clean.append(toy.blocks[2](clean[0]))
    spliced.append(toy.blocks[2](spliced[0]))
    log_p = (clean[-1] @ toy.unembed.W_U.T).log_softmax(-1)
    log_q = (spliced[-1] @ toy.unembed.W_U.T).log_softmax(-1)
    loss = KL * (log_p.exp() * (log_p - log_q)).sum(-1)[counted].mean()
    loss = loss + LAMBDA / 6 * c.abs().sum(-1)[counted].mean()
    if downstream:
        terms = [(a - b)[counted].square().mean() for a, b in zip(clean, spliced, strict=True)]
        loss = loss + DOWNSTREAM / 2 * sum(terms)
    return loss + reconstruction * (x_hat - x)[counted].square().mean()


@pytest.mark.parametrize("downstream", [False, True])
@pytest.mark.parametrize("reconstruction", [0.0, RECONSTRUCTION])
@pytest.mark.parametrize(("skip_positions", "bounded"), [([], False), ([0], False), ([0, 3, 6], False), ([0], True)])
def test_end_to_end_is_the_plain_formula(
    downstream: bool, reconstruction: float, skip_positions: list[int], bounded: bool
) -> None:
    toy, sae = random_toy(seed=1), toy_sae()
    norms = toy.blocks[0](toy.embed[TOKENS]).norm(dim=-1)
    max_norm = float(norms.median()) if bounded else None
    counted = norms <= (float("inf") if max_norm is None else max_norm)
    counted[:, skip_positions] = False
    assert counted.sum() > 4
    assert bool(counted.all()) == (not skip_positions and not bounded)
    module = EndToEndSAE(
        sae,
        subject=toy,
        hook=BLOCK_1,
        downstream_hooks=["blocks.2.hook_resid_pre", LAST] if downstream else [],
        coefficients=Coefficients(reconstruction, KL, DOWNSTREAM if downstream else 0.0),
        recipe=RECIPE,
        sparsity=LAMBDA,
        skip_positions=skip_positions,
        max_norm=max_norm,
    )
    plain = plain_end_to_end(toy, sae, counted, downstream=downstream, reconstruction=reconstruction)
    assert_same(module, TOKENS, plain)


@pytest.mark.parametrize("bounded", [False, True])
def test_local_is_the_plain_formula(bounded: bool) -> None:
    sae, x = toy_sae(), torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    max_norm = float(x.norm(dim=-1).median()) if bounded else None
    counted = x.norm(dim=-1) <= (float("inf") if max_norm is None else max_norm)
    assert bool(counted.all()) == (not bounded)
    module = LocalSAE(sae, recipe=RECIPE, sparsity=LAMBDA, reconstruction=1.5, max_norm=max_norm)
    c, x_hat = plain_sae(sae, x)
    plain = 1.5 * (x_hat - x)[counted].square().mean() + LAMBDA / 6 * c.abs().sum(-1)[counted].mean()
    assert_same(module, x, plain)


def test_normalised_activations_are_the_plain_formula_on_scaled_ones_and_fold_away() -> None:
    sae, x, scale = toy_sae(), torch.randn(40, 6, generator=torch.Generator().manual_seed(2)), 0.31
    sae.start_at(sae.b_dec.detach() / scale, input_scale=scale)
    module = LocalSAE(sae, recipe=RECIPE, sparsity=LAMBDA, reconstruction=1.0, max_norm=None)
    c, x_hat = plain_sae(sae, scale * x)
    assert_same(module, x, (x_hat - scale * x).square().mean() + LAMBDA / 6 * c.abs().sum(-1).mean())
    folded = sae.folded()
    assert folded.input_scale == 1
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(20))
    torch.testing.assert_close(folded(x), sae(x))
    torch.testing.assert_close(folded(x), x_hat / scale)


@pytest.mark.parametrize("loss", ["e2e", "e2e_ds"])
def test_gradients_reach_the_sae_alone(loss: Loss) -> None:
    subject = gpt2()
    module = module_for(loss, subject)
    module.training_step(token_batches(subject, n=1)[0], 0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.sae.parameters())
    assert all(p.grad is None and not p.requires_grad for p in subject.model.parameters())
    assert {name.split(".")[0] for name in module.state_dict()} == {
        "sae",
        "last_fired",
        "tokens_seen",
        "first_bad_step",
    }
    optimised = {id(p) for g in module.configure_optimizers()["optimizer"].param_groups for p in g["params"]}
    assert optimised == {id(p) for p in module.sae.parameters()}


def test_with_a_perfect_reconstruction_only_the_sparsity_is_left() -> None:
    """Codes ±x: the spliced pass is the clean one, KL and downstream vanish."""
    subject = gpt2()
    sae, eye = sae_for(subject, n_latents=2 * subject.d_model), torch.eye(subject.d_model)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    tokens = token_batches(subject, n=1)[0]
    module = module_for("e2e_ds", subject, sae=sae, sparsity=0.5)
    loss = module.training_step(tokens, 0)
    x = subject.clean(tokens, capture=[HOOK], final=False).activations[HOOK]
    torch.testing.assert_close(loss, 0.5 * x.abs().sum(-1).mean() / subject.d_model, rtol=1e-5, atol=1e-5)
