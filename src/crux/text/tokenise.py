"""Tokenise a source into a token file: all of it, or a sample spread over all of it if the limits bind."""

from contextlib import closing
from functools import partial

from tokenizers import Tokenizer

from crux.config.progress import progress
from crux.text.demand import Demand
from crux.text.encode import Encoder
from crux.text.pieces import cut_piece, find_cuts, piece_length
from crux.text.ranks import Ranks
from crux.text.report import TextReport, make_report
from crux.text.sample import END_OF_RANKS, Place, SideSample
from crux.text.sources import (
    HubDataset,
    PackagedText,
    Source,
    SourceDocument,
    describe_files,
    describe_place,
    describe_source,
    hash_document,
    stream_documents,
)
from crux.text.survey import Survey
from crux.text.tally import Tally
from crux.text.token_file import SIDES, TokenWriter

MARGIN = 1.1  # pieces are encoded for this many times the limit, because their tokens are only estimated


def tokenise_source(
    writer: TokenWriter, source: Source, *, tokenizer: Tokenizer, eot: int, d_vocab: int | None,
    limits: dict[str, int | None], every: int | None,
) -> None:  # fmt: skip
    """Write the tokens of all documents to the sides `train` and `held_out`, or of a sample if a limit is smaller.

    A first pass over files, without tokenising, finds out how much there is and so which pieces can be part of the sample; a second
    one encodes only these. The packaged text is ordered by hash, so that its sample is its beginning. A data set on the hub is
    read only as far as the limits ask, see `hub.hub_rows`. The file's metadata are the report.

    Args:
        writer: receives the tokens.
        source: source of the documents.
        tokenizer: tokenizer without truncation and padding.
        eot: id appended to each text, but not to documents that are already token ids.
        d_vocab: number of tokens that the model has an embedding for; None: those of the tokenizer.
        limits: largest number of tokens per side; None: no limit.
        every: one document in `every` is held out, unless the source's owner has divided it.

    Raises:
        UserError: for every error of the source, and for ids that have no embedding.
    """
    job = _Tokenisation(writer, source, tokenizer=tokenizer, eot=eot, d_vocab=d_vocab, limits=limits, every=every)
    writer.finish({"crux": job.run().to_json()})


def is_held_out(document: SourceDocument, *, every: int | None) -> bool:
    """Return True if the source's owner holds the document out or, if nobody decided, if blake2b(content) is divisible by `every`.

    Where whole files are held out, the file's content decides.
    """
    if document.held_out is not None:
        return document.held_out
    assert every is not None
    return _divides(document.unit or hash_document(document.content), every)


def _divides(digest: bytes, every: int) -> bool:
    return int.from_bytes(digest, "big") % every == 0


