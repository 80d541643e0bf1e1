"""Text in which nothing is invisible."""

from crux.sae.figures.visible_text import make_visible


def test_what_is_invisible_has_a_symbol_or_a_name() -> None:
    assert make_visible("a\n\tb\x00\x7f\x85") == "a↵⇥b␀⟨U+007F⟩⟨U+0085⟩"
    assert make_visible("a\u202eb") == "a⟨U+202E⟩b"  # it would reverse the rest of the line
    assert make_visible("\u200b\u200d") == "⟨U+200B⟩⟨U+200D⟩"
    assert make_visible("👩\u200d💻") == "👩\u200d💻"  # a joiner between characters does its work
    assert make_visible("\u0301s") == "◌\u0301s"
    assert make_visible("") == ""
