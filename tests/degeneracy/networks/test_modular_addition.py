"""Tests of the modular-addition transformer: its fast logits, hook points and folder."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from crux.config.errors import UserError
from crux.degeneracy.basis_options import AdditionSizes
from crux.degeneracy.networks.addition_folder import RUN_SUBFOLDER, find_addition_folder
from crux.degeneracy.networks.modular_addition import (
    MID,
    OUTPUT,
    POST,
    PRE,
    ModularAddition,
    Pairs,
    load_addition,
    save_addition,
    split_pairs,
)

SIZES = AdditionSizes(p=11, d_model=12, n_heads=3, d_mlp=20)


def network() -> ModularAddition:
    made = ModularAddition(SIZES).double()
    made.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in made.parameters():  # biases too
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


def test_logits_equal_the_chains_output_in_value_and_gradient() -> None:
    made, tokens = network(), split_pairs(SIZES.p, train_share=0.5, seed=0).train
    weights = torch.randn(len(tokens), SIZES.p, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slow, fast = made(tokens), made.logits(tokens)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)
    params = list(made.parameters())
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), params),
        torch.autograd.grad((slow * weights).sum(), params),
        strict=True,
    ):
        assert float(b.abs().max()) > 1e-3
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_hook_points_have_all_positions_and_attention_is_causal() -> None:
    made = network()
    tokens = torch.tensor([[3, 5, 11], [3, 7, 11]])
    found = made.clean(tokens, capture=made.hooks, final=True).activations
    assert made.hooks == (PRE, MID, POST, OUTPUT)
    assert all(found[hook].shape == (2, 3, SIZES.d_model) for hook in (PRE, MID, POST))
    assert found[OUTPUT].shape == (2, SIZES.p)
    assert torch.equal(found[MID][0, 0], found[MID][1, 0])
    assert not torch.equal(found[MID][0, 1], found[MID][1, 1])
    _, attention, *_ = made.parts
    q, k, v = (torch.einsum("bpm,hmd->bhpd", found[PRE], W) for W in (attention.W_Q, attention.W_K, attention.W_V))
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    added = torch.einsum("bhpd,hdm->bpm", z, attention.W_O)
    torch.testing.assert_close(found[MID], found[PRE] + added)


def test_last_position_chain_and_mlp_chain_equal_the_network() -> None:
    made, tokens = network(), split_pairs(SIZES.p, train_share=0.5, seed=0).test
    whole = made.clean(tokens, capture=made.hooks, final=True).activations
    last = made.last_position_chain()
    for hook, value in last.clean(tokens, capture=last.hooks, final=True).activations.items():
        torch.testing.assert_close(value, whole[hook][:, -1:] if hook in (MID, POST) else whole[hook])
    mid, mlp = whole[MID][:, -1], made.mlp_chain()
    found = mlp.clean(mid, capture=mlp.hooks, final=True).activations
    torch.testing.assert_close(found["blocks.0.mlp.hook_pre"], made.pre_activations(mid))
    torch.testing.assert_close(found[OUTPUT] + mid @ made.parts[3].W_U, whole[OUTPUT])
    torch.testing.assert_close(mid + found["blocks.0.hook_mlp_out"], whole[POST][:, -1])


def test_every_pair_occurs_once_and_the_seed_determines_the_split() -> None:
    found = split_pairs(113, train_share=0.3, seed=0)
    assert (len(found.train), len(found.test)) == (3830, 8939)
    every = torch.cat(found)
    assert len({tuple(row) for row in every.tolist()}) == 113**2
    assert bool((every[:, 2] == 113).all())
    assert torch.equal(split_pairs(113, train_share=0.3, seed=0).train, found.train)
    assert not torch.equal(split_pairs(113, train_share=0.3, seed=1).train, found.train)
    assert Pairs.sums(torch.tensor([[112, 1, 113], [50, 3, 113], [112, 112, 113]])).tolist() == [0, 53, 111]


def test_initial_weights_have_their_scales() -> None:
    made = ModularAddition(AdditionSizes(113, 128, 4, 512))
    made.init_weights(torch.Generator().manual_seed(3))
    stds = {name.rpartition(".")[2]: float(p.detach().std()) for name, p in made.named_parameters()}
    assert stds.pop("b_in") == stds.pop("b_out") == 0
    assert stds.pop("W_U") == pytest.approx(113**-0.5, rel=0.03)
    assert stds.pop("W_pos") == pytest.approx(128**-0.5, rel=0.2)
    assert all(std == pytest.approx(128**-0.5, rel=0.03) for std in stds.values())


def test_saved_folder_is_loaded_exactly(tmp_path: Path) -> None:
    made = network().float()
    save_addition(tmp_path / RUN_SUBFOLDER, made, train_share=0.4, seed=7)
    folder = find_addition_folder(tmp_path)
    assert folder is not None
    assert folder == tmp_path / RUN_SUBFOLDER == find_addition_folder(folder)
    back, tokens = load_addition(folder)
    assert back.sizes == SIZES
    for name, value in made.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
    assert torch.equal(tokens.train, split_pairs(11, train_share=0.4, seed=7).train)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_other_folders_are_not_recognised(tmp_path: Path) -> None:
    assert find_addition_folder(tmp_path / "nowhere") is None
    assert find_addition_folder(tmp_path) is None
    (tmp_path / "config.json").write_text("[]")
    assert find_addition_folder(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modular_addition"}))
    (tmp_path / "model.bin").write_bytes(b"pickled")
    assert find_addition_folder(tmp_path) is None


def test_weights_that_do_not_match_are_reported(tmp_path: Path) -> None:
    save_addition(tmp_path, network(), train_share=0.4, seed=7)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path)
    with pytest.raises(UserError, match=r"the weights do not fit config\.json"):
        load_addition(tmp_path)
