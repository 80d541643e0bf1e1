"""How many tokens the sides still need, asked by a source that is not read to its end."""

import math
from collections.abc import Mapping

from crux.text.encode import Encoder
from crux.text.sample import SideSample
from crux.text.token_file import SIDES


class Demand:
    """The tokens that the sides need, of the part of a source that is being read and in total."""

    def __init__(self, sides: Mapping[str, SideSample], encoder: Encoder) -> None:
        self._sides, self._encoder = sides, encoder
        self._targets: dict[str, float] = {}

    def begin(self, share: float, *, held_out: bool | None) -> None:
        """Begin a part of the source, which is to give a share of the limits: to one side or, if `held_out` is None, to both."""
        self._encoder.encode_waiting()
        self._targets = {side.side: side.collected + share * _limit(side) for side in self._sides_of(held_out)}

    def wants(self, side: str) -> bool:
        """Return True unless the part has given its share to a side, so that each part gives the same."""
        collected = self._sides[side].collected + self._encoder.waiting_tokens.get(side, 0.0)
        return collected < self._targets.get(side, math.inf)

    def is_met(self) -> bool:
        """Return True if the part has given its share to each side; never, if a side has no limit."""
        return self._has_reached(self._targets)

    def is_complete(self, *, held_out: bool | None) -> bool:
        """Return True if the limits have been reached: of one side or, if `held_out` is None, of both."""
        return self._has_reached({side.side: _limit(side) for side in self._sides_of(held_out)})

    def _sides_of(self, held_out: bool | None) -> list[SideSample]:
        names = SIDES if held_out is None else (SIDES[held_out],)
        return [self._sides[name] for name in names]

    def _has_reached(self, targets: Mapping[str, float]) -> bool:
        """Return True if the sides have collected so many tokens; what waits to be encoded is estimated before it is encoded."""
        waiting = self._encoder.waiting_tokens
        if any(self._sides[name].collected + waiting.get(name, 0.0) < target for name, target in targets.items()):
            return False
        self._encoder.encode_waiting()
        return all(self._sides[name].collected >= target for name, target in targets.items())


def _limit(side: SideSample) -> float:
    return math.inf if side.limit is None else float(side.limit)
