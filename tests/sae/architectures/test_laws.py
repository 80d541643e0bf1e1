"""Laws that hold for every architecture."""

import copy
import importlib
import pkgutil
from typing import get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import crux.sae.architectures
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.sae import SAE, BaseArguments
from tests.support.architectures import ARCHITECTURES, compute_auxiliary, draw_normal, make_arguments, perturb_sae

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def make_sae(name: str, **changed: object) -> SAE:
    return perturb_sae(ARCHITECTURES[name](make_arguments(**changed)))  # pyright: ignore[reportArgumentType]


@every_architecture
@pytest.mark.parametrize("training", [True, False])
def test_forward_is_decode_of_encode(name: str, training: bool) -> None:
    sae = make_sae(name).train(training)
    x = 3 * draw_normal(6, 5, 8)
    codes = sae.encode(x.flatten(0, 1))
    assert torch.equal(sae(x), sae.decode(codes).view(6, 5, 8))
    torch.testing.assert_close(sae.decode(codes), codes.c @ sae.dictionary() + sae.b_dec)
    assert codes.c.any()


@every_architecture
def test_the_effective_decoder_has_unit_norm(name: str) -> None:
    torch.testing.assert_close(make_sae(name).dictionary().norm(dim=-1), torch.ones(24))


@every_architecture
@pytest.mark.parametrize("training", [True, False])
def test_codes_are_positive_only_for_positive_pre_activations(name: str, training: bool) -> None:
    sae = make_sae(name).train(training)
    codes = sae.encode(3 * draw_normal(50, 8), draw_normal(50, 8, seed=2))
    assert (codes.c >= 0).all()
    assert codes.pre.shape == codes.c.shape
    assert (codes.pre[codes.c > 0] > 0).all()
    assert 0 < (codes.c > 0).float().mean() < 1


@every_architecture
@pytest.mark.parametrize("training", [True, False])
def test_active_codes_are_the_codes_without_the_zeros(name: str, training: bool) -> None:
    sae = make_sae(name).train(training)
    x = 3 * draw_normal(50, 8)
    x[7] = -100 * sae.b_dec.detach()[:8]  # a token with few latents
    dense, active = sae.encode(x).c, sae.encode_active(x)
    tokens = torch.arange(50).repeat_interleave(active.places.counts)
    assert torch.equal(active.dense(), dense)
    assert (active.values != 0).all()
    assert (torch.diff(tokens * sae.n_latents + active.places.latents) > 0).all()


@every_architecture
def test_encoding_is_deterministic_and_changes_no_state(name: str) -> None:
    sae = make_sae(name)
    before = copy.deepcopy(sae.state_dict())
    x, side = 3 * draw_normal(50, 8), draw_normal(50, 8, seed=2)
    one, two = sae.encode(x, side), sae.encode(x, side)
    assert torch.equal(one.c, two.c)
    sae.penalty(one, weight=None)
    sae.auxiliary(one, x, weight=None)
    assert all(torch.equal(value, before[key]) for key, value in sae.state_dict().items())


@every_architecture
@settings(max_examples=15, deadline=None)
@given(
    scales=st.tuples(st.floats(0.02, 50), st.floats(0.02, 50)),
    shape=st.sampled_from([(False, None), (True, None), (False, 5)]),
    seed=st.integers(0, 10),
)
def test_folding_preserves_the_function_of_a_token(
    name: str, scales: tuple[float, float], shape: tuple[bool, int | None], seed: int
) -> None:
    subtract_b_dec, d_out = shape
    sae = make_sae(name, subtract_b_dec=subtract_b_dec, d_out=d_out, seed=seed).eval()
    mean = draw_normal(sae.d_out, seed=seed + 50)
    sae.start_at(mean, input_scale=scales[0], output_scale=scales[1])
    before = copy.deepcopy(sae.state_dict())
    x = 3 / scales[0] * draw_normal(40, 8, seed=seed + 1)
    codes = sae.encode(x)
    folded = sae.fold()
    assert not folded.training
    assert not folded.subtract_b_dec
    assert folded.d_out == sae.d_out
    assert folded.input_scale.item() == folded.output_scale.item() == 1
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(24))
    torch.testing.assert_close(folded.b_dec, mean, rtol=1e-4, atol=1e-5)
    sure = ~find_tokens_near_a_jump(sae, codes)
    for got, wanted in ((folded.encode(x).c, codes.c / scales[1]), (folded(x), sae.decode(codes))):
        close = (got - wanted).abs() <= 1e-4 * wanted.abs().max()
        assert close[sure].all()
    assert sure.float().mean() > 0.9
    together, one_by_one = folded.encode(x).c, torch.cat([folded.encode(row[None]).c for row in x])
    torch.testing.assert_close(
        together, one_by_one, rtol=1e-4, atol=1e-4 * float(together.detach().abs().max())
    )  # one token at a time
    assert all(torch.equal(value, before[key]) for key, value in sae.state_dict().items())  # the original is unchanged


