"""The losses of the training modules equal the formulas of the papers, written out literally, in value and gradient."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crux.sae.architectures.gradient_topk import GradientTopKSAE
from crux.sae.architectures.options import Auxk
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.losses.e2e import E2EDownstreamLoss, E2ELoss
from crux.sae.losses.fisher import FisherLoss
from crux.sae.losses.kl_finetune import KLFinetuneLoss
from crux.sae.losses.label import LabelTarget, draw_labels
from crux.sae.losses.local import LocalLoss
from crux.sae.losses.options import E2E, E2EDownstream, Fisher, KLFinetune, Local
from crux.sae.losses.readout import token_chunks
from crux.sae.training.activations import Activations
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.tally import Tally
from crux.subjects.subject import Subject
from tests.support.architectures import make_arguments
from tests.support.small_runs import (
    HOOK,
    NO_AUXK,
    Loss,
    draw_token_batches,
    make_gpt2,
    make_loss_module,
    make_module,
    make_sae,
)
from tests.support.toy_subject import ToySubject, make_random_toy

LAMBDA, KL, DOWNSTREAM, RECONSTRUCTION, FISHER = 0.7, 0.5, 2.5, 0.3, 6.0
TOKENS = torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(0))
BLOCK_1, BLOCK_2, LAST = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


def toy_sae(*, seed: int = 5) -> ReluSAE:
    return ReluSAE(**make_arguments(d_model=6, n_latents=20, seed=seed))


class PlainCodes(NamedTuple):
    """The codes, reconstruction and pre-activations of an SAE, by the formulas of the paper."""

    c: Tensor
    x_hat: Tensor
    pre: Tensor


def run_plain_sae(sae: SAE, x: Tensor) -> PlainCodes:
    """Return c and x̂ of the paper, with s = 1."""
    pre = x @ sae.W_enc + sae.b_enc
    c = torch.relu(pre)
    return PlainCodes(c, c @ (sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True)) + sae.b_dec, pre)


def compute_l1(c: Tensor, counted: Tensor, *, d: int = 6) -> Tensor:
    """Return λ/d · mean over the counted tokens of ‖c‖₁."""
    return LAMBDA / d * c.abs().sum(-1)[counted].mean()


def compute_gradients(module: SAEModule, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the parameters of the SAEs."""
    module.saes.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.saes.named_parameters() if p.grad is not None}


def assert_same_loss(module: SAEModule, batch: Tensor | Activations, plain: Tensor) -> None:
    """Assert that a training step has the loss `plain`, computed by the formula, and the same gradients."""
    expected = compute_gradients(module, plain)
    loss = module.training_step(batch, 0)
    found = compute_gradients(module, loss)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-7)
    assert found.keys() == expected.keys() == {f"{i}.{name}" for i in range(len(module.sites)) for name in WEIGHTS}
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4, f"{name}: nothing to compare"
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def make_site(sae: SAE) -> list[Site]:
    return [Site(BLOCK_1, BLOCK_1, sae)]


def compute_plain_kl(toy: ToySubject, clean: Tensor, spliced: Tensor, counted: Tensor) -> Tensor:
    log_p, log_q = ((h @ toy.unembed.W_U.T).log_softmax(-1) for h in (clean, spliced))
    return (log_p.exp() * (log_p - log_q)).sum(-1)[counted].mean()


