"""The logit lens of directions: their direct path to the logits, without or with the exact final norm of some contexts."""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.reading.context_pairs import ContextPairs
from crux.sae.reading.interventions import ContextPool
from crux.subjects.hooks import FINAL, Hook
from crux.subjects.subject import Subject


def last_hook(subject: Subject) -> str:
    """Return the hook point before the final norm, which a pool must have captured for `norm_lens_effects`."""
    return Hook(subject.n_layers - 1, "resid_post").name


@torch.no_grad()
def lens_effects(subject: Subject, directions: Float[Tensor, "n d"], *, hook: str) -> Float[Tensor, "n d_vocab"]:
    """Return w W_Uᵀ minus its mean over the vocabulary, in float64: the logit lens, without the final norm and later blocks.

    Directions at the input of an attention's output projection are mapped through it. `logit_effects` gives the largest of them.
    """
    return _centred_logits(subject, subject.map_to_residual(hook, directions))


@torch.no_grad()
def norm_lens_effects(
    pool: ContextPool, pairs: ContextPairs, directions: Float[Tensor, "n d"]
) -> Float[Tensor, "n d_vocab"]:
    """Return J_norm(x_t) w W_Uᵀ minus its mean over the vocabulary, averaged over the contexts t of each direction, in float64.

    J_norm(x_t) is the Jacobian of the final norm at the clean residual stream x_t. This is the exact first-order effect of the direct
    path; a soft-cap of the logits is ignored. The pool must have captured `last_hook`. NaN for a direction without contexts.
    """
    subject, hook = pool.subject, last_hook(pool.subject)
    x = pool.clean.activations[hook][pairs.windows, pairs.positions]
    tangents = subject.map_to_residual(pool.hook, directions).to(x)[pairs.owners]

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = subject.continue_from(pool.clean, hook, x, ends=[FINAL])[FINAL]
        # Jᵀv is linear in v, so that its derivative along v gives J times the tangent: forward-mode AD warns of torch.jit.script
        v = torch.zeros_like(y, requires_grad=True)
        (pulled_back,) = torch.autograd.grad(y, x, v, create_graph=True)
        (changes,) = torch.autograd.grad(pulled_back, v, tangents)
    total = torch.zeros(len(directions), x.shape[-1], dtype=torch.float64, device=x.device)
    total.index_add_(0, pairs.owners, changes.double())
    return _centred_logits(subject, total / pairs.counts(len(directions))[:, None])


def _centred_logits(subject: Subject, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
    effects = directions.double() @ subject.unembed.W_U.double().T
    return effects - effects.mean(-1, keepdim=True)
