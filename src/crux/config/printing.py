"""Text for an output whose encoding lacks some symbols."""

import codecs
import sys
import unicodedata

ASCII = {
    "—": "-", "–": "-", "−": "-", "…": "...", "→": "->", "≥": ">=", "≤": "<=", "·": "*", "×": "x", "‖": "||", "√": "sqrt ",
    "∇": "grad ", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "λ": "lambda",
    "ρ": "rho", "σ": "sigma", "Λ": "Lambda", "Σ": "sum ", "∂": "d", "⁄": "/", "∈": "in", "≈": "~", "²": "^2",
    "\u0302": "^",
}  # fmt: skip
"""Replacements for symbols that an encoding does not have."""

ERRORS = "crux_ascii"
"""The name of the error handler that puts ASCII in place of symbols that an encoding does not have, such as `lambda` for λ."""


def printable(text: str, encoding: str | None = None) -> str:
    """Return a text with replacements for symbols that an encoding lacks; None: the encoding of standard output."""
    encoding = str(encoding or getattr(sys.stdout, "encoding", None) or "ascii")
    return text.encode(encoding, ERRORS).decode(encoding)


def _replace_symbols(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_replacement(symbol) for symbol in error.object[error.start : error.end]), error.end


def _replacement(symbol: str) -> str:
    """Return ASCII for a symbol: a word or a similar letter, or its number, so that the name of a file can still be told."""
    if symbol in ASCII:
        return ASCII[symbol]
    if unicodedata.combining(symbol):
        return ""
    parts = [part for part in unicodedata.normalize("NFKD", symbol) if not unicodedata.combining(part)]
    text = "".join(ASCII.get(part, part) for part in parts)
    return text if text.isascii() else symbol.encode("ascii", "backslashreplace").decode()


codecs.register_error(ERRORS, _replace_symbols)
