"""Print text on standard output, also if its encoding lacks some symbols."""

import codecs
import os
import sys
import unicodedata

ASCII = {
    "—": "-", "–": "-", "−": "-", "…": "...", "→": "->", "≥": ">=", "≤": "<=", "·": "*", "×": "x", "‖": "||", "√": "sqrt ",
    "∇": "grad ", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "λ": "lambda",
    "ρ": "rho", "σ": "sigma", "Λ": "Lambda", "Σ": "sum ", "∂": "d", "⁄": "/", "∈": "in", "≈": "~", "²": "^2",
}  # fmt: skip
"""Replacements for symbols that an encoding does not have."""


def printable(text: str) -> str:
    """Return a text with replacements for symbols that standard output cannot encode."""
    encoding = sys.stdout.encoding or "ascii"
    return text.encode(encoding, "crux_ascii").decode(encoding)


def print_text(text: str) -> None:
    """Print a text on standard output in its encoding. It is no error if a reader such as `head` stops reading early."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _replace_symbols(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_replacement(symbol) for symbol in error.object[error.start : error.end]), error.end


def _replacement(symbol: str) -> str:
    if symbol in ASCII:
        return ASCII[symbol]
    parts = [part for part in unicodedata.normalize("NFKD", symbol) if not unicodedata.combining(part)]
    return "".join(part if part.isascii() else ASCII.get(part, "?") for part in parts)


codecs.register_error("crux_ascii", _replace_symbols)
