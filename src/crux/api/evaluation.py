"""Load a subject, an SAE and text, and evaluate the SAE."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.belonging import saved_hooks
from crux.sae.evaluation.evaluate_sae import SaeEvaluation, evaluate_sae
from crux.sae.evaluation.typical_activation import measure_typical_activation
from crux.sae.formats import saelens
from crux.sae.splicing import check_site
from crux.subjects import load
from crux.subjects.subject import Subject
from crux.subjects.tokenizer import load_tokenizer
from crux.text.held_out import spread_batches
from crux.text.packaged import SOURCES
from crux.text.sources import PackagedText, Source, TextFiles
from crux.text.token_file import default_cache
from crux.text.tokens import Tokens, prepare_tokens


class LoadedSAE(NamedTuple):
    """A saved SAE with its metadata."""

    sae: SAE
    """The SAE: `sae(x)` reconstructs activations, and `sae.encode(x).c` returns their codes, the activations of its latents."""
    metadata: dict[str, Any]
    """Subject, hook point, weight processing, context size, …; listed in crux/sae/formats/saelens.py. `evaluate` compares them with
    the place where the SAE is evaluated. Folders of other tools may lack some of them, or all."""


class TokenBatches(NamedTuple):
    """Batches of tokens of a text, which is divided into training documents and held-out documents."""

    train: list[Int[Tensor, "batch pos"]]
    """Batches of the training text; `evaluate` takes the mean activation for mean ablation over them."""
    held_out: list[Int[Tensor, "batch pos"]]
    """Batches of the held-out text, on which `evaluate` evaluates an SAE; by default the same tokens as in the evaluation of a run."""


def load_subject(source: str | Path = "tiny", *, process_weights: bool = False, device: str = "cpu") -> Subject:
    """Load a frozen language model.

    Args:
        source: "tiny" (the packaged model), a folder in Hugging Face layout, or a name on the Hugging Face hub such as "gpt2".
        process_weights: fold LayerNorm and centre the weights, as TransformerLens does. This sets the basis of the activations, so use the
            value in the metadata of the SAE that you want to run.
        device: a torch device.

    Raises:
        UserError: if the model cannot be loaded.
    """
    return load.load_subject(source, process_weights=process_weights, device=device)


def load_sae(folder: str | Path) -> LoadedSAE:
    """Load an SAE in SAELens's format, such as the folder `sae/` of a run.

    Raises:
        UserError: if the folder holds no SAE, or one that crux cannot load.
    """
    return LoadedSAE(*saelens.load_sae(Path(folder)))


def load_text(
    subject: Subject,
    path: str | Path | None = None,
    *,
    n_tokens: int = 131_072,
    batch: int = 16,
    context: int = 256,
) -> TokenBatches:
    """Tokenise a text for a subject; return batches of shape (batch, context) of its training part and of its held-out part.

    Args:
        path: a text, JSONL, CSV, Parquet or Arrow file, or a folder of them; None: the packaged text.
        n_tokens: number of tokens to take from the training part, and as many again from the held-out part.
        batch: sequences per batch.
        context: tokens per sequence.

    Raises:
        UserError: if the text cannot be read or is too short, or a number is not at least 1.
    """
    for name, number in (("n_tokens", n_tokens), ("batch", batch), ("context", context)):
        if number < 1:
            raise UserError(f"{name}={number}: must be 1 or more")
    if context > subject.n_ctx:
        raise UserError(f"context={context}: {subject.name} accepts at most {subject.n_ctx}")
    source: Source = PackagedText(SOURCES) if path is None else TextFiles(path=Path(path), column=None)
    tokenizer, end_of_text = load_tokenizer(subject.name)
    tokens: Tokens = prepare_tokens(
        source, tokenizer=tokenizer, eot=end_of_text, d_vocab=subject.d_vocab, max_tokens=None, held_out_tokens=None,
        min_tokens=2 * context, cache=default_cache(),
    )  # fmt: skip
    batches = [
        list(spread_batches(stream, context=context, batch=batch, n_tokens=n_tokens))
        for stream in (tokens.train, tokens.held_out)
    ]
    return TokenBatches(*batches)


def evaluate(
    subject: Subject,
    sae: SAE,
    *,
    hook: str | None = None,
    text: TokenBatches | None = None,
    output_hook: str | None = None,
    force: bool = False,
) -> SaeEvaluation:
    """Evaluate an SAE on held-out text, as a run does at its end.

    The result's `.metrics` has the metrics that metrics.json has under `final/`, with names without that prefix.
    `crux.sae.evaluate_sae` documents every metric, its sign and its average.

    Args:
        hook: the hook point that the SAE reads; None: the one that a loaded SAE's metadata name.
        text: what `load_text` returns; the packaged text if not given.
        output_hook: the hook point that a transcoder writes, `hook_name_out` in its metadata; `hook` if only that is given.
        force: evaluate a loaded SAE on another model, with another weight processing or at other hook points than its metadata name, too.

    Raises:
        UserError: if the hook points do not exist or do not fit the SAE, or the SAE does not belong there.
    """
    if hook is None:
        hook, written = saved_hooks(sae.metadata or {})
        if hook is None:
            raise UserError("hook: the SAE's metadata do not name the hook point that it reads; give hook=…")
        output_hook = output_hook or written
    write = output_hook or hook
    check_site(subject, Site(hook, write, sae), force=force)  # before the text is read
    text = text if text is not None else load_text(subject)
    sae = copy.deepcopy(sae).to(subject.device)  # a loaded SAE is on the CPU; the caller's stays where it is
    mean = measure_typical_activation(subject, hook=write, batches=text.train).mean
    return evaluate_sae(
        subject, sae, hook=hook, output_hook=write, batches=text.held_out, mean_activation=mean, force=force
    )
