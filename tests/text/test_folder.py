"""Folders as they come: data sets with descriptions, links, caches, and splits by name."""

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from crux.config.errors import UserError
from crux.text.folder import detect_format, find_text
from crux.text.sources import TextFiles
from crux.text.splits import choose_splits, recognise_split
from tests.text.test_tokens import make_texts, prepare, split_texts


def find(folder, split=None, held_out_split=None):
    """Return the names of the files to train on and to hold out, and the reasons of skipped ones by name."""
    layout = find_text(folder, split=split, held_out_split=held_out_split)
    names = [[str(f.relative_to(folder)) for f in files or []] for files in (layout.train, layout.held_out)]
    return *names, {str(s.path.relative_to(folder)): s.reason for s in layout.skipped}


def touch(folder, *names: str):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "words"}\n')


def test_files_about_a_data_set_are_skipped_with_reasons(tmp_path):
    about = [
        "README.md",
        "LICENSE.txt",
        "requirements.txt",
        "requirements-dev.txt",
        "dataset_infos.json",
        "a/LICENCE",
        ".gitattributes",
    ]
    touch(tmp_path, "rows.jsonl", "a/licensed_music.jsonl", "picture.png", *about)
    train, held_out, skipped = find(tmp_path)
    assert train == ["a/licensed_music.jsonl", "rows.jsonl"]
    assert held_out == []
    assert set(skipped) == {*about, "picture.png"}
    assert skipped["dataset_infos.json"] == "about the data set, by its name"
    assert skipped["LICENSE.txt"] == "about the data set, by its name"
    assert skipped[".gitattributes"] == "hidden"
    # given by its path, each of them is read
    assert find_text(tmp_path / "LICENSE.txt", split=None, held_out_split=None).train == [tmp_path / "LICENSE.txt"]


def test_a_data_set_in_the_cache_of_the_hub(tmp_path):
    """Its folder has the files as blobs, and each revision as a folder of links to them; `refs/main` names the current one."""
    folder = tmp_path / "datasets--someone--texts"
    touch(folder, "blobs/0a", "blobs/0b", "blobs/0c")
    for revision, blob in (("abc", "0a"), ("def", "0b")):
        (folder / "snapshots" / revision).mkdir(parents=True)
        (folder / "snapshots" / revision / "train.jsonl").symlink_to(folder / "blobs" / blob)
    (folder / "snapshots" / "def" / "test.jsonl").symlink_to(folder / "blobs" / "0c")
    with pytest.raises(UserError, match="has 2 revisions; give the path of one of them"):
        find(folder)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("def")
    assert find(folder)[:2] == (["snapshots/def/train.jsonl"], ["snapshots/def/test.jsonl"])
    (folder / "refs" / "main").write_text("gone")
    (folder / "snapshots" / "def").rename(tmp_path / "other")
    assert find(folder)[:2] == (["snapshots/abc/train.jsonl"], [])


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "elsewhere", "a.jsonl", "deep/b.jsonl")
    folder = tmp_path / "in"
    touch(folder, "c.jsonl")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "same.jsonl").symlink_to(folder / "c.jsonl")
    (folder / "nothing.jsonl").symlink_to(folder / "missing.jsonl")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(folder)  # a loop
    train, _, skipped = find(folder)
    assert train == ["again/a.jsonl", "again/deep/b.jsonl", "c.jsonl"]
    assert skipped["nothing.jsonl"] == "a link to nothing"
    assert skipped["same.jsonl"].startswith("the same as ")
    assert skipped["linked"].startswith("the same as ")
    assert skipped["again/deep/up"].startswith("the same as ")


def test_a_saved_data_set_is_read_without_its_descriptions_and_caches(tmp_path):
    texts = make_texts(60)
    Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "cache-0123.arrow").write_bytes(b"made by map")
    tokens = prepare(TextFiles(tmp_path / "saved", None), tmp_path / "cache")
    assert sorted(split_texts(tokens.train) + split_texts(tokens.held_out)) == sorted(texts)
    assert {s.reason: s.files for s in tokens.report.skipped_files} == {
        "about the data set, by its name": 2, "not among the files in state.json": 1,
    }  # fmt: skip


