"""Where an SAE stands in the subject."""

from typing import NamedTuple

from crux.sae.architectures.sae import SAE


class Site(NamedTuple):
    """One SAE and its hook points, by TransformerLens's names."""

    read: str
    """What it encodes."""
    write: str
    """What it reconstructs and, spliced, replaces: the same place, or a later one for a transcoder."""
    sae: SAE
