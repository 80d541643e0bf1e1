"""What a notebook needs: load a subject and an SAE, run them, judge. Re-exported as `crux.load_subject` and so on."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
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
    """A saved SAE and what must be known of it."""

    sae: SAE
    """Call it on activations: `sae(x)`; its codes are `sae.encode(x).c`."""
    metadata: dict[str, Any]
    """Subject, hook point, weight processing, context size, …; see formats/saelens.py."""


class Text(NamedTuple):
    """Token batches of one text, as a subject reads them."""

    train: list[Int[Tensor, "batch pos"]]
    """A sample of the training text, for the mean activation."""
    held_out: list[Int[Tensor, "batch pos"]]
    """Windows of the held-out text: the same ones that a run is judged on."""


def load_subject(source: str | Path = "tiny", *, process_weights: bool = False, device: str = "cpu") -> Subject:
    """The frozen network: "tiny", a folder in Hugging Face layout, or a hub name such as "gpt2".

    An SAE's metadata say in which basis it lives: pass its `process_weights` on. Raises UserError.
    """
    return load.load_subject(source, process_weights=process_weights, device=device)


def load_sae(folder: str | Path) -> LoadedSAE:
    """The SAE in a run's `sae/` folder, or another in SAELens's format. Raises UserError."""
    return LoadedSAE(*saelens.load_sae(Path(folder)))


def held_out_batches(
    subject: Subject, *, path: str | Path | None = None, n_tokens: int = 131_072, batch: int = 16, context: int = 256
) -> Text:
    """Batches of the packaged text, or of the text in `path`. Raises UserError."""
    source: Source = PackagedText(SOURCES) if path is None else TextFiles(Path(path), None)
    tokenizer, end_of_text = load_tokenizer(subject.name)
    tokens: Tokens = prepare_tokens(
        source, tokenizer=tokenizer, eot=end_of_text, max_tokens=None, held_out_tokens=None,
        min_tokens=2 * context, cache=default_cache(),
    )  # fmt: skip
    cut = [
        list(spread_batches(stream, context=context, batch=batch, n_tokens=n_tokens))
        for stream in (tokens.train, tokens.held_out)
    ]
    return Text(*cut)


def evaluate(
    subject: Subject, sae: SAE, *, hook: str, text: Text | None = None, output_hook: str | None = None
) -> SaeEvaluation:
    """The judgement of a run, on `text` or on the packaged text; `.metrics` has the numbers of metrics.json.

    A transcoder reads at `hook` and writes at `output_hook`, which its metadata call `hook_name_out`. See
    `crux.sae.evaluation.evaluate_sae.evaluate_sae` for every metric, its sign and its average. Raises UserError.
    """
    check_site(subject, Site(hook, output_hook or hook, sae))  # before the text is read
    text = text if text is not None else held_out_batches(subject)
    mean = measure_typical_activation(subject, hook=output_hook or hook, batches=text.train).mean
    return evaluate_sae(subject, sae, hook=hook, output_hook=output_hook, batches=text.held_out, mean_activation=mean)
