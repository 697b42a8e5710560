"""Folders as people have them: which is which split and class, what is left out, and that it is said."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import upcycle
from upcycle.core.errors import UserError
from upcycle.data import load
from upcycle.data.parts import ALIASES


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *os.fsencode(path.name)])
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path, format="PNG")


def fill(root: Path, splits: dict[str, tuple[str, ...]], n: int = 12) -> Path:
    """``n`` pictures in each class of each split; without a split's name its classes lie in the root itself."""
    for s, (split, classes) in enumerate(splits.items()):
        for k, name in enumerate(classes):
            for i in range(n):
                picture(root / split / name / f"{i:02d}.png", 100 * s + k)
    return root


AB = ("a", "b")


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("Training", "", "Testing"),
        ("Train", "Valid", "Test"),
        ("train", "dev", "test"),
        ("TRAIN", "eval", "TEST"),
        ("seg_train", "", "seg_test"),
        ("training", "validation", "testing"),
        ("train", "val", ""),
        ("train", "", ""),
        ("Training", "", ""),
    ],
)
def test_usual_names_of_splits_in_any_case(tmp_path: Path, train: str, validation: str, test: str) -> None:
    named = {"train": train, "validation": validation, "test": test}
    data = load(fill(tmp_path / "set", {name: AB for name in named.values() if name}))
    assert data.classes == AB
    said = ", ".join(f"{name} ({split})" for split, name in named.items() if name)
    assert data.notes[0] == f"The splits of set are its folders {said}."
    for split, name in named.items():
        drawn = f"The {split} split of set is ours: {len(getattr(data, split)):,} of its 24 training images"
        assert any(note.startswith(drawn) for note in data.notes) == (not name)
        assert not name or split == "train" or len(getattr(data, split)) == 24


def test_every_alias_is_understood() -> None:
    names = [alias for aliases in ALIASES.values() for alias in aliases]
    assert len(set(names)) == len(names) and all(name == name.casefold() for name in names)


def test_validation_and_test_alone(tmp_path: Path) -> None:
    data = load(fill(tmp_path / "set", {"val": AB, "test": AB}))
    assert len(data.test) == 24 and len(data.train) + len(data.validation) == 24
    assert "set has no train split: its validation images are trained on, and some of them set aside." in data.notes


def test_splits_may_lie_in_folders_of_their_own_names(tmp_path: Path) -> None:
    data = load(fill(tmp_path / "set", {"seg_train/seg_train": AB, "seg_test/seg_test": AB}))
    assert data.classes == AB and len(data.test) == 24


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"train": AB, "foo": AB}, r"folders of splits \(train\) and beside them foo, which can be neither"),
        ({"train": AB, "test": AB, "extra": ("",)}, r"splits \(test, train\) and beside them extra"),
        ({"train": ("",), "test": ("",), "boat": ("",)}, r"splits \(test, train\) and beside them boat"),
        ({"val": AB, "dev": AB, "train": AB}, r"two folders for the validation split: dev, val"),
        ({"Train": AB, "train": AB}, r"two folders for the train split: Train, train"),
        ({"test": AB}, r"a test split alone.* Add a train split"),
        ({"train": AB, "test": ("a", "b", "c")}, r"no class.* 'c'"),
        ({"train": ("a", "b"), "": ("test_notes",), "test": ("a",)}, "beside them test_notes"),
    ],
)
def test_folders_that_cannot_be_placed(tmp_path: Path, splits: dict[str, tuple[str, ...]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(fill(tmp_path / "set", splits))


def test_a_railway_has_trains(tmp_path: Path) -> None:
    assert load(fill(tmp_path / "set", {"": ("boat", "plane", "train")})).classes == ("boat", "plane", "train")


def test_folders_without_images_beside_splits_are_left_out(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"train": AB, "test": AB})
    (root / "labels").mkdir()
    (root / "labels" / "list.csv").write_text("a,b")
    picture(root / "cover.png")
    picture(root / "train" / "overview.png")
    data = load(root)
    assert data.classes == AB
    assert data.notes[1] == (
        "Left out of set: 2 images outside of the folders of classes (cover.png, ...), 1 folder without an image "
        "(labels)."
    )


def test_a_class_may_lack_test_images(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"train": AB, "test": ("a",)})
    (root / "test" / "b").mkdir()
    data = load(root)
    assert data.classes == AB and "No test image of set belongs to the class 'b'." in data.notes


def test_what_nobody_means_is_left_out_and_counted(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"": AB})
    for name in (".ipynb_checkpoints/00-checkpoint.png", "@eaDir/00.png", "._00.png", "__MACOSX/00.png"):
        picture(root / "a" / name)
    picture(root / ".ipynb_checkpoints" / "x" / "1.png")
    (root / "b" / "Thumbs.db").write_bytes(b"x")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "b" / "notes.txt").write_text("x")
    data = load(root)
    assert data.classes == AB and len(data.train) + len(data.validation) + len(data.test) == 24
    assert data.notes[0] == (
        "Left out of set: 6 hidden files or folders (.ipynb_checkpoints, ...), 1 link that leads nowhere (gone.png), "
        "1 file that is no image by its name (notes.txt)."
    )
    found = upcycle.predict("zoo:digits_teacher", root)  # by the same reader
    assert len(found.paths) == 24 and any("6 hidden files or folders" in note for note in found.model.notes)


