"""The short form of the campaign with damaged SAEs, models and tokenizers."""

import random
from pathlib import Path

import pytest
import torch

from crux.config.errors import UserError
from tests.campaigns.audit import recording
from tests.campaigns.files import campaign
from tests.campaigns.intact_files import write_saes
from tests.campaigns.mutations import damage_folder
from tests.campaigns.outcomes import Outcomes


@pytest.mark.slow
def test_damaged_files_are_rejected_in_one_line_or_loaded_correctly() -> None:
    outcomes = Outcomes("files")
    campaign(outcomes, 390, 7, None)
    assert not outcomes.shortfalls, outcomes.table()
    assert outcomes.counts["SAE: rejected in one line"] > 100
    assert outcomes.counts["SAE: loaded, with the described function, at another place"] > 10
    assert outcomes.counts["model: loaded, with the described function"] > 10


def test_the_audit_hook_sees_what_it_must(tmp_path: Path) -> None:
    with recording() as events:
        (tmp_path / "written").write_text("x")
        torch.save({"a": torch.zeros(1)}, tmp_path / "saved.pt")
        with open(tmp_path / "written"):
            pass
    assert len([event for event in events if "for writing" in event]) >= 1
    assert not any("crux" in event for event in events)
    (tmp_path / "written").unlink()  # not recorded: the block has ended
    assert not any("os.remove" in event for event in events)


def test_cases_are_a_pure_function_of_seed_and_number(tmp_path: Path) -> None:
    from tests.campaigns.files import SAE

    intact = write_saes(tmp_path / "saes")[0]
    done = [
        damage_folder(intact, tmp_path / str(i), random.Random("0 5"), kinds=SAE.damages, at_most=3) for i in range(2)
    ]
    assert done[0] == done[1]


def test_wrong_functions_are_noticed(tmp_path: Path) -> None:
    """The comparison can fail: an SAE that subtracts b_dec and one that does not are told apart."""
    import json

    from tests.campaigns.files_as_described import compare_sae, describe_sae

    folder = write_saes(tmp_path)[0]
    assert compare_sae(folder, random.Random(0)).startswith("with the described function")
    config = json.loads((folder / "cfg.json").read_text())
    W = {
        name: torch.randn(shape).double()
        for name, shape in {"W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,)}.items()
    }
    x = torch.randn(9, 6).double()
    ours = describe_sae(config, W, x)[0]
    assert not torch.allclose(ours, describe_sae(config | {"apply_b_dec_to_input": True}, W, x)[0])
    with pytest.raises(UserError):
        compare_sae(tmp_path / "nowhere", random.Random(0))
