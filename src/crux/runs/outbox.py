"""The thread that sends runs to MLflow, so that training never waits for a server or a database, and never ends because of one.

The run folder is what counts; MLflow is made to show what is in it. What cannot be sent stays in the outbox on disk (`record.py`). It is
sent when the server or database works again, by this process or by the next start of a job with the same outputs folder.
"""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crux.config.progress import progress
from crux.runs.entry import Entry
from crux.runs.record import OUTBOX, hide_password, list_entries

if TYPE_CHECKING:
    from crux.runs.delivery import Delivery

INTERVAL = 1.0
"""Seconds between two looks at what there is to send."""

MAX_RETRY_DELAY = 20.0
"""Longest time in seconds between two attempts to reach a server or database that has failed."""

STOP_SECONDS = 2.5
"""Seconds for the last words to MLflow after Ctrl-C or SIGTERM."""

FAILING_SECONDS = 4.0
"""Seconds to wait at the end of a run for a server or database that has failed."""

PATIENCE, PATIENCE_WITH_CREATION = 12.0, 120.0
"""Seconds without any progress after which the end of a run no longer waits; the second one while the database is created."""

MAX_LEFT_FAILURES = 3
"""Number of runs of earlier processes whose sending may fail before the others are left to a later start."""


class Failure:
    """The failures in a row of one server or database."""

    def __init__(self) -> None:
        self.count, self.retry_at, self.reason = 0, 0.0, ""


