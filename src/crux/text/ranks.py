"""The order in which the pieces of a text are taken if a limit binds: random, but evenly spread over the whole text."""

N_LEVELS = 12  # of every aligned block of 2¹² pieces each 2ᵏ-th part is taken evenly
MASK = (1 << 64) - 1


class Ranks:
    """Gives the pieces of one side, in the order in which they are read, ranks below 2⁶⁴; pieces of small rank are taken first.

    Of every aligned block of 2ᵏ pieces exactly one has a rank below 2⁶⁴⁻ᵏ, for k up to 12, and each of them with the same
    probability. So a sample has the share of each file, and of each part of a file, with far less error than one of independent
    ranks, and no period of the text can distort it. Bit j of a rank, from the highest, is bit j of the piece's number,
    from the lowest, exchanged or not by a hash of the block and of the bits before; the other bits are from the document's hash.
    """

    def __init__(self) -> None:
        self._number = 0

    def next_rank(self, document: bytes) -> int:
        """Return the rank of the next piece, which belongs to a document with this hash."""
        block, prefix = self._number, 1
        for _ in range(N_LEVELS):
            bit, block = block & 1, block >> 1
            prefix = prefix << 1 | (bit ^ _coin(block, prefix))
        rest = _mix(int.from_bytes(document, "big") ^ _mix(self._number))
        self._number += 1
        return (prefix << (64 - N_LEVELS) & MASK) | rest >> N_LEVELS


def _coin(block: int, prefix: int) -> int:
    """Return a bit that is random but the same for the same arguments."""
    return _mix(block << N_LEVELS + 1 ^ prefix) & 1


def _mix(n: int) -> int:
    """Return the number that splitmix64 makes of a number below 2⁶⁴."""
    n = (n + 0x9E3779B97F4A7C15) & MASK
    n = (n ^ n >> 30) * 0xBF58476D1CE4E5B9 & MASK
    n = (n ^ n >> 27) * 0x94D049BB133111EB & MASK
    return n ^ n >> 31
