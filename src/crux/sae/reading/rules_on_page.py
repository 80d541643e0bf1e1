"""The rules of latents as the page of latents shows them: tokens that can be searched, and words between them."""

from jaxtyping import Int
from numpy import ndarray

from crux.sae.figures.features_page_data import PageRule
from crux.sae.reading.conditions import Kind
from crux.sae.reading.rules import Rules


def page_rules(rules: Rules, latents: Int[ndarray, "rows"], *, n_rules: int) -> list[list[PageRule]]:
    """Return the first rules of each latent, in the order of their choice.

    The number of a suffix is the code where it is the longest one that holds; that of another condition is added to the code.
    """
    found = []
    for latent in latents.tolist():
        mass = float(rules.mass[latent])
        first, last = int(rules.indptr[latent]), int(rules.indptr[latent + 1])
        found.append([
            PageRule(
                parts=condition_parts(rules, int(rules.condition[j])),
                mean=float(rules.value[j]),
                n_tokens=int(rules.counts[j]),
                share=float(rules.total[j]) / mass if mass > 0 else 0.0,
                adds=int(rules.conditions.kinds[rules.condition[j]]) != Kind.SUFFIX,
            )
            for j in range(first, min(last, first + n_rules))
        ])  # fmt: skip
    return found


def condition_parts(rules: Rules, condition: int) -> tuple[int | str, ...]:
    """Return what a condition tests as tokens in the order of the text, and words."""
    parts = rules.conditions.parts[condition].tolist()
    match Kind(int(rules.conditions.kinds[condition])):
        case Kind.SUFFIX:
            return tuple(token for token in reversed(parts) if token >= 0)
        case Kind.WITHIN:
            return (parts[0], f"within the last {parts[1]}")
        case Kind.CLASS:
            return (f"{'token' if parts[1] == 0 else 'token before'}: {rules.classes.names[parts[0]]}",)
        case Kind.START:
            return ("first token of a text",)
        case Kind.BOTH:
            return (*condition_parts(rules, parts[0]), "and", *condition_parts(rules, parts[1]))
