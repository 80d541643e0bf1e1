"""Several SAEs in one spliced pass: each encodes what stands at its read hook by then, the others' effect included."""

from bisect import bisect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.sae import Codes
from crux.sae.architectures.site import Site
from crux.subjects.hooks import parse_hook, sort_hooks
from crux.subjects.subject import Clean, Spliced, Subject


class SaePass(NamedTuple):
    """What went through one SAE in a spliced pass, batch and positions flattened."""

    x: Float[Tensor, "tokens d_model"]
    """What it encoded, in its own dtype."""
    codes: Codes
    reconstruction: Float[Tensor, "tokens d_out"]
    """What it put in its write hook's place."""


def splice_sites(
    sites: Sequence[Site], *, sides: Mapping[str, Float[Tensor, "*tokens _d"]] | None
) -> tuple[dict[str, Callable[[Tensor], Tensor]], list[SaePass]]:
    """The functions for `Subject.spliced`, and a list that the pass fills: one `SaePass` a site, in the order given.

    The functions hold for one pass. The first hook's function is given the clean activation, a constant; what later
    SAEs read depends on the earlier ones, and gradients flow through it. A transcoder's read hook is spliced with a
    function that returns its argument. What reads where another SAE writes reads what was written there.

    Args:
        sides: by write hook, what SAEs look at besides the activation; None: nothing.

    Raises:
        UserError: where two SAEs write at one hook point, or one writes before it reads.
    """
    for site in sites:
        check_hook_order(site.read, site.write)
    writers = {site.write: i for i, site in enumerate(sites)}
    if len(writers) < len(sites):
        twice = next(site.write for i, site in enumerate(sites) if writers[site.write] != i)
        raise UserError(f"two SAEs write at {twice}; each needs a hook point of its own")
    passed: list[SaePass] = []
    filled: list[int] = []  # indices of `passed`'s sites, ascending
    written: dict[str, Tensor] = {}

    def encode(i: int, value: Tensor) -> None:
        site = sites[i]
        x = value.flatten(0, -2).to(site.sae.W_enc.dtype)
        side = None if sides is None else sides.get(site.write)
        codes = site.sae.encode(x, None if side is None else side.flatten(0, -2))
        reconstruction = site.sae.decode(codes)
        written[site.write] = reconstruction.view(*value.shape[:-1], site.sae.d_out)
        assert i not in filled, "the functions hold for one pass"
        place = bisect(filled, i)
        filled.insert(place, i)
        passed.insert(place, SaePass(x, codes, reconstruction))

    def splice_at(hook: str) -> Callable[[Tensor], Tensor]:
        writer = writers.get(hook)
        readers = [i for i, site in enumerate(sites) if site.read == hook and i != writer]

        def splice(value: Tensor) -> Tensor:
            if writer is not None:
                if sites[writer].read == hook:
                    encode(writer, value)
                value = written[hook]
            for i in readers:
                encode(i, value)
            return value

        return splice

    hooks = sort_hooks({hook for site in sites for hook in (site.read, site.write)})
    return {hook: splice_at(hook) for hook in hooks}, passed


def splice_each(
    subject: Subject, clean: Clean, sites: Sequence[Site], *, capture: Collection[str]
) -> tuple[Spliced, list[SaePass]]:
    """A spliced pass for each SAE, with that one alone in place: SAEs that all stand where the first one does.

    One replay of the suffix, of `len(sites)` times the sequences: the first SAE's first, then the second's. Many short calls
    would cost the device more than one long one.
    """
    read, write, _ = sites[0]
    assert all((site.read, site.write) == (read, write) for site in sites), "one place for all"
    value = clean.activations[read]
    passed: list[SaePass] = []
    for site in sites:
        x = value.flatten(0, -2).to(site.sae.W_enc.dtype)
        codes = site.sae.encode(x)
        passed.append(SaePass(x, codes, site.sae.decode(codes)))
    replaced = torch.cat([p.reconstruction for p in passed]).view(-1, *value.shape[1:-1], sites[0].sae.d_out)
    many = subject.repeat_clean(clean, write, times=len(sites))
    return subject.spliced(many, {write: lambda _: replaced}, capture=capture), passed


def check_hook_order(read: str, write: str) -> None:
    """UserError where an SAE writes before it reads."""
    if parse_hook(write).order < parse_hook(read).order:
        raise UserError(f"hook points out of order: {write}, which is written, lies before {read}, which is read")


def check_site(subject: Subject, site: Site) -> None:
    """UserError where the subject has not both hook points, or not of the SAE's widths, or in the other order."""
    sides = {"reads": (site.read, site.sae.d_model), "writes": (site.write, site.sae.d_out)}
    for does, (name, width) in sides.items():
        if (has := subject.hook_width(subject.check_hook(name).kind)) != width:
            raise UserError(f"the SAE {does} {width} dimensions, {name} has {has}")
    check_hook_order(site.read, site.write)
