"""Reported cases about texts: masks, ids, long documents, what is held out, formats and columns."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from crux.subjects.tokenizer import load_tokenizer
from crux.text.packaged import packaged_documents
from tests.campaigns.reported.case import QUICK, Observation, Workplace, case, combine, expect_refusal, expect_success
from tests.campaigns.reported.inputs import (
    code_documents,
    english_documents,
    small_config,
    write_jsonl,
    write_model,
    write_padded_rows,
)

ROOT = Path(__file__).resolve().parents[3]
LOCAL = ("loss=local", "layer=4")


def read_files(work: Workplace) -> list[set[str]]:
    """Return the names of the files on each side of the newest run's text: training files, and held-out files."""
    report = json.loads((work.run_folder() / "text.json").read_text("utf-8"))
    return [{Path(file).name for file in report[side]["tokens_by_file"]} for side in ("train", "held_out")]


@case(
    1, "padded rows with an attention mask", correct="the same numbers as the rows without padding; CE clean about 2.45"
)
def padded_rows(work: Workplace) -> Observation:
    found = []
    for file in write_padded_rows(work.folder):
        outcome = work.run(
            *LOCAL, "trainer.max_steps=20", "trainer.val_every=0", "evaluation.tokens=16384", "evaluation.latents=0",
            "tracking=none", "trainer.progress=false", "model.context=128", f"data.path={file}",
        )  # fmt: skip
        if outcome.code:
            return expect_success(outcome)
        found.append(work.metrics())
    same = all(
        found[0][key] == found[1][key] for key in ("final/ce_clean", "final/ce_increase", "final/explained_variance")
    )
    clean = [metrics["final/ce_clean"] for metrics in found]
    return Observation(same and abs(clean[0] - 2.45) < 0.05, f"CE clean {clean[0]:.3f} padded, {clean[1]:.3f} unpadded")


@case(
    2, "tokenizer with more tokens than the embedding", correct="one line before training that names file, row and id"
)
def token_outside_of_embedding(work: Workplace) -> Observation:
    model = write_model(work.folder / "pad_added", lambda: (GPT2LMHeadModel, small_config(GPT2Config)))
    tokenizer, _ = load_tokenizer(model)
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.save(str(model / "tokenizer.json"))
    documents = english_documents(300)
    ids = [(tokenizer.encode(d, add_special_tokens=False).ids + [2048] * 64)[:512] for d in documents]
    pq.write_table(pa.table({"input_ids": ids}), work.folder / "with_pad.parquet")
    write_jsonl(work.folder / "clean.jsonl", documents)
    words = ("loss=local", "layer=2", *QUICK, f"model.path={model}")
    refused = expect_refusal(
        work.run(*words, f"data.path={work.folder / 'with_pad.parquet'}"), "with_pad.parquet", "2048"
    )
    return combine([refused, expect_success(work.run(*words, f"data.path={work.folder / 'clean.jsonl'}"))])