def compute_plain_end_to_end(
    toy: ToySubject, sae: ReluSAE, counted: Tensor, *, downstream: bool, reconstruction: float
) -> Tensor:
    """Return the loss of Braun et al. §2.2 and §2.3 with the 1/d of their code; `counted` (batch × pos) marks counted tokens."""
    x = toy.blocks[0](toy.embed[TOKENS])
    c, x_hat, _ = run_plain_sae(sae, x)
    clean, spliced = [toy.blocks[1](x)], [toy.blocks[1](x_hat)]  # entering block 2, then the end
    clean.append(toy.blocks[2](clean[0]))
    spliced.append(toy.blocks[2](spliced[0]))
    loss = KL * compute_plain_kl(toy, clean[-1], spliced[-1], counted) + compute_l1(c, counted)
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
    toy, sae = make_random_toy(seed=1), toy_sae()
    norms = toy.blocks[0](toy.embed[TOKENS]).norm(dim=-1)
    max_norm = float(norms.median()) if bounded else None
    counted = norms <= (float("inf") if max_norm is None else max_norm)
    counted[:, skip_positions] = False
    assert counted.sum() > 4
    assert bool(counted.all()) == (not skip_positions and not bounded)
    options: Any = {
        "kl": KL, "reconstruction": reconstruction, "skip_positions": skip_positions, "max_norm": max_norm
    }  # fmt: skip
    loss = E2EDownstreamLoss(E2EDownstream(downstream=DOWNSTREAM, **options)) if downstream else E2ELoss(E2E(**options))
    later = [BLOCK_2, LAST] if downstream else []
    module = make_loss_module(loss, make_site(sae), subject=toy, later=later, sparsity=LAMBDA)
    plain = compute_plain_end_to_end(toy, sae, counted, downstream=downstream, reconstruction=reconstruction)
    assert_same_loss(module, TOKENS, plain)


@pytest.mark.parametrize(("skip_positions", "bounded"), [((), False), ((0, 3), False), ((0,), True)])
def test_several_end_to_end_saes_are_the_plain_formula(skip_positions: tuple[int, ...], bounded: bool) -> None:
    """The second SAE reads what the first one wrote.

    Its own clean activation determines which tokens the terms of an SAE leave out; the terms of the network leave out the
    tokens of both.
    """
    toy, saes = make_random_toy(seed=1), [toy_sae(), toy_sae(seed=6)]
    x = toy.blocks[0](toy.embed[TOKENS])
    y = toy.blocks[1](x)
    end = toy.blocks[2](y)
    max_norm = float(torch.cat([x, y]).norm(dim=-1).quantile(0.7)) if bounded else None
    counted = [a.norm(dim=-1) <= (float("inf") if max_norm is None else max_norm) for a in (x, y)]
    for mask in counted:
        mask[:, skip_positions] = False
    assert bool((counted[0] != counted[1]).any()) == bounded
    both = counted[0] & counted[1]
    assert both.sum() > 3
    options = E2EDownstream(
        kl=KL, downstream=DOWNSTREAM, reconstruction=RECONSTRUCTION, skip_positions=list(skip_positions),
        max_norm=max_norm,
    )  # fmt: skip
    sites = [Site(BLOCK_1, BLOCK_1, saes[0]), Site(BLOCK_2, BLOCK_2, saes[1])]
    module = make_loss_module(E2EDownstreamLoss(options), sites, subject=toy, later=[LAST], sparsity=LAMBDA)
    c_x, x_hat, _ = run_plain_sae(saes[0], x)
    c_y, y_hat, _ = run_plain_sae(saes[1], toy.blocks[1](x_hat))
    spliced = toy.blocks[2](y_hat)
    plain = KL * compute_plain_kl(toy, end, spliced, both) + DOWNSTREAM * (spliced - end)[both].square().mean()
    for c, a_hat, a, mask in ((c_x, x_hat, x, counted[0]), (c_y, y_hat, y, counted[1])):
        plain = plain + compute_l1(c, mask) + RECONSTRUCTION * (a_hat - a)[mask].square().mean()
    assert_same_loss(module, TOKENS, plain)


@pytest.mark.parametrize(("skip_positions", "bounded"), [((), False), ((0, 3), True)])
def test_the_finetune_step_is_the_plain_formula(skip_positions: tuple[int, ...], bounded: bool) -> None:
    """The loss is ½ (MSE + α · KL) with α = MSE / KL without gradient, so that both terms have the same weight."""
    toy, sae = make_random_toy(seed=1), toy_sae()
    x = toy.blocks[0](toy.embed[TOKENS])
    max_norm = float(x.norm(dim=-1).median()) if bounded else None
    counted = x.norm(dim=-1) <= (float("inf") if max_norm is None else max_norm)
    counted[:, skip_positions] = False
    options = KLFinetune(reconstruction=1.5, finetune_share=0.5, skip_positions=list(skip_positions), max_norm=max_norm)
    module = make_loss_module(KLFinetuneLoss(options), make_site(sae), subject=toy, sparsity=LAMBDA)
    c, x_hat, _ = run_plain_sae(sae, x)
    error = 1.5 * (x_hat - x)[counted].square().mean()
    kl = compute_plain_kl(toy, toy.blocks[2](toy.blocks[1](x)), toy.blocks[2](toy.blocks[1](x_hat)), counted)
    alpha = float(error.detach()) / float(kl.detach())
    plain = 0.5 * (error + alpha * kl) + compute_l1(c, counted)
    assert_same_loss(module, TOKENS, plain)
    torch.testing.assert_close(plain, error + compute_l1(c, counted), msg="the loss keeps its scale")