def test_a_saved_data_set_with_splits_is_divided_by_them(tmp_path):
    parts = {name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(40)]}) for name in ("train", "test")}
    DatasetDict(**parts).save_to_disk(str(tmp_path / "saved"))
    tokens = prepare(TextFiles(tmp_path / "saved", None), tmp_path / "cache")
    assert split_texts(tokens.train) == [f"train {i}" for i in range(40)]
    assert split_texts(tokens.held_out) == [f"test {i}" for i in range(40)]


@pytest.mark.parametrize(
    ("name", "split"),
    [("train.jsonl", "train"), ("my_training-3.txt", "train"), ("valid.txt", "validation"), ("dev/a.txt", "validation"),
     ("a/val_2/b.txt", "validation"), ("wiki.test.tokens.txt", "test"), ("evaluation.jsonl", "test"), ("trains.txt", None),
     ("contest.txt", None), ("latest/a.txt", None), ("data/train-00000-of-00002.parquet", "train"),
     ("data/unsupervised-00000-of-00001.parquet", "unsupervised"), ("data-00000-of-00001.arrow", None), ("test/train.txt", "test")],
)  # fmt: skip
def test_splits_are_recognised_as_datasets_does(name, split):
    assert recognise_split(Path(name)) == split


def test_files_of_other_splits_and_of_none_are_reported(tmp_path):
    touch(tmp_path, "train.jsonl", "dev.jsonl", "test.jsonl", "extra.jsonl")
    train, held_out, skipped = find(tmp_path)
    assert (train, held_out) == (["train.jsonl"], ["dev.jsonl"])
    assert skipped == {"extra.jsonl": "of no split", "test.jsonl": "of the split test"}
    assert find(tmp_path, held_out_split="test")[:2] == (["train.jsonl"], ["test.jsonl"])


def test_a_folder_without_a_training_split_or_without_another_is_one_text(tmp_path):
    touch(tmp_path / "a", "test.jsonl", "other.jsonl")
    touch(tmp_path / "b", "train-1.jsonl", "other.jsonl")
    assert find(tmp_path / "a")[:2] == (["other.jsonl", "test.jsonl"], [])
    assert find(tmp_path / "b")[:2] == (["other.jsonl", "train-1.jsonl"], [])
    assert find(tmp_path / "b", split="train")[:2] == (["train-1.jsonl"], [])


def test_options_without_effect_are_refused():
    def choose(available, split=None, held_out_split=None):
        return choose_splits(available, split=split, held_out_split=held_out_split, where="the text")

    with pytest.raises(UserError, match=r"data\.split=train has no effect: the text has no splits"):
        choose([], split="train")
    with pytest.raises(UserError, match=r"data\.held_out_split=test: the text has no such split; there are: train"):
        choose(["train"], held_out_split="test")
    with pytest.raises(UserError, match="both train: they must differ"):
        choose(["train", "test"], split="train", held_out_split="train")
    with pytest.raises(UserError, match="has no split train; choose one"):
        choose(["test"], held_out_split="test")
    assert choose(["train", "test"], split="test") == ("test", None)
    assert choose(["train", "dev", "test"]) == ("train", "dev")


def test_formats_are_recognised_by_content_if_the_name_tells_nothing(tmp_path):
    (tmp_path / "rows").write_bytes(b"PAR1....PAR1")
    (tmp_path / "table.feather").write_bytes(b"ARROW1\0\0")
    (tmp_path / "words").write_text("words")
    assert [detect_format(tmp_path / n) for n in ("rows", "table.feather", "words")] == ["parquet", "arrow", "text"]


def test_every_split_of_a_saved_data_set_can_be_chosen(tmp_path):
    parts = {name: Dataset.from_dict({"text": [name] * 3}) for name in ("fold1", "fold2", "unsupervised")}
    DatasetDict(**parts).save_to_disk(str(tmp_path))
    train, held_out, skipped = find(tmp_path, split="fold1", held_out_split="fold2")
    assert (train, held_out) == (["fold1/data-00000-of-00001.arrow"], ["fold2/data-00000-of-00001.arrow"])
    assert skipped["unsupervised/data-00000-of-00001.arrow"] == "of the split unsupervised"


@pytest.mark.parametrize("target", ["missing.txt", "loop.txt"])
def test_a_link_to_nothing_is_named_as_such(tmp_path, target):
    (tmp_path / "loop.txt").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=r"loop\.txt is a link to nothing"):
        find(tmp_path / "loop.txt")