class Outbox:
    """The runs of this process that are being sent, and those that earlier processes have left."""

    def __init__(self) -> None:
        self._deliveries: list[Delivery] = []
        self._left: list[Delivery] = []
        self._failures: dict[str, Failure] = {}
        self._warned: set[str] = set()
        self._to_search: set[Path] = set()
        self._search_later: set[Path] = set()
        self._left_failed: dict[str, int] = {}
        self._uris: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._current: Delivery | None = None
        self._progress_at = time.monotonic()
        self._stop_by: float | None = None
        self._n_failed = 0

    def add(self, delivery: "Delivery") -> None:
        """Begin to send a run, and what earlier processes have left in the same outputs folder."""
        with self._changed:
            self._stop_by = None
            self._deliveries.append(delivery)
            self._uris[hide_password(delivery.uri)] = delivery.uri
            self._to_search.add(Path(delivery.record.outputs))
            self._start_thread()

    def send_left(self, outputs: Path, uri: str) -> None:
        """Begin to send what earlier processes have left in an outputs folder."""
        with self._changed:
            self._uris[hide_password(uri)] = uri
            self._to_search.add(outputs)
            self._start_thread()

    def wake(self) -> None:
        """Send now what there is to send."""
        with self._changed:
            for failure in list(self._failures.values()):
                failure.retry_at = 0.0
            self._changed.notify_all()

    def _start_thread(self) -> None:
        if self._thread is None:
            from crux.runs.mlflow import quieten_mlflow

            quieten_mlflow()
            self._progress_at = time.monotonic()
            self._thread = threading.Thread(target=self._work, name="crux-mlflow", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def flush(self, *, stopped: bool) -> None:
        """Wait until the runs that have ended are sent; shorter if the server or database has failed.

        Args:
            stopped: True after Ctrl-C or SIGTERM, which leave only a few seconds.
        """
        start = time.monotonic()
        if stopped and self._stop_by is None:
            self._stop_by = start + STOP_SECONDS
        failing = any(failure.count for failure in list(self._failures.values()))
        allowed = self._n_failed + (0 if failing else 1)
        self.wake()
        with progress("sending results to MLflow", total=None) as advance, self._changed:
            while self._thread is not None and self._unsent():
                advance(0)
                clock = time.monotonic()
                creating = self._current is not None and self._current.preparing
                patience = PATIENCE_WITH_CREATION if creating else PATIENCE
                if failing:
                    patience = FAILING_SECONDS
                if self._n_failed > allowed:
                    return
                if clock - max(start, self._progress_at) > patience:
                    return
                if self._stop_by is not None and clock > self._stop_by:
                    return
                self._changed.wait(0.1)

    def _unsent(self) -> bool:
        """Return True if something is left to send that will not change any more."""
        return (
            any(delivery.record.state != "RUNNING" for delivery in self._deliveries)
            or any(not self._is_failing(delivery) for delivery in self._left)
            or bool(self._to_search)
        )

    def _is_failing(self, delivery: "Delivery") -> bool:
        failure = self._failures.get(delivery.uri)
        return failure is not None and failure.count > 0

    def _note_progress(self) -> None:
        self._progress_at = time.monotonic()

    # the thread

    def _work(self) -> None:
        """Send what there is to send, until everything is sent."""
        while True:
            with self._changed:
                search = list(self._to_search)
            for outputs in search:
                self._search(outputs)
            for delivery in sorted(self._deliveries, key=lambda d: d.failures):
                self._advance(delivery)
            for delivery in list(self._left):
                self._advance_left(delivery)
            with self._changed:
                self._to_search -= set(search)
                self._deliveries = [d for d in self._deliveries if not d.sent]
                self._left = [d for d in self._left if not d.sent]
                self._changed.notify_all()
                if not self._deliveries and not self._to_search and not self._left:
                    self._thread = None
                    return
                if not self._has_work():
                    self._changed.wait(INTERVAL)

    def _has_work(self) -> bool:
        """Return True if a run has ended and its server or database has not failed, so that its end can be sent at once."""
        return bool(self._to_search) or any(
            d.record.state != "RUNNING" and not self._is_failing(d) and not d.waits for d in self._deliveries
        )

    def _search(self, outputs: Path) -> None:
        """Claim what killed processes have left in an outputs folder."""
        from crux.runs.delivery import Delivery, set_end_state

        for path in list_entries(outputs):
            if any(d.entry is not None and d.entry.path == path for d in (*self._deliveries, *self._left)):
                continue
            if (entry := Entry.claim(path)) is None:
                continue
            if (uri := self._uris.get(entry.record.uri, entry.record.uri)) and "***" in uri:
                entry.release()  # its password is not known here
                continue
            try:
                set_end_state(entry.record)
            except (OSError, ValueError):  # its folder cannot be read
                entry.release()
                continue
            self._left.append(Delivery(entry.record, uri=uri, entry=entry))
        self._left.sort(key=lambda d: d.record.parent is not None)  # parents first

    def _advance(self, delivery: "Delivery") -> None:
        from crux.runs.delivery import ParentPendingError
        from crux.runs.mlflow import explain_failure

        failure = self._failures.setdefault(delivery.uri, Failure())
        if time.monotonic() < failure.retry_at:
            return
        self._current, delivery.on_progress = delivery, self._note_progress
        try:
            delivery.waits = False
            delivery.advance()
        except ParentPendingError:
            delivery.waits = True
        except Exception as error:  # drivers raise anything, and none of it may reach the training
            delivery.forget_connection()
            delivery.failures += 1
            failure.count += 1
            failure.retry_at = time.monotonic() + min(2.0 ** (failure.count - 1), MAX_RETRY_DELAY)
            failure.reason = explain_failure(error)
            # the end of a run waits for a second attempt, unless that would take as long as the first one
            self._n_failed += 2 if failure.reason == "it does not answer" else 1
            if failure.count > 1 or failure.reason == "it does not answer":
                self._warn(delivery, failure.reason)
        else:
            if failure.count:  # it works again
                self._to_search |= self._search_later
                self._search_later, self._left_failed = set(), {}
            failure.count = 0
        finally:
            self._current = None

    def _advance_left(self, delivery: "Delivery") -> None:
        """Send what an earlier process has left; if that fails, leave it to another process or to a later attempt."""
        self._current, delivery.on_progress = delivery, self._note_progress
        n_failed = self._left_failed.get(delivery.uri, 0)
        try:
            if self._is_failing(delivery) or n_failed >= MAX_LEFT_FAILURES:
                self._give_back(delivery)
            else:
                delivery.advance()
        except Exception:  # as in `_advance`, and nobody waits for it
            self._left_failed[delivery.uri] = n_failed + 1
            self._give_back(delivery)
        finally:
            self._current = None

    def _give_back(self, delivery: "Delivery") -> None:
        """Leave what another process has left to a later attempt or start."""
        if delivery.entry is not None:
            delivery.entry.release()
        self._left.remove(delivery)
        self._search_later.add(Path(delivery.record.outputs))

    def _warn(self, delivery: "Delivery", reason: str) -> None:
        if delivery.uri in self._warned:
            return
        self._warned.add(delivery.uri)
        print(
            f"crux: MLflow cannot use {hide_password(delivery.uri)} ({reason}); the run goes on, and what is not sent is sent when it "
            f"works again, or by the next start of a job with output_dir={delivery.record.outputs}; or use tracking=none",
            file=sys.stderr,
            flush=True,
        )

    def describe_unsent(self, deliveries: "Sequence[Delivery]") -> str | None:
        """Return what of some runs is not sent and how it will be sent, in one line; None if everything is sent."""
        unsent = [delivery for delivery in deliveries if not delivery.sent]
        if not unsent:
            return None
        first = unsent[0]
        what = first.describe_unsent() if len(unsent) == 1 else f"{len(unsent)} runs"
        reason, outputs = self.failure_reason(first.uri), first.record.outputs
        return (
            f"MLflow does not have {what} yet{reason}; the next start of a job with output_dir={outputs} sends it, "
            f"see {Path(outputs) / OUTBOX}"
        )

    def failure_reason(self, uri: str) -> str:
        """Return ` (<reason>)` if a server or database has failed last time, otherwise nothing."""
        failure = self._failures.get(uri)
        return f" ({failure.reason})" if failure is not None and failure.count else ""

    def print_unsent(self, deliveries: "Sequence[Delivery]") -> None:
        """Print what of some runs is not sent, if anything, in one line on standard error."""
        if (note := self.describe_unsent(deliveries)) is not None:
            print(f"crux: {note}", file=sys.stderr, flush=True)


OUTBOX_OF_PROCESS = Outbox()
"""The outbox of this process."""