@pytest.mark.parametrize("bounded", [False, True])
def test_before_the_finetuning_the_loss_is_local(bounded: bool) -> None:
    toy, sae, x = make_random_toy(seed=1), toy_sae(), torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    options: Any = {
        "reconstruction": 1.5, "skip_positions": [], "max_norm": float(x.norm(dim=-1).median()) if bounded else None
    }  # fmt: skip
    batch = Activations({BLOCK_1: x}, {})
    finetuned = KLFinetuneLoss(KLFinetune(finetune_share=0.5, **options))
    module = make_loss_module(finetuned, make_site(sae), subject=toy, sparsity=LAMBDA)
    local = make_loss_module(LocalLoss(Local(**options)), make_site(sae), sparsity=LAMBDA)
    assert_same_loss(module, batch, local.training_step(batch, 0))
    assert toy.passes == []


@pytest.mark.parametrize("bounded", [False, True])
def test_local_is_the_plain_formula(bounded: bool) -> None:
    sae, x = toy_sae(), torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    max_norm = float(x.norm(dim=-1).median()) if bounded else None
    counted = x.norm(dim=-1) <= (float("inf") if max_norm is None else max_norm)
    assert bool(counted.all()) == (not bounded)
    module = make_loss_module(LocalLoss(Local(reconstruction=1.5, max_norm=max_norm)), make_site(sae), sparsity=LAMBDA)
    c, x_hat, _ = run_plain_sae(sae, x)
    plain = 1.5 * (x_hat - x)[counted].square().mean() + compute_l1(c, counted)
    assert_same_loss(module, Activations({BLOCK_1: x}, {}), plain)


@pytest.mark.parametrize("bounded", [False, True])
def test_several_local_saes_have_the_sum_of_their_losses(bounded: bool) -> None:
    """Each SAE reads the clean activation at its own hook point, with its own λ and its own skipped tokens."""
    saes = [toy_sae(), toy_sae(seed=6)]
    x, y = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(2))
    max_norm = float(x.norm(dim=-1).median()) if bounded else None
    sites = [Site(BLOCK_1, BLOCK_1, saes[0]), Site(BLOCK_2, BLOCK_2, saes[1])]
    module = make_loss_module(LocalLoss(Local(reconstruction=1.5, max_norm=max_norm)), sites, sparsity=LAMBDA)
    module.sparsity.weight = LAMBDA * torch.tensor([1.0, 3.0])  # as steering may have it
    plain = torch.zeros(())
    for sae, a, factor in zip(saes, (x, y), (1.0, 3.0), strict=True):
        counted = a.norm(dim=-1) <= (float("inf") if max_norm is None else max_norm)
        c, a_hat, _ = run_plain_sae(sae, a)
        plain = plain + 1.5 * (a_hat - a)[counted].square().mean() + factor * compute_l1(c, counted)
    assert_same_loss(module, Activations({BLOCK_1: x, BLOCK_2: y}, {}), plain)


def test_normalised_activations_are_the_plain_formula_on_scaled_ones_and_fold_away() -> None:
    sae, x, scale = toy_sae(), torch.randn(40, 6, generator=torch.Generator().manual_seed(2)), 0.31
    sae.start_at(sae.b_dec.detach() / scale, input_scale=scale)
    module = make_loss_module(LocalLoss(Local(reconstruction=1.0)), make_site(sae), sparsity=LAMBDA)
    c, x_hat, _ = run_plain_sae(sae, scale * x)
    everywhere = torch.ones(40, dtype=torch.bool)
    assert_same_loss(
        module, Activations({BLOCK_1: x}, {}), (x_hat - scale * x).square().mean() + compute_l1(c, everywhere)
    )
    folded = sae.fold()
    assert folded.input_scale == folded.output_scale == 1
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(20))
    torch.testing.assert_close(folded(x), sae(x))
    torch.testing.assert_close(folded(x), x_hat / scale)


