"""A text in which it is known what each latent responds to, and an LLM that finds out."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse

from crux.sae.llm.asking import Question
from crux.sae.reading.harvest import Harvest, ReadText, find_text_begins
from crux.sae.reading.sparse_codes import SparseCodes
from crux.subjects.token_texts import TokenText

N_LATENTS, VOCABULARY, CONTEXT, END = 6, 60, 128, 0


def decode(ids: Sequence[int]) -> list[TokenText]:
    return [TokenText(f" w{i}x", False) for i in ids]


def make_side(seed: int, n_windows: int = 120) -> ReadText:
    """Return a text in which latent i fires on the word i + 1, each with a density of about 1 %."""
    rng = np.random.default_rng(seed)
    windows = rng.integers(N_LATENTS + 1, VOCABULARY, (n_windows, CONTEXT))
    special = rng.random(windows.shape) < 0.01 * N_LATENTS
    windows[special] = rng.integers(1, N_LATENTS + 1, special.sum())
    windows[rng.random(windows.shape) < 0.002] = END
    codes = np.zeros((windows.size, N_LATENTS), np.float32)
    for latent in range(N_LATENTS):
        on = windows.ravel() == latent + 1
        codes[on, latent] = rng.gamma(4, 0.25, on.sum())
    matrix = scipy.sparse.csr_matrix(codes)
    sparse = SparseCodes(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, N_LATENTS)
    return ReadText(windows, find_text_begins(windows, END), sparse, None)


HARVEST = Harvest(make_side(0), make_side(1), END, Path())


def know(question: Question) -> str:
    """Answer as an LLM that sees which word the marked tokens have in common, and then looks for it."""
    system, user = (m.content for m in question.messages)
    if "Answer with a JSON object" in system or "Summarise" in system:
        (word,) = {word.strip() for word in re.findall(r"<<(.*?)>>", user) for word in word.split()}
        return json.dumps({"explanation": word}) if "JSON" in system else f"This unit activates on {word}."
    word = re.search(r"responds to: (\S+)", user)[1]  # pyright: ignore[reportOptionalSubscript]
    passages = [line.split(". ", 1)[1] for line in user.splitlines()[2:]]
    if "right" in system:
        marked = [re.findall(r"<<(.*?)>>", passage) for passage in passages]
        found = [all(w.split() == [word] * len(w.split()) for w in words) for words in marked]
    else:
        found = [f" {word} " in f"{passage} " for passage in passages]
    if "separated by commas" in system:
        return ", ".join(str(i) for i, on in enumerate(found, start=1) if on) or "None"
    return json.dumps([int(on) for on in found])
