"""Tests of the modular-addition transformer: its two ways to compute logits, its hook points, its pairs and its folder."""

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

EQUALS = SIZES.p
"""The token "=". The numbers have the tokens 0 to p − 1."""


def build_network() -> ModularAddition:
    """Return a random network. Its biases are random too; `init_weights` alone would set them to 0."""
    network = ModularAddition(SIZES).double()
    network.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in network.parameters():
            # the number of entries is the seed, so that parameters of different sizes get different noise
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def test_logits_from_tables_equal_those_of_the_forward_pass_in_value_and_gradient() -> None:
    network, tokens = build_network(), split_pairs(SIZES.p, train_share=0.5, seed=0).train
    weights = torch.randn(len(tokens), SIZES.p, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    from_forward, from_tables = network(tokens), network.logits(tokens)
    torch.testing.assert_close(from_tables, from_forward, atol=1e-12, rtol=1e-12)
    params = list(network.parameters())
    for found, expected in zip(
        torch.autograd.grad((from_tables * weights).sum(), params),
        torch.autograd.grad((from_forward * weights).sum(), params),
        strict=True,
    ):
        assert float(expected.abs().max()) > 1e-3  # every parameter has a gradient to compare
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_hook_points_have_all_positions_and_attention_is_causal() -> None:
    network = build_network()
    tokens = torch.tensor([[3, 5, EQUALS], [3, 7, EQUALS]])  # the pairs differ only at the second position
    found = network.clean(tokens, capture=network.hooks, final=True).activations
    assert network.hooks == (PRE, MID, POST, OUTPUT)
    assert all(found[hook].shape == (2, 3, SIZES.d_model) for hook in (PRE, MID, POST))
    assert found[OUTPUT].shape == (2, SIZES.p)
    assert torch.equal(found[MID][0, 0], found[MID][1, 0])
    assert not torch.equal(found[MID][0, 1], found[MID][1, 1])
    attention = network.parts[1]
    q, k, v = (torch.einsum("bpm,hmd->bhpd", found[PRE], W) for W in (attention.W_Q, attention.W_K, attention.W_V))
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    attention_out = torch.einsum("bhpd,hdm->bpm", z, attention.W_O)
    torch.testing.assert_close(found[MID], found[PRE] + attention_out)


def test_last_position_chain_equals_the_network_at_the_last_position() -> None:
    network, tokens = build_network(), split_pairs(SIZES.p, train_share=0.5, seed=0).test
    expected = network.clean(tokens, capture=network.hooks, final=True).activations
    chain = network.last_position_chain()
    found = chain.clean(tokens, capture=chain.hooks, final=True).activations
    torch.testing.assert_close(found[PRE], expected[PRE])  # all positions, because the attention reads them
    for hook in (MID, POST):
        torch.testing.assert_close(found[hook], expected[hook][:, -1:])
    torch.testing.assert_close(found[OUTPUT], expected[OUTPUT])


def test_mlp_chain_equals_the_mlp_at_the_last_position() -> None:
    network, tokens = build_network(), split_pairs(SIZES.p, train_share=0.5, seed=0).test
    expected = network.clean(tokens, capture=network.hooks, final=True).activations
    mid, chain = expected[MID][:, -1], network.mlp_chain()
    found = chain.clean(mid, capture=chain.hooks, final=True).activations
    torch.testing.assert_close(found["blocks.0.mlp.hook_pre"], network.pre_activations(mid))
    # this chain has no skip connection, so the part of the residual stream that bypasses the MLP is added here
    torch.testing.assert_close(mid + found["blocks.0.hook_mlp_out"], expected[POST][:, -1])
    W_U = network.parts[3].W_U
    torch.testing.assert_close(mid @ W_U + found[OUTPUT], expected[OUTPUT])


def test_every_pair_occurs_once_and_the_seed_determines_the_split() -> None:
    found = split_pairs(113, train_share=0.3, seed=0)
    assert (len(found.train), len(found.test)) == (3830, 8939)  # 0.3 · 113² = 3830.7, rounded down, and the others
    every = torch.cat(found)
    assert len({tuple(row) for row in every.tolist()}) == 113**2
    assert bool((every[:, 2] == 113).all())  # the token "="
    assert torch.equal(split_pairs(113, train_share=0.3, seed=0).train, found.train)
    assert not torch.equal(split_pairs(113, train_share=0.3, seed=1).train, found.train)
    assert Pairs.sums(torch.tensor([[112, 1, 113], [50, 3, 113], [112, 112, 113]])).tolist() == [0, 53, 111]


def test_initial_weights_have_the_documented_standard_deviations() -> None:
    network = ModularAddition(AdditionSizes(p=113, d_model=128, n_heads=4, d_mlp=512))
    network.init_weights(torch.Generator().manual_seed(3))
    stds = {name.rpartition(".")[2]: float(p.detach().std()) for name, p in network.named_parameters()}
    assert stds.pop("b_in") == stds.pop("b_out") == 0
    assert stds.pop("W_U") == pytest.approx(113**-0.5, rel=0.03)
    assert stds.pop("W_pos") == pytest.approx(128**-0.5, rel=0.2)  # it has only 3 · 128 entries
    assert all(std == pytest.approx(128**-0.5, rel=0.03) for std in stds.values())


def test_saved_folder_is_loaded_exactly(tmp_path: Path) -> None:
    network = build_network().float()
    save_addition(tmp_path / RUN_SUBFOLDER, network, train_share=0.4, seed=7)
    folder = find_addition_folder(tmp_path)
    assert folder is not None
    assert folder == tmp_path / RUN_SUBFOLDER == find_addition_folder(folder)
    loaded, tokens = load_addition(folder)
    assert loaded.sizes == SIZES
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert torch.equal(tokens.train, split_pairs(SIZES.p, train_share=0.4, seed=7).train)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_folders_without_a_trained_network_are_not_recognised(tmp_path: Path) -> None:
    assert find_addition_folder(tmp_path / "nowhere") is None
    assert find_addition_folder(tmp_path) is None
    (tmp_path / "config.json").write_text("[]")
    assert find_addition_folder(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modular_addition"}))
    (tmp_path / "model.bin").write_bytes(b"pickled")
    assert find_addition_folder(tmp_path) is None


def test_weights_that_do_not_match_are_reported(tmp_path: Path) -> None:
    save_addition(tmp_path, build_network(), train_share=0.4, seed=7)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path)
    with pytest.raises(UserError, match=r"the weights do not fit config\.json"):
        load_addition(tmp_path)