Part = Callable[[Tensor], Tensor]


def split_network(subject: Subject) -> tuple[Part, list[Part], Part]:
    """Return embedding, blocks and final norm of the Hugging Face model as functions."""
    network = subject.model.get_submodule("transformer")

    def block(module: nn.Module) -> Part:
        def run(h: Tensor) -> Tensor:
            out = module(h)
            return out if isinstance(out, Tensor) else out[0]

        return run

    def embed(tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        return network.get_submodule("wte")(tokens) + network.get_submodule("wpe")(places)

    return embed, [block(m) for m in network.get_submodule("h").children()], network.get_submodule("ln_f")


class CleanGradients(NamedTuple):
    """A clean pass, and the gradients g of a label loss, by hook point."""

    x: dict[str, Tensor]
    final: Tensor
    g: dict[str, Tensor]


def compute_plain_gradients(
    subject: Subject, tokens: Tensor, *, target: LabelTarget, generator: torch.Generator | None = None
) -> CleanGradients:
    """Return ∂(summed cross-entropy of the labels)/∂x at both hook points, from full logits and autograd."""
    embed, blocks, final_norm = split_network(subject)
    x = blocks[0](embed(tokens)).detach().requires_grad_()
    y = blocks[1](x)
    final = final_norm(blocks[2](y))
    logits = final @ subject.unembed.W_U.T
    if target == "data":
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    else:
        q = logits.detach().flatten(0, 1).softmax(-1)
        labels = [draw_labels(q[part], generator) for part in token_chunks(len(q), q.shape[1], q.device)]
        loss = F.cross_entropy(logits.flatten(0, 1), torch.cat(labels), reduction="sum")
    g = torch.autograd.grad(loss, (x, y))
    return CleanGradients(
        {BLOCK_1: x.detach(), BLOCK_2: y.detach()}, final.detach(), dict(zip((BLOCK_1, BLOCK_2), g, strict=True))
    )


def compute_plain_fisher(g: Tensor, delta: Tensor, counted: Tensor, *, block_diagonal: bool) -> Tensor:
    """Return the Fisher surrogate, computed sequence by sequence; `counted` (batch × pos) marks counted tokens."""
    change = (g * delta).sum(-1) * counted
    if block_diagonal:
        return 0.5 * change[counted].square().mean()
    return torch.stack([0.5 * c.sum() ** 2 / n.sum() for c, n in zip(change, counted, strict=True)]).mean()


@pytest.mark.parametrize("block_diagonal", [False, True])
@pytest.mark.parametrize(("skip_positions", "bounded"), [((), False), ((0, 3), True)])
@pytest.mark.parametrize("hooks", [[BLOCK_1], [BLOCK_1, BLOCK_2]])
def test_fisher_is_the_plain_formula(
    block_diagonal: bool, skip_positions: tuple[int, ...], bounded: bool, hooks: list[str]
) -> None:
    """The labels are drawn with the module's seed and are the same for every SAE."""
    subject = make_gpt2()
    saes = [make_sae(subject, seed=5 + i) for i in range(len(hooks))]
    (tokens,) = draw_token_batches(subject, n=1)
    clean = compute_plain_gradients(subject, tokens, target="sampled", generator=torch.Generator().manual_seed(0))
    max_norm = float(torch.cat([*clean.x.values()]).norm(dim=-1).quantile(0.6)) if bounded else None
    options = Fisher(
        reconstruction=1.5, fisher=FISHER, block_diagonal=block_diagonal, skip_positions=list(skip_positions),
        max_norm=max_norm,
    )  # fmt: skip
    sites = [Site(hook, hook, sae) for hook, sae in zip(hooks, saes, strict=True)]
    module = make_loss_module(FisherLoss(options), sites, subject=subject, sparsity=LAMBDA)
    plain = torch.zeros(())
    for hook, sae in zip(hooks, saes, strict=True):
        x = clean.x[hook]
        counted = x.norm(dim=-1) <= (float("inf") if max_norm is None else max_norm)
        counted[:, skip_positions] = False
        assert counted.any(1).all()
        c, x_hat, _ = run_plain_sae(sae, x)
        surrogate = compute_plain_fisher(clean.g[hook], x_hat - x, counted, block_diagonal=block_diagonal)
        sae_loss = 1.5 * (x_hat - x)[counted].square().mean() + FISHER * surrogate + compute_l1(c, counted, d=16)
        assert 0.05 * sae_loss < FISHER * surrogate < 0.95 * sae_loss, "nothing to compare"
        plain = plain + sae_loss
    assert_same_loss(module, tokens, plain)


def test_labels_are_drawn_anew_for_every_batch() -> None:
    toy = make_random_toy(seed=1)
    options = Fisher(reconstruction=0.0, fisher=1.0, block_diagonal=False, skip_positions=[])
    module = make_loss_module(FisherLoss(options), make_site(toy_sae()), subject=toy, sparsity=0.0)
    losses = [float(module.training_step(TOKENS, 0).detach()) for _ in range(4)]
    assert len(set(losses)) == 4
    assert toy.passes == 4 * ["clean"], "no spliced pass"


def test_a_local_gradient_transcoder_is_given_the_gradient_where_it_writes() -> None:
    sae = GradientTopKSAE(**make_arguments(d_model=6, n_latents=20, seed=5), k=3, beta=2.0)
    x, target, g, other = torch.randn(4, 40, 6, generator=torch.Generator().manual_seed(2))
    batch = Activations({BLOCK_1: x, BLOCK_2: target}, {BLOCK_1: other, BLOCK_2: g})
    codes = sae.encode(x, g)
    assert not torch.equal(codes.c, sae.encode(x, other).c)
    module = make_loss_module(LocalLoss(Local(reconstruction=1.0)), [Site(BLOCK_1, BLOCK_2, sae)])
    assert_same_loss(module, batch, (sae.decode(codes) - target).square().mean())


@pytest.mark.parametrize("target", ["data", "sampled"])
@pytest.mark.parametrize("loss", ["e2e", "fisher"])
def test_a_gradient_sae_is_given_the_gradient_of_its_own_labels(loss: Loss, target: LabelTarget) -> None:
    """With loss=fisher, drawn labels are drawn once for both uses; the labels of the text give another gradient."""
    subject = make_gpt2()
    (tokens,) = draw_token_batches(subject, n=1)
    sae = GradientTopKSAE(**make_arguments(d_model=16, n_latents=32), k=3, beta=2.0)
    drawn = compute_plain_gradients(subject, tokens, target="sampled", generator=torch.Generator().manual_seed(0))
    of_labels = drawn if target == "sampled" else compute_plain_gradients(subject, tokens, target="data")
    x = of_labels.x[BLOCK_1]
    codes = sae.encode(x.flatten(0, 1), of_labels.g[BLOCK_1].flatten(0, 1))
    assert not torch.equal(codes.c, sae.encode(x.flatten(0, 1)).c)
    x_hat = sae.decode(codes).view_as(x)
    if loss == "fisher":
        everywhere = torch.ones(tokens.shape, dtype=torch.bool)
        surrogate = compute_plain_fisher(drawn.g[BLOCK_1], x_hat - x, everywhere, block_diagonal=False)
        plain = (x_hat - x).square().mean() + surrogate
    else:
        _, blocks, final_norm = split_network(subject)
        spliced = final_norm(blocks[2](blocks[1](x_hat)))
        log_p, log_q = ((h @ subject.unembed.W_U.T).log_softmax(-1) for h in (of_labels.final, spliced))
        plain = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert_same_loss(make_module(loss, subject, sae=sae, target=target), tokens, plain)


def mark_dead_latents(module: SAEModule, *, dead: Sequence[int]) -> None:
    """Mark some latents as dead and all others as alive."""
    (tally,) = module.tallies
    assert isinstance(tally, Tally)
    tally.tokens_seen.fill_(1000)
    tally.last_fired.fill_(990)
    tally.last_fired[list(dead)] = torch.tensor([-1, *[500] * (len(dead) - 1)])


def compute_plain_auxk(sae: SAE, x: Tensor, counted: Tensor, *, dead: list[int], k: int) -> Tensor:
    """Return AuxK of Gao et al. A.2, token by token: the k dead latents with the largest pre-activations fit the residual."""
    _, x_hat, pre = run_plain_sae(sae, x)
    residual = (x - x_hat).detach()[counted]
    directions = F.normalize(sae.W_dec, dim=-1)
    fitted = []
    for token in pre[counted]:
        best = sorted(dead, key=lambda i: -float(token.detach()[i]))[:k]
        fitted.append(token[best] @ directions[best])
    variance = (residual - residual.mean(0)).square().sum()
    return (residual - torch.stack(fitted)).square().sum() / variance


@pytest.mark.parametrize("k", [None, 2, 20])
@pytest.mark.parametrize("loss", ["local", "e2e", "fisher", "kl_finetune"])
def test_dead_latents_fit_the_residual(loss: Loss, k: int | None) -> None:
    """With dead latents the loss is larger by coefficient · AuxK, in value and gradient; without them it is unchanged."""
    subject, dead = make_gpt2(), [2, 3, 5, 7, 11, 13, 17, 19, 23]
    (tokens,) = draw_token_batches(subject, n=1)
    x = subject.clean(tokens, capture=[HOOK]).activations[HOOK].flatten(0, 1)
    counted = x.norm(dim=-1) <= (max_norm := float(x.norm(dim=-1).quantile(0.8)))
    batch = Activations({HOOK: x}, {}) if loss == "local" else tokens
    sae = make_sae(subject)
    without = make_module(loss, subject, sae=sae, max_norm=max_norm)
    module = make_module(loss, subject, sae=sae, max_norm=max_norm, auxk=Auxk(0.25, k, dead_after=100))
    same = without.training_step(batch, 0)
    assert torch.equal(module.training_step(batch, 0), same)  # no latent can be dead before the first 100 tokens
    without, module = (
        make_module(loss, subject, sae=sae, max_norm=max_norm, auxk=auxk) for auxk in (NO_AUXK, Auxk(0.25, k, 100))
    )
    mark_dead_latents(module, dead=dead)
    auxk = compute_plain_auxk(sae, x, counted, dead=dead, k=k or subject.d_model // 2)
    plain = without.training_step(batch, 0) + 0.25 * auxk
    assert 0.1 < auxk < 10
    assert_same_loss(module, batch, plain)


def test_dead_latents_of_a_normalised_sae_fit_the_normalised_residual() -> None:
    sae, scale, dead = toy_sae(), 0.31, [1, 4, 9, 16]
    sae.start_at(sae.b_dec.detach() / scale, input_scale=scale)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    everywhere = torch.ones(40, dtype=torch.bool)
    module = make_loss_module(
        LocalLoss(Local(reconstruction=1.0)), make_site(sae), sparsity=0.0, auxk=Auxk(0.25, 2, 100)
    )
    mark_dead_latents(module, dead=dead)
    auxk = compute_plain_auxk(sae, scale * x, everywhere, dead=dead, k=2)
    error = (run_plain_sae(sae, scale * x).x_hat - scale * x).square().mean()
    assert_same_loss(module, Activations({BLOCK_1: x}, {}), error + 0.25 * auxk)


TRANSCODER = ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")


def run_plain_transcoder(subject: Subject, sae: SAE, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return c, x̂ and the target of a transcoder, and the final hidden states without and with it."""
    embed, blocks, final_norm = split_network(subject)
    block = subject.model.get_submodule("transformer.h.1")
    attn, ln_1, ln_2, mlp = (block.get_submodule(name) for name in ("attn", "ln_1", "ln_2", "mlp"))
    h = blocks[0](embed(tokens))
    mid = h + attn(ln_1(h))[0]
    mlp_out = mlp(ln_2(mid))
    c, mlp_hat, _ = run_plain_sae(sae, mid)
    return c, mlp_hat, mlp_out, final_norm(blocks[2](mid + mlp_out)), final_norm(blocks[2](mid + mlp_hat))


@pytest.mark.parametrize("loss", ["local", "e2e", "kl_finetune"])
def test_a_transcoder_is_the_plain_formula(loss: Loss) -> None:
    """The transcoder encodes the residual before the MLP and replaces the output of the MLP; the residual is unchanged."""
    subject = make_gpt2()
    (tokens,) = draw_token_batches(subject, n=1)
    sae, (read, write) = make_sae(subject), TRANSCODER
    c, mlp_hat, mlp_out, clean, spliced = run_plain_transcoder(subject, sae, tokens)
    error = (mlp_hat - mlp_out).square().mean()
    sparsity = LAMBDA / 16 * c.sum(-1).mean()
    log_p, log_q = ((h @ subject.unembed.W_U.T).log_softmax(-1) for h in (clean, spliced))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    plain = {"local": error, "e2e": kl, "kl_finetune": 0.5 * (error + (error / kl).detach() * kl)}[loss] + sparsity
    batch: Tensor | Activations = tokens
    if loss == "local":
        activations = subject.clean(tokens, capture=TRANSCODER, final=False).activations
        batch = Activations({hook: a.flatten(0, 1) for hook, a in activations.items()}, {})
    assert_same_loss(make_module(loss, subject, sites=[Site(read, write, sae)], sparsity=LAMBDA), batch, plain)


def test_a_normalised_transcoder_scales_what_it_reads_and_what_it_writes() -> None:
    sae = toy_sae()
    sae.start_at(sae.b_dec.detach() / 0.2, input_scale=0.31, output_scale=0.2)
    x, target = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(2))
    module = make_loss_module(LocalLoss(Local(reconstruction=1.0)), [Site(BLOCK_1, BLOCK_2, sae)], sparsity=LAMBDA)
    c, x_hat, _ = run_plain_sae(sae, 0.31 * x)
    plain = (x_hat - 0.2 * target).square().mean() + compute_l1(c, torch.ones(40, dtype=torch.bool))
    assert_same_loss(module, Activations({BLOCK_1: x, BLOCK_2: target}, {}), plain)


@pytest.mark.parametrize("loss", ["e2e", "e2e_ds", "fisher", "kl_finetune"])
def test_only_the_sae_receives_gradients(loss: Loss) -> None:
    subject = make_gpt2()
    module = make_module(loss, subject)
    module.training_step(draw_token_batches(subject, n=1)[0], 0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.saes.parameters())
    assert all(p.grad is None and not p.requires_grad for p in subject.model.parameters())
    assert {".".join(name.split(".")[:2]) for name in module.state_dict()} == {
        "saes.0",
        "tallies.0",
        "sparsity.weight",
        "sparsity.integral",
        "sparsity.log_l0",
        "sparsity.log_first",
        "sparsity.log_mean",
        "watch.first_bad_step",
        "watch.no_tokens",
    }
    optimizers: Any = module.configure_optimizers()
    optimised = {id(p) for g in optimizers["optimizer"].param_groups for p in g["params"]}
    assert optimised == {id(p) for p in module.saes.parameters()}


@pytest.mark.parametrize("loss", ["e2e_ds", "fisher", "kl_finetune"])
def test_a_perfect_reconstruction_leaves_only_the_sparsity_term(loss: Loss) -> None:
    """With codes ±x the spliced pass equals the clean one; KL, downstream MSE and surrogate vanish, and α is finite."""
    subject = make_gpt2()
    sae, eye = make_sae(subject, n_latents=2 * subject.d_model), torch.eye(subject.d_model)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    tokens = draw_token_batches(subject, n=1)[0]
    module = make_module(loss, subject, sae=sae, sparsity=0.5)
    loss_found = module.training_step(tokens, 0)
    x = subject.clean(tokens, capture=[HOOK], final=False).activations[HOOK]
    torch.testing.assert_close(loss_found, 0.5 * x.abs().sum(-1).mean() / subject.d_model, rtol=1e-5, atol=1e-5)
    loss_found.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.saes.parameters())
