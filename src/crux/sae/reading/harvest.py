"""One pass over a text that keeps what the reading of latents needs: tokens, sparse codes and, if asked for, activations.

The rules that describe a latent are fitted on training documents and scored on held-out documents. Both are read once and kept in the
cache, memory-mapped, so that a second reading of the same SAE, or a run that was killed, does not repeat the pass.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.files import write_text
from crux.config.progress import track
from crux.runs.lock import lock_folder
from crux.sae.architectures.site import Site
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.splicing import check_site
from crux.subjects.subject import Subject
from crux.subjects.tensor_hash import hash_tensors
from crux.text.held_out import spread_batches

VERSION = 1
"""Part of the cache's key; changes whenever the same arguments give other files."""

ENDS = "ends.json"
"""File that says how much of the other files is complete."""

WINDOWS_BETWEEN_NOTES = 256
"""Number of windows after which it is noted that they are complete."""


class ReadText(NamedTuple):
    """Windows of one side of a text with the codes of an SAE; tokens are numbered window by window."""

    windows: Int[np.ndarray, "windows context"]
    """Token ids; int64."""
    begins: Bool[np.ndarray, "tokens"]
    """True for the first token of a window, and for the first one after an end-of-text token: nothing before it belongs to its text."""
    codes: SparseCodes
    x: Float[np.ndarray, "tokens d_model"] | None
    """The activations that the SAE reads, in float32; None if they were not asked for."""

    @property
    def tokens(self) -> Int[np.ndarray, "tokens"]:
        """The token ids in one row."""
        return self.windows.reshape(-1)

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return self.windows.size

    def batches(self, n_windows: int, *, max_tokens: int | None = None) -> Iterator[Int[Tensor, "batch context"]]:
        """Yield batches of `n_windows` windows; with a limit, of windows that are evenly spread over the text."""
        context = self.windows.shape[1]
        n = len(self.windows) if max_tokens is None else min(len(self.windows), max(1, max_tokens // context))
        chosen = np.arange(n) * len(self.windows) // n
        for first in range(0, n, n_windows):
            yield torch.from_numpy(self.windows[chosen[first : first + n_windows]])


class Harvest(NamedTuple):
    """The codes of an SAE on training documents and on held-out documents, which have no document in common."""

    fit: ReadText
    """Training documents, on which explanations are fitted."""
    held_out: ReadText
    """Held-out documents, on which they are scored."""
    end_of_text: int | None
    """Id of the token between two texts; None if the subject has none."""
    folder: Path
    """Folder in the cache, in which other results that depend on nothing else may be kept."""


@torch.no_grad()
def harvest_codes(
    subject: Subject,
    site: Site,
    *,
    train: np.ndarray,
    held_out: np.ndarray,
    context: int,
    n_fit: int,
    n_held_out: int,
    end_of_text: int | None,
    batch: int,
    with_activations: bool,
    cache: Path,
    force: bool = False,
) -> Harvest:
    """Return the sparse codes of an SAE on windows that are evenly spread over the training and the held-out text.

    Memory holds one batch. The files are continued if an earlier call was interrupted, and reused if the SAE, the network's weights, the
    windows and `with_activations` are the same.

    Args:
        site: the SAE, folded, so that its codes are a function of a single token's activation.
        train: tokens of the training documents, in one row; held_out: those of the held-out documents.
        n_fit: number of training tokens; n_held_out: of held-out tokens. If the text has fewer, all whole windows are read.
        batch: windows per pass.
        with_activations: keep the activations at the site's read hook too.
        cache: folder of the cache.
        force: as in `evaluate_sae`.

    Raises:
        UserError: if a side has less than two windows, the SAE does not fit the subject, or the cache cannot be written.
    """
    check_site(subject, site, force=force)
    fit_windows = _spread_windows(train, context=context, n_tokens=n_fit, side="training")
    held_out_windows = _spread_windows(held_out, context=context, n_tokens=n_held_out, side="held-out")
    sides = {"fit": fit_windows, "held_out": held_out_windows}
    key = _hash_inputs(subject, site, sides, with_activations=with_activations)
    folder = cache / "harvests" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, what="another reading of this SAE"):
            texts = {
                name: _read_side(
                    subject, site, windows, folder=folder / name, batch=batch, end_of_text=end_of_text,
                    with_activations=with_activations, label="training" if name == "fit" else "held-out",
                )
                for name, windows in sides.items()
            }  # fmt: skip
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}; `cache` chooses another folder"
        ) from error
    return Harvest(texts["fit"], texts["held_out"], end_of_text, folder)