def find_tokens_near_a_jump(sae: SAE, codes: Codes) -> Tensor:
    """Return the tokens with a pre-activation so close to a jump of the codes that rounding may decide."""
    threshold = getattr(sae, "threshold", torch.zeros(()))
    near = ((codes.pre - threshold).abs() < 1e-4).any(-1)
    if (k := getattr(sae, "k", None)) is not None:
        largest = codes.pre.topk(k + 1).values
        near |= largest[:, k - 1] - largest[:, k] < 1e-4
    return near


@every_architecture
def test_permuting_the_latents_permutes_the_codes(name: str) -> None:
    sae, permuted = make_sae(name), make_sae(name)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    state = {
        key: value.index_select(value.shape.index(24), order) if 24 in value.shape else value
        for key, value in sae.state_dict().items()
    }
    permuted.load_state_dict(state)
    x, side = 3 * draw_normal(30, 8), draw_normal(30, 8, seed=2)
    codes, moved = sae.encode(x, side), permuted.encode(x, side)
    torch.testing.assert_close(moved.c, codes.c[:, order])
    torch.testing.assert_close(moved.pre, codes.pre[:, order])
    torch.testing.assert_close(permuted.decode(moved), sae.decode(codes))
    torch.testing.assert_close(permuted.penalty(moved, weight=None), sae.penalty(codes, weight=None))


@every_architecture
def test_the_state_dict_is_complete(name: str) -> None:
    """An SAE with other initial weights becomes the same SAE when it loads this state, including thresholds and running means."""
    sae, other = make_sae(name), ARCHITECTURES[name](make_arguments(seed=5))
    other.load_state_dict(sae.state_dict())
    x, side = 3 * draw_normal(30, 8), draw_normal(30, 8, seed=2)
    for progress in (0.5, 0.9):
        for one in (sae, other):
            one.advance(progress)
            one.observe(one.encode(x, side))
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in sae.state_dict().items())
        codes = sae.encode(x, side)
        assert torch.equal(codes.c, other.encode(x, side).c)
        assert torch.equal(sae.penalty(codes, weight=None), other.penalty(codes, weight=None))


@every_architecture
def test_gradients_against_finite_differences(name: str) -> None:
    """Check the gradient of the squared error, except for JumpReLU's threshold, whose gradient is an estimate. No jump is near."""
    sae = make_sae(name, d_model=3, n_latents=6).double()
    x, side = 3 * draw_normal(5, 3).double(), draw_normal(5, 3, seed=2).double()
    smooth = {key: value for key, value in sae.named_parameters() if key != "log_threshold"}
    values = tuple(value.detach().clone().requires_grad_() for value in smooth.values())

    def loss(*values: Tensor) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(sae, dict(zip(smooth, values, strict=True))):
            codes = sae.encode(x, side)
            total = (sae.decode(codes) - x).square().mean() + sae.penalty(codes, weight=None)
            return (
                total if name == "gated" else total + compute_auxiliary(sae, codes, x, weight=None)
            )  # its decoder is frozen

    assert torch.autograd.gradcheck(loss, values)


