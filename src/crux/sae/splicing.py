"""Spliced passes with several SAEs: one pass with all of them in place, or a separate pass for each."""

from bisect import bisect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.belonging import Place, check_belonging, saved_hooks
from crux.subjects.hooks import parse_hook, sort_hooks
from crux.subjects.subject import Clean, Spliced, Subject


class SaePass(NamedTuple):
    """The input, codes and reconstruction of one SAE in a pass; batch and positions are flattened."""

    x: Float[Tensor, "tokens d_model"]
    """The activation that it encoded, in the SAE's dtype."""
    codes: Codes
    reconstruction: Float[Tensor, "tokens d_out"]
    """The reconstruction, which replaces the activation at the SAE's write hook."""


def build_joint_splice(
    sites: Sequence[Site], *, sides: Mapping[str, Float[Tensor, "*tokens _d"]] | None
) -> tuple[dict[str, Callable[[Tensor], Tensor]], list[SaePass]]:
    """Return the splice functions for one pass with all SAEs in place, and a list that this pass fills with one `SaePass` per site.

    The splice functions, by hook point, are the argument of `Subject.spliced`, and can be used for one pass only. The list is in
    the order of `sites`. Each SAE encodes the activation as the earlier SAEs have changed it: the first one reads the clean
    activation, a constant; the inputs of later SAEs depend on the earlier ones, and gradients flow through them. At the read
    hook of a transcoder the splice function returns its argument unchanged. An SAE that reads where another one writes reads the
    written activation.

    Args:
        sides: the gradients that the encoders of gradient SAEs use besides activations, by write hook; None: there are none.

    Raises:
        UserError: if two SAEs write at the same hook point, or an SAE writes before it reads.
    """
    for site in sites:
        check_read_before_write(site.read, site.write)
    writers = {site.write: i for i, site in enumerate(sites)}
    if len(writers) < len(sites):
        twice = next(site.write for i, site in enumerate(sites) if writers[site.write] != i)
        raise UserError(f"two SAEs write at {twice}; each needs a hook point of its own")
    passed: list[SaePass] = []
    passed_sites: list[int] = []  # passed[n] belongs to sites[passed_sites[n]]; ascending
    written: dict[str, Tensor] = {}

    def encode(i: int, value: Tensor) -> None:
        site = sites[i]
        x = value.flatten(0, -2).to(site.sae.W_enc.dtype)
        side = None if sides is None else sides.get(site.write)
        codes = site.sae.encode(x, None if side is None else side.flatten(0, -2))
        reconstruction = site.sae.decode(codes)
        written[site.write] = reconstruction.view(*value.shape[:-1], site.sae.d_out)
        assert i not in passed_sites, "these functions can be used for one pass only"
        # the pass reaches the sites in the network's order, which may differ from the order of `sites`
        place = bisect(passed_sites, i)
        passed_sites.insert(place, i)
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


def run_separate_splices(
    subject: Subject, clean: Clean, sites: Sequence[Site], *, capture: Collection[str]
) -> tuple[Spliced, list[SaePass]]:
    """Run a separate spliced pass for each of several SAEs that all have the same hook points.

    The suffix of the network is run once, on `len(sites)` times as many sequences: first those of the first SAE, then those of the second,
    and so on. One long call is faster than many short ones.
    """
    read, write, _ = sites[0]
    assert all((site.read, site.write) == (read, write) for site in sites), "all SAEs must have the same hook points"
    value = clean.activations[read]
    passed: list[SaePass] = []
    for site in sites:
        x = value.flatten(0, -2).to(site.sae.W_enc.dtype)
        codes = site.sae.encode(x)
        passed.append(SaePass(x, codes, site.sae.decode(codes)))
    reconstructions = torch.cat([p.reconstruction for p in passed]).view(-1, *value.shape[1:-1], sites[0].sae.d_out)
    repeated = subject.repeat_clean(clean, write, times=len(sites))
    return subject.spliced(repeated, {write: lambda _: reconstructions}, capture=capture), passed


def check_read_before_write(read: str, write: str) -> None:
    """Raise a UserError if an SAE writes before it reads."""
    if parse_hook(write).order < parse_hook(read).order:
        raise UserError(f"hook points out of order: {write}, which the SAE writes, is before {read}, which it reads")


def check_site(subject: Subject, site: Site, *, force: bool = False) -> None:
    """Check that the subject has the hook points of a site, with the SAE's widths and in order, and that the SAE belongs there.

    Args:
        force: use a loaded SAE at another place than its metadata say, too.

    Raises:
        UserError: for the first problem, in one line.
    """
    widths = {"reads": (site.read, site.sae.d_model), "writes": (site.write, site.sae.d_out)}
    hooks = {name: subject.check_hook(name) for name in (site.read, site.write)}
    check_read_before_write(site.read, site.write)
    _check_belonging(subject, site, force=force)
    for verb, (name, width) in widths.items():
        if (actual := subject.hook_width(hooks[name].kind)) != width:
            raise UserError(f"the SAE {verb} {width} dimensions, {name} has {actual}")


def check_reader(subject: Subject, sae: SAE, *, hook: str, force: bool) -> None:
    """Raise a UserError if a loaded SAE does not belong on the subject, or reads another hook point than `hook`."""
    _, write = saved_hooks(sae.metadata or {})
    _check_belonging(subject, Site(hook, write or hook, sae), force=force)


def _check_belonging(subject: Subject, site: Site, *, force: bool) -> None:
    if site.sae.metadata is not None:
        place = Place(subject.name, subject.process_weights, site.read, site.write)
        check_belonging(site.sae.metadata, place, what="the SAE", force=force, insist="force=True")