@case(5, "one document of 60 MB", correct="peak memory under 1 GB; hardly more encoded than asked for")
def long_document(work: Workplace) -> Observation:
    row = english_documents(1)[0]
    path = write_jsonl(
        work.folder / "one_long_row.jsonl", [(row + "\n\n") * (60_000_000 // (len(row) + 2)), *english_documents(300)]
    )
    words = [*LOCAL, *QUICK, f"data.path={path}", "data.max_tokens=100000", f"output_dir={work.folder / 'outputs'}"]
    work.commands.append(
        f"python src/main.py {' '.join(words[:2])} data.path=one_long_row.jsonl data.max_tokens=100000"
    )
    # a process of its own, so that its peak memory is not that of a fork
    code = (
        "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], capture_output=True, text=True); sys.stderr.write(r.stderr);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024); sys.exit(r.returncode)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, sys.executable, str(ROOT / "src" / "main.py"), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    peak = int(ended.stdout or 0)
    return Observation(
        ended.returncode == 0 and peak < 1000, f"exit {ended.returncode}, peak {peak:,} MB {ended.stderr[-200:]}"
    )


@case(
    6,
    "held-out text when a limit binds",
    correct="both files in both sides: the same CE clean with the limit as without, to sampling error",
)
def held_out_from_all_files(work: Workplace) -> Observation:
    folder = work.folder / "two_domains"
    write_jsonl(folder / "a_bible.jsonl", [d.text for d in packaged_documents("kjv")][:300])
    write_jsonl(folder / "b_code.jsonl", code_documents(300))
    words = (
        *LOCAL, "debug=limit", "trainer.max_steps=20", "trainer.val_every=0", "evaluation.tokens=16384",
        "evaluation.latents=0", "tracking=none", "trainer.progress=false", f"data.path={folder}",
    )  # fmt: skip
    clean = []
    for limit in ("data.held_out_tokens=20000", "data.held_out_tokens=2000000"):
        if (outcome := work.run(*words, limit)).code:
            return expect_success(outcome)
        clean.append(work.metrics()["final/ce_clean"])
    return Observation(
        abs(clean[0] - clean[1]) < 0.5, f"CE clean {clean[0]:.3f} with the limit, {clean[1]:.3f} without"
    )


@case(
    12,
    "a folder of save_to_disk; a clone of a hub data set",
    correct="the rows are read; descriptions are not taken for text",
)
def dataset_folders(work: Workplace) -> Observation:
    documents = english_documents(200)
    saved, clone = work.folder / "saved", work.folder / "clone"
    Dataset.from_dict({"text": documents}).save_to_disk(str(saved))
    (clone / "data").mkdir(parents=True)
    pq.write_table(pa.table({"text": documents}), clone / "data" / "train-00000-of-00001.parquet")
    (clone / "README.md").write_text("# A data set\n")
    (clone / "LICENSE.txt").write_text("You may.\n" * 300)
    (clone / "dataset_infos.json").write_text(json.dumps({"default": {"description": "texts"}}))
    linked = work.folder / "linked"
    linked.mkdir()
    write_jsonl(work.folder / "elsewhere" / "rows.jsonl", documents)
    (linked / "folder").symlink_to(work.folder / "elsewhere")
    return combine(
        [expect_success(work.run(*LOCAL, *QUICK, f"data.path={folder}")) for folder in (saved, clone, linked)]
    )


def write_rows(folder: Path, rows: list[object]) -> Path:
    """Write one Parquet file with a column `text`."""
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), path)
    return path


@case(13, "a null text", correct="passed over and counted, in JSONL as in Parquet")
def null_text(work: Workplace) -> Observation:
    rows: list[object] = list(english_documents(300))
    rows[150] = None
    files = (write_jsonl(work.folder / "null.jsonl", rows), write_rows(work.folder, rows))
    outcomes = [work.run(*LOCAL, *QUICK, f"data.path={file}") for file in files]
    counted = ["null" in (outcome.out + outcome.err).lower() for outcome in outcomes]
    return combine(
        [
            expect_success(o, also=c, observed="counted" if c else "not counted")
            for o, c in zip(outcomes, counted, strict=True)
        ]
    )


@case(14, "half of a surrogate pair", correct="replaced by U+FFFD and counted")
def lone_surrogate(work: Workplace) -> Observation:
    rows: list[object] = list(english_documents(300))
    rows[200] = rb'{"text": "abc \ud83d def"}'
    outcome = work.run(*LOCAL, *QUICK, f"data.path={write_jsonl(work.folder / 'sur.jsonl', rows)}")
    counted = "surrogate" in (outcome.out + outcome.err).lower()
    return expect_success(outcome, also=counted, observed="counted" if counted else "not counted")


@case(
    15,
    "Parquet column types",
    correct="categories and binary are read as text; a null inside a list: one line with file and row",
)
def column_types(work: Workplace) -> Observation:
    documents = english_documents(300)
    columns = {
        "category": pa.array(documents).dictionary_encode(),
        "binary": pa.array([d.encode() for d in documents], pa.binary()),
        "large": pa.array(documents, pa.large_string()),
    }
    observations = []
    for name, column in columns.items():
        pq.write_table(pa.table({"text": column}), work.folder / f"{name}.parquet")
        observations.append(
            expect_success(work.run(*LOCAL, *QUICK, f"data.path={work.folder / name}.parquet"), observed=name)
        )
    rows = [[random.Random(i).randrange(2048) for _ in range(128)] for i in range(300)]
    pq.write_table(pa.table({"input_ids": [*rows[:7], [1, None, 3], *rows[7:]]}), work.folder / "null_id.parquet")
    observations.append(
        expect_refusal(work.run(*LOCAL, *QUICK, f"data.path={work.folder / 'null_id.parquet'}"), "null_id.parquet", "8")
    )
    return combine(observations)


@case(18, "a folder of text files", correct="a file is a document: no file on both sides (30 files)")
def files_are_documents(work: Workplace) -> Observation:
    folder = work.folder / "books"
    folder.mkdir()
    for k in range(30):
        (folder / f"book{k}.txt").write_text("\n\n".join(english_documents(30, seed=k)))
    outcome = work.run(*LOCAL, *QUICK, f"data.path={folder}")
    if outcome.code:
        return expect_success(outcome)
    train, held_out = read_files(work)
    observed = f"{len(train)} files to train on, {len(held_out)} held out, {len(train & held_out)} on both sides"
    return expect_success(outcome, also=len(train | held_out) == 30 and not train & held_out, observed=observed)


@case(
    19,
    "the user's own splits",
    correct="train trains, validation is held out, test is untouched; keys without effect are refused",
)
def own_splits(work: Workplace) -> Observation:
    folder = work.folder / "splits"
    documents = english_documents(300)
    for name, part in (("train", documents[:200]), ("validation", documents[200:250]), ("test", documents[250:])):
        write_jsonl(folder / f"{name}.jsonl", part)
    outcome = work.run(*LOCAL, *QUICK, f"data.path={folder}")
    sides = [sorted(side) for side in read_files(work)] if outcome.code == 0 else []
    divided = sides == [["train.jsonl"], ["validation.jsonl"]]
    refused = expect_refusal(work.run(*LOCAL, *QUICK, f"data.path={folder}", "data.config=foo"), "data.config")
    by_name = expect_success(
        work.run(*LOCAL, *QUICK, f"data.path={folder}", "data.split=train", "data.held_out_split=test")
    )
    return combine([expect_success(outcome, also=divided, observed=f"train and held out: {sides}"), refused, by_name])


@case(20, "no tokenizer.json", correct="built from vocab.json and merges.txt, or refused at once with what to do")
def no_tokenizer_json(work: Workplace) -> Observation:
    model = write_model(work.folder / "two_files", lambda: (GPT2LMHeadModel, small_config(GPT2Config)))
    parts = json.loads((model / "tokenizer.json").read_text("utf-8"))["model"]
    (model / "vocab.json").write_text(json.dumps(parts["vocab"]))
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in parts["merges"])
    (model / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (model / "tokenizer.json").unlink()
    text = write_jsonl(work.folder / "docs.jsonl", english_documents(300))
    outcome = work.run("loss=local", "layer=2", *QUICK, f"model.path={model}", f"data.path={text}")
    if outcome.code == 0:
        return expect_success(outcome)
    shutil.rmtree(model)
    return expect_refusal(outcome, "tokenizer.json", "save_pretrained")