@every_architecture
def test_no_gradient_to_the_input_is_computed(name: str) -> None:
    """A step needs five products with the dictionary's shape, two forward and three backward; some architectures need more."""
    from torch.utils.flop_counter import FlopCounterMode

    sae = make_sae(name, d_model=16, n_latents=64)
    x, side = draw_normal(50, 16), draw_normal(50, 16, seed=2)
    extra = {"gated": 2, "gradient_topk": 1, "matryoshka": 3 / 2}  # half of the latents are in a prefix: three products
    with FlopCounterMode(display=False) as counted:
        codes = sae.encode(x, side)
        loss = (sae.decode(codes) - x).square().mean() + sae.penalty(codes, weight=None)
        (loss + compute_auxiliary(sae, codes, x, weight=None)).backward()
    product = 2 * 50 * 16 * 64
    assert counted.get_total_flops() == pytest.approx((5 + extra.get(name, 0)) * product, rel=0.01)


@every_architecture
def test_tokens_of_weight_zero_are_left_out(name: str) -> None:
    sae = make_sae(name)
    x = 3 * draw_normal(30, 8)
    codes = sae.encode(x)
    some = Codes(codes.c[:10], codes.pre[:10])
    weight = torch.arange(30).lt(10).float()
    torch.testing.assert_close(sae.penalty(codes, weight=weight), sae.penalty(some, weight=None))
    torch.testing.assert_close(
        compute_auxiliary(sae, codes, x, weight=weight), compute_auxiliary(sae, some, x[:10], weight=None)
    )


@every_architecture
def test_penalty_and_auxiliary_term_are_in_scaled_units(name: str) -> None:
    """Scaled activations with the inverse scale give the same penalty and the same auxiliary term."""
    sae = make_sae(name)
    x = 3 * draw_normal(30, 8)
    codes = sae.encode(x)
    wanted = sae.penalty(codes, weight=None), compute_auxiliary(sae, codes, x, weight=None)
    sae.input_scale.fill_(0.25)
    sae.output_scale.fill_(0.25)
    codes = sae.encode(4 * x)
    got = sae.penalty(codes, weight=None), compute_auxiliary(sae, codes, 4 * x, weight=None)
    torch.testing.assert_close(got, wanted)


@every_architecture
@pytest.mark.parametrize("training", [True, False])
def test_an_sae_in_which_nothing_fires_has_finite_gradients(name: str, training: bool) -> None:
    sae = make_sae(name).train(training)
    with torch.no_grad():
        for key in ("b_enc", "b_gate"):
            if hasattr(sae, key):
                getattr(sae, key).fill_(-100.0)
    x = draw_normal(10, 8)
    codes = sae.encode(x, torch.zeros(10, 8))
    assert not codes.c.any()
    if training:
        sae.observe(codes)
        for progress in (0.2, 0.6, 1.0):
            sae.advance(progress)
    (
        sae.decode(codes).sum() + sae.penalty(codes, weight=None) + compute_auxiliary(sae, codes, x, weight=None)
    ).backward()
    assert all(value.isfinite().all() for value in sae.state_dict().values())
    assert all(p.grad.isfinite().all() for p in sae.parameters() if p.grad is not None)


def test_the_list_contains_all_architectures() -> None:
    modules = [
        importlib.import_module(f"crux.sae.architectures.{module.name}")
        for module in pkgutil.iter_modules(crux.sae.architectures.__path__)
    ]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    assert {type(make(make_arguments())) for make in ARCHITECTURES.values()} == {
        c for c in found if issubclass(c, SAE)
    } - {SAE}
    assert get_type_hints(BaseArguments).keys() == make_arguments().keys()


@every_architecture
def test_only_batch_wide_architectures_use_other_tokens(name: str) -> None:
    """Compare codes of a batch with codes of its tokens in training mode; the running mean of g's effect does not count."""
    sae = make_sae(name)
    x, side = 3 * draw_normal(40, 8), draw_normal(40, 8, seed=2)
    x[20:] *= 5  # the other tokens take latents away from the first 20 if the selection is over the batch
    together, without_others = sae.encode(x, side).c[:20], sae.encode(x[:20], side[:20]).c
    assert torch.allclose(together, without_others, rtol=1e-5, atol=1e-6) != sae.BATCH_WIDE


@every_architecture
def test_every_parameter_is_in_exactly_one_optimiser_group(name: str) -> None:
    sae = make_sae(name)
    groups = sae.parameter_groups(0.1)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in sae.parameters())
    assert len(groups) == (2 if name == "jumprelu" else 1)
