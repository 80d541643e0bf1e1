"""Bounds in annotations, and the message about a value outside of them."""

from dataclasses import dataclass, field
from typing import Annotated

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen

from crux.config.bounds import check_bounds
from crux.config.errors import UserError


@dataclass
class Inner:
    share: Annotated[float, Ge(0), Le(1)] = 0.5
    rate: Annotated[float, Gt(0)] | None = None
    low: float = 1.0
    high: float = 2.0

    def check_section(self, key: str) -> None:
        if self.low > self.high:
            raise UserError(f"{key}.low={self.low:g}: must be at most {key}.high={self.high:g}")


@dataclass
class Outer:
    count: Annotated[int, Ge(1)] = 1
    betas: list[Annotated[float, Ge(0), Lt(1)]] = field(default_factory=list)
    names: Annotated[list[Annotated[float, Gt(0)]], MinLen(1)] | None = None
    inner: Inner = field(default_factory=Inner)


def test_values_within_their_bounds_are_accepted() -> None:
    check_bounds(Outer(), "")
    check_bounds(Outer(count=3, betas=[0.0, 0.999], names=[0.1], inner=Inner(share=1.0, rate=1e-9)), "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Outer(count=0), "count=0: must be 1 or more"),
        (Outer(betas=[0.9, 1.0]), "betas=[0.9, 1.0]: must be numbers that are from 0 up to but not 1"),
        (Outer(names=[]), "names=[]: must be a list of at least one"),
        (Outer(names=[1.0, -1.0]), "names=[1.0, -1.0]: must be numbers that are more than 0"),
        (Outer(inner=Inner(share=1.5)), "inner.share=1.5: must be from 0 to 1"),
        (Outer(inner=Inner(share=float("nan"))), "inner.share=nan: must be from 0 to 1"),
        (Outer(inner=Inner(rate=0.0)), "inner.rate=0: must be more than 0"),
        (Outer(inner=Inner(low=3.0)), "inner.low=3: must be at most inner.high=2"),
    ],
)
def test_the_message_about_a_value_names_its_key_and_the_bounds(options: Outer, message: str) -> None:
    with pytest.raises(UserError) as rejected:
        check_bounds(options, "")
    assert str(rejected.value) == message
