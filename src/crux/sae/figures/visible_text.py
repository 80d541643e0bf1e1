"""Text in which nothing is invisible: symbols and names in place of control characters, and a circle under lone accents."""

import unicodedata

LINE_BREAKS = {"\n": "↵", "\r": "␍", "\t": "⇥", "\v": "␋", "\f": "␌"}

BIDIRECTIONAL_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that would change the direction of what follows them on the page."""

INVISIBLE = ("Cf", "Zl", "Zp")
"""Categories of characters without a shape of their own: joiners, soft hyphens, separators."""


def make_visible(text: str) -> str:
    """Return a text with a symbol such as ↵ or a name such as ⟨U+200B⟩ in place of characters that are not visible.

    Joiners and the like keep their place next to other characters, whose shape they may change.
    """
    if all(unicodedata.category(symbol) in INVISIBLE for symbol in text):
        return "".join(map(_name, text))
    visible = "".join(map(_show_control, text))
    return f"◌{visible}" if unicodedata.category(text[0]).startswith("M") else visible


def _show_control(symbol: str) -> str:
    if symbol in LINE_BREAKS:
        return LINE_BREAKS[symbol]
    if symbol < " ":
        return chr(0x2400 + ord(symbol))
    hidden = unicodedata.category(symbol) == "Cc" or symbol in BIDIRECTIONAL_CONTROLS or symbol in "\u2028\u2029"
    return _name(symbol) if hidden else symbol


def _name(symbol: str) -> str:
    return f"⟨U+{ord(symbol):04X}⟩"
