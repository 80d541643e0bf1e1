"""Replies of an LLM, kept in a file of lines of JSON that is only ever appended to: evidence, and what makes a run resumable."""

import hashlib
import json
from pathlib import Path
from typing import Any

from crux.config.errors import UserError
from crux.sae.llm.asking import Question


class ReplyCache:
    """The replies that are in a file, by the hash of model, parameters and messages.

    A line that a killed process has left incomplete is ignored. Later lines take precedence.

    Raises:
        UserError: if the file cannot be read or opened for appending.
    """

    def __init__(self, path: Path, *, model: str) -> None:
        self._path, self._model = path, model
        self._texts: dict[str, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            if content and not content.endswith(b"\n"):  # the next line must not continue an incomplete one
                with path.open("ab") as file:
                    file.write(b"\n")
        except OSError as error:
            raise UserError(
                f"{path}: the replies of the LLM cannot be kept there ({error.strerror or error})"
            ) from error
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                key, text = entry["key"], entry["text"]
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(key, str) and isinstance(text, str):
                self._texts[key] = text

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, question: Question) -> str | None:
        """Return the text of the reply; None if there is none."""
        return self._texts.get(hash_question(question, model=self._model))

    def add(self, question: Question, text: str, *, tokens: int) -> None:
        """Append a reply to the file."""
        key = hash_question(question, model=self._model)
        entry = {"key": key, **describe_question(question, model=self._model), "text": text, "tokens": tokens}
        try:
            with self._path.open("ab") as file:  # one write, which other processes do not interrupt
                file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            raise UserError(f"{self._path}: a reply cannot be kept ({error.strerror or error})") from error
        self._texts[key] = text


def request_parameters(question: Question) -> dict[str, Any]:
    """Return the parameters of a request besides model and messages."""
    return {"temperature": 0, "seed": question.seed, "max_tokens": question.max_tokens}


def describe_question(question: Question, *, model: str) -> dict[str, Any]:
    """Return a question as plain data: model, parameters and messages."""
    messages = [{"role": m.role, "content": m.content} for m in question.messages]
    return {"model": model, "parameters": request_parameters(question), "messages": messages}


def hash_question(question: Question, *, model: str) -> str:
    """Return the SHA-256 of model, parameters and messages."""
    content = json.dumps(describe_question(question, model=model), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