class _Tokenisation:
    """The passes over a source that make one token file."""

    def __init__(
        self, writer: TokenWriter, source: Source, *, tokenizer: Tokenizer, eot: int, d_vocab: int | None,
        limits: dict[str, int | None], every: int | None,
    ) -> None:  # fmt: skip
        self.source, self.tokenizer, self.limits, self.every = source, tokenizer, limits, every
        self.sides = {side: SideSample(side, writer, limit=limits[side], eot=eot) for side in SIDES}
        self.length = {side: piece_length(limits[side]) for side in SIDES}
        self.owner_divides = False  # until a document says that the source's owner has divided it
        self.encoder = Encoder(tokenizer, d_vocab=d_vocab)
        self.demand = Demand(self.sides, self.encoder)
        self.name = describe_source(source).rsplit("/", 1)[-1]

    def run(self) -> TextReport:
        """Make all passes, write the tokens, and return the report."""
        description = describe_files(self.source)  # first, because it finds wrong options
        survey = None
        if not isinstance(self.source, PackagedText | HubDataset) and set(self.limits.values()) != {None}:
            survey = self.take_survey()
            for side in self.limited_sides():
                side.upper = survey.find_threshold(side.side, tokens=MARGIN * (side.limit or 0))
        tally, available = self.collect()
        while survey is not None and self.widen(survey):
            tally, available = self.collect()
        counts = {
            side: sample.finish(lambda ids: len(self.tokenizer.decode(ids, skip_special_tokens=False).encode()))
            for side, sample in self.sides.items()
        }
        if isinstance(self.source, HubDataset) and self.owner_divides:  # known only once it has been opened
            description = description._replace(division="by the text's own splits")
        return make_report(
            description, counts, available=available, tally=tally,
            every=None if self.owner_divides else self.every,
            only_text=self.encoder.only_text, largest_id=self.encoder.largest_id,
        )  # fmt: skip

    def limited_sides(self) -> list[SideSample]:
        """Return the sides that have a limit."""
        return [side for side in self.sides.values() if side.limit is not None]

    def side_of(self, document: SourceDocument, digest: bytes) -> str:
        """Return the side of a document whose content has this hash."""
        held_out = document.held_out
        if held_out is None:
            assert self.every is not None
            held_out = _divides(document.unit or digest, self.every)
        return SIDES[held_out]

    def take_survey(self) -> Survey:
        """Return how much text each side could have, without tokenising more than a little."""
        survey, ranks = Survey(self.tokenizer), {side: Ranks() for side in SIDES}
        with (
            progress(f"reading {self.name}", total=None) as advance,
            closing(stream_documents(self.source, Tally(), self.demand)) as stream,
        ):
            for document in stream:
                digest = hash_document(document.content)
                side = self.side_of(document, digest)
                cuts = find_cuts(document.content, length=self.length[side])
                for i, end in enumerate(cuts):
                    start = cuts[i - 1] if i else 0
                    survey.add(document.content[start:end], side=side, rank=ranks[side].next_rank(digest))
                advance(len(document.content))
        return survey

    def collect(self) -> tuple[Tally, dict[str, int]]:
        """Encode all pieces that the sides want; return the rows left out and each side's number of documents."""
        tally, available = Tally(), dict.fromkeys(SIDES, 0)
        ranks = {side: Ranks() for side in SIDES}
        n_reported, ordinal = 0, 0
        with (
            progress(f"tokenising {self.name}", total=self.expected_tokens()) as advance,
            closing(stream_documents(self.source, tally, self.demand)) as stream,
        ):
            for n_documents, document in enumerate(stream):
                digest = b"" if self.is_ordered else hash_document(document.content)
                side = self.side_of(document, digest)
                available[side] += 1
                self.owner_divides = document.held_out is not None
                cuts = (
                    [len(document.content)]
                    if self.is_ordered
                    else find_cuts(document.content, length=self.length[side])
                )
                for i in range(len(cuts)):
                    rank = ordinal if self.is_ordered else ranks[side].next_rank(digest)
                    if self.sides[side].wants(rank) and self.demand.wants(side):
                        place = Place(rank, ordinal, n_documents, document.file, i == len(cuts) - 1)
                        self.encoder.add(
                            cut_piece(document.content, cuts, i),
                            side=self.sides[side],
                            place=place,
                            where=partial(describe_place, self.source, document._replace(content="")),
                        )
                    ordinal += 1
                collected = sum(s.collected for s in self.sides.values())
                advance(max(0, collected - n_reported))
                n_reported = max(collected, n_reported)
            self.encoder.encode_waiting()
        return tally, available

    @property
    def is_ordered(self) -> bool:
        """True if the documents come in the order of their hashes, so that a sample is the beginning."""
        return isinstance(self.source, PackagedText)

    def widen(self, survey: Survey) -> bool:
        """Admit more pieces if the estimate of the survey was so low that a side has too few; return True if it did."""
        wider = False
        for side in self.sides.values():
            seen_all = side.upper == END_OF_RANKS
            side.lower = side.upper  # what has been collected is not encoded again
            if side.limit is not None and not seen_all and side.collected < side.limit:
                side.upper = survey.find_threshold(
                    side.side, tokens=MARGIN * side.limit, collected=side.collected, collected_below=side.lower
                )
                wider = True
        return wider

    def expected_tokens(self) -> int | None:
        """Return the total for the progress bar, which has no end if a side has no limit."""
        limits = [limit for limit in self.limits.values() if limit is not None]
        return sum(limits) if len(limits) == len(self.limits) else None