def test_training_predict_and_explain_share_one_reader(tmp_path: Path) -> None:
    """The same images, in the same colours and at the same places, whoever reads them."""
    root, half = fill(tmp_path / "set", {"": AB}, n=4), {"quiet": True, "recipe": {"epochs": 1}}
    (root / "a" / "far.png").symlink_to(tmp_path / "far.png")
    picture(tmp_path / "far.png", 9)
    picture(root / "b" / ".ipynb_checkpoints" / "00-checkpoint.png")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    made = upcycle.distill(method="tfkd", student="zoo:convnet_small", data=root, out=tmp_path / "run", **half)
    said = "Left out of set: 1 hidden file or folder (.ipynb_checkpoints), 1 link that leads nowhere (gone.png)."
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert said in result["notes"] and sum(result["data"][split] for split in ("train", "validation", "test")) == 9
    answers = upcycle.predict(made.model, root)
    told: list[str] = []
    why = upcycle.explain_images(made.model, root, methods=("saliency",), out=tmp_path / "why", say=told.append)
    assert said in answers.model.notes and any(said in text for text in told)
    with (tmp_path / "why" / "explained.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == list(answers.paths)
    assert len(why.maps["saliency"].maps) == len(answers.paths) == 9


def test_links_are_followed_and_loops_are_named(tmp_path: Path) -> None:
    far = fill(tmp_path / "far", {"": ("cat",)})
    root = fill(tmp_path / "set", {"": ("dog",)})
    (root / "cat").symlink_to(far / "cat")
    picture(tmp_path / "elsewhere.png", 7)
    (root / "dog" / "one.png").symlink_to(tmp_path / "elsewhere.png")
    (root / "dog" / "again").symlink_to(root)
    (root / "loop").symlink_to(root)
    data = load(root)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.validation) + len(data.test) == 25
    assert data.notes[0] == "Left out of set: 2 links that lead back to where they lie (loop, ...)."


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """As text they are written out, everywhere; a run with them ends well."""
    odd = os.fsdecode(b"caf\xe9")
    root = fill(tmp_path / os.fsdecode(b"\xfcber"), {"": (odd, "tea")}, n=20)
    try:
        picture(root / odd / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    data = load(root)
    assert data.classes == (r"caf\xe9", "tea") and data.name == r"\xfcber"
    half = {"recipe": {"epochs": 1}, "quiet": True, "out": tmp_path / "run"}
    made = upcycle.distill(method="tfkd", student="zoo:convnet_small", data=str(root), **half)
    assert made.model.classes == data.classes and r"caf\xe9" in made.report.read_text()
    found = upcycle.predict(tmp_path / "run", root, out=tmp_path / "answers.csv")
    assert r"caf\xe9/\xff.png" in found.paths and r"caf\xe9/\xff.png" in (tmp_path / "answers.csv").read_text()
    assert upcycle.evaluate(tmp_path / "run", root).count == len(data.test)
    (root / "tea" / "bad.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"bad\.png"):
        load(root)


# -- drawn splits -------------------------------------------------------------------------------------------------


def paths(root: Path) -> dict[str, set[str]]:
    data, files = load(root), sorted(root.rglob("*.png"))
    return {s: {str(files[i]) for i in getattr(data, s).ids.tolist()} for s in ("train", "validation", "test")}


def test_a_drawn_split_stands_when_data_grow(tmp_path: Path) -> None:
    """One image more, classes more, other names: no image changes its split."""
    root = fill(tmp_path / "set", {"": AB}, n=60)
    before = paths(root)
    picture(root / "a" / "000-first.png", 5)
    fill(root, {"": ("c",)}, n=10)
    after = paths(root)
    for split, files in before.items():
        assert files <= after[split]
    for path in sorted(root.rglob("*.png")):
        path.rename(path.with_name(f"renamed-{path.name}"))
    renamed = paths(root)
    assert {s: {p.replace("renamed-", "") for p in files} for s, files in renamed.items()} == after


def test_copies_of_an_image_share_a_split(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"": AB}, n=30)
    for path in sorted(root.rglob("*.png")):
        (path.parent / f"copy-{path.name}").write_bytes(path.read_bytes())
    for files in paths(root).values():
        assert {p.replace("copy-", "") for p in files} == {p for p in files if "copy-" not in p}


def test_few_images_are_shared_or_refused(tmp_path: Path) -> None:
    found: list[str] = []
    for n in range(3, 12):
        root = fill(tmp_path / str(n), {"": ("",)}, n=n)
        try:
            assert all(paths(root).values())
        except UserError as error:
            found.append(str(error))
    assert all(re.search("too few to set some aside|none is left to train on", text) for text in found)
    with pytest.raises(UserError, match="2 training images, too few to set some aside for validation"):
        load(fill(tmp_path / "two", {"": ("",)}, n=2))
    root = fill(tmp_path / "rare", {"": AB}, n=40)
    test = next(p for p in sorted(paths(root)["test"]) if "/a/" in p)
    for path in (root / "a").iterdir():
        if str(path) != test:
            path.unlink()
    with pytest.raises(UserError, match=r"too few images of the class 'a' \(1\) .* none is left to train on"):
        load(root)


def test_large_files_are_drawn_by_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from upcycle.data import folders

    root = fill(tmp_path / "set", {"": AB}, n=40)
    by_content = paths(root)
    monkeypatch.setattr(folders, "READ_FIRST", 1)
    by_path = paths(root)
    assert by_path != by_content
    picture(root / "b" / "more.png", 9)
    assert all(files <= paths(root)[split] for split, files in by_path.items())


def test_the_split_does_not_depend_on_the_size(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"": AB}, n=30)
    small, large = load(root), load(root, size=16, channels=3)
    assert small.test.ids.equal(large.test.ids) and small.validation.ids.equal(large.validation.ids)