def find_text_begins(
    windows: Int[np.ndarray, "windows context"], end_of_text: int | None
) -> Bool[np.ndarray, "tokens"]:
    """Return, token by token, whether it is the first of its window or follows an end-of-text token."""
    begins = np.zeros(windows.shape, bool)
    begins[:, 0] = True
    if end_of_text is not None:
        begins[:, 1:] |= windows[:, :-1] == end_of_text
    return begins.reshape(-1)


def _spread_windows(stream: np.ndarray, *, context: int, n_tokens: int, side: str) -> np.ndarray:
    if len(stream) < 2 * context:
        raise UserError(
            f"the {side} text is too short to read latents: {len(stream):,} tokens, at least {2 * context:,} are needed"
        )
    batches = spread_batches(stream, context=context, batch=1024, n_tokens=n_tokens)
    return np.concatenate([batch.numpy() for batch in batches])


def _hash_inputs(subject: Subject, site: Site, sides: dict[str, np.ndarray], *, with_activations: bool) -> str:
    """Return the key of the cache: a hash of everything on which the codes depend."""
    settings = {k: v for k, v in vars(site.sae).items() if isinstance(v, int | float | str) and k != "training"}
    facts = [VERSION, site.read, site.write, type(site.sae).__name__, settings, with_activations, str(subject.dtype)]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
    digest.update((subject.hash_weights() + hash_tensors(site.sae.state_dict())).encode())
    for windows in sides.values():
        digest.update(windows.tobytes())
    return digest.hexdigest()


def _read_side(
    subject: Subject,
    site: Site,
    windows: np.ndarray,
    *,
    folder: Path,
    batch: int,
    end_of_text: int | None,
    with_activations: bool,
    label: str,
) -> ReadText:
    """Read what an earlier call has not read yet, and return the whole side."""
    names = ["counts", "latents", "values", *(["x"] if with_activations else [])]
    paths = {name: folder / f"{name}.bin" for name in names}
    folder.mkdir(exist_ok=True)
    done, sizes = _read_ends(folder, paths)
    if done < len(windows):
        with ExitStack() as opened:
            files = {name: opened.enter_context(path.open("ab")) for name, path in paths.items()}
            for name, file in files.items():
                file.truncate(sizes[name])
            for first in track(range(done, len(windows), batch), f"reading the {label} text"):
                last = min(first + batch, len(windows))
                _append_codes(subject, site, windows[first:last], files)
                if last == len(windows) or last // WINDOWS_BETWEEN_NOTES > first // WINDOWS_BETWEEN_NOTES:
                    for file in files.values():
                        file.flush()
                    _write_ends(folder, paths, done=last)
    counts = _map_file(paths["counts"], np.int32)
    indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    latents, values = _map_file(paths["latents"], np.int32), _map_file(paths["values"], np.float32)
    x = _map_file(paths["x"], np.float32).reshape(windows.size, -1) if with_activations else None
    codes = SparseCodes(indptr, latents, values, site.sae.n_latents)
    return ReadText(windows, find_text_begins(windows, end_of_text), codes, x)


def _append_codes(subject: Subject, site: Site, windows: np.ndarray, files: Mapping[str, BinaryIO]) -> None:
    tokens = torch.from_numpy(windows).to(subject.device)
    x = subject.clean(tokens, capture=[site.read], final=False).activations[site.read].flatten(0, 1).float()
    codes = site.sae.encode_active(x)
    files["counts"].write(codes.places.counts.to(torch.int32).cpu().numpy().tobytes())
    files["latents"].write(codes.places.latents.to(torch.int32).cpu().numpy().tobytes())
    files["values"].write(codes.values.float().cpu().numpy().tobytes())
    if "x" in files:
        files["x"].write(x.cpu().numpy().tobytes())


def _read_ends(folder: Path, paths: dict[str, Path]) -> tuple[int, dict[str, int]]:
    """Return the number of windows that are complete, and the size of each file at that point; none if a file is too short."""
    nothing = 0, dict.fromkeys(paths, 0)
    try:
        ends = json.loads((folder / ENDS).read_text("utf-8"))
        done, sizes = int(ends["windows"]), {name: int(ends["sizes"][name]) for name in paths}
        complete = all(path.stat().st_size >= sizes[name] for name, path in paths.items())
    except (OSError, ValueError, KeyError, TypeError):
        return nothing
    return (done, sizes) if complete else nothing


def _write_ends(folder: Path, paths: dict[str, Path], *, done: int) -> None:
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    write_text(folder / ENDS, json.dumps({"windows": done, "sizes": sizes}) + "\n")


def _map_file(path: Path, dtype: type[np.generic]) -> np.ndarray:
    """Return a file as a read-only array; an empty file cannot be mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
