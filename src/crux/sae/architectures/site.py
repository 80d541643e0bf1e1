"""Sites: an SAE together with the hook points that it reads and writes."""

from typing import NamedTuple

from crux.sae.architectures.sae import SAE


class Site(NamedTuple):
    """An SAE with the hook points that it reads and writes, by their TransformerLens names."""

    read: str
    """Hook point whose activation the SAE encodes."""
    write: str
    """Hook point whose activation it reconstructs and, in a spliced pass, replaces: the same one, or a later one for a transcoder."""
    sae: SAE
