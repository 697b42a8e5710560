"""The image pool on disk: exact pixels back, damage named, readable by others, and only by its own teacher."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from upcycle import cli
from upcycle.core import lineage, models, references, saved, store
from upcycle.core.errors import UserError
from upcycle.core.outputs import Columns, Logits
from upcycle.data import Images, Pool, check_reference, load, load_pool, pool_lineage, save_pool
from upcycle.data.pool_files import CARD, LINEAGE, TABLE, weights_digest

CLASSES = tuple("0123456789")
WORDS = ["distill", "--student=zoo:convnet_small", "--recipe.epochs=1", "--quiet"]


@pytest.fixture(scope="module")
def teacher() -> models.Model:
    return references.resolve("zoo:digits_teacher")


def filled(n: int = 60, channels: int = 1, capacity: int = 100, seed: int = 0) -> Pool:
    """A pool of noise, its classes in turn."""
    pool = Pool(capacity, (channels, 8, 8), (0.5,) * channels, (0.5,) * channels)
    images = torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    for part, labels in zip(images.split(25), (torch.arange(n) % 10).split(25), strict=True):
        pool.append(part, labels)
    return pool


def saved_pool(folder: Path, teacher: models.Model, pool: Pool | None = None) -> Path:
    pool = filled() if pool is None else pool
    tree = pool_lineage(pool, teacher, name="noise", method="stub", config={"seed": 0})
    save_pool(pool, folder, classes=CLASSES, name="Noise", lineage=tree, note="It took no time.")
    return folder


@pytest.fixture
def folder(tmp_path: Path, teacher: models.Model) -> Path:
    return saved_pool(tmp_path / "pool", teacher)


# -- to disk and back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [2, 60, 130])  # 130: the oldest were replaced
def test_pixels_and_labels_come_back_exactly(tmp_path: Path, teacher: models.Model, channels: int, n: int) -> None:
    pool = filled(n, channels)
    images = load_pool(saved_pool(tmp_path / "pool", teacher, pool))
    assert len(images.train) == min(n, 100) and images.shape == (channels, 8, 8) and images.classes == CLASSES
    assert torch.equal(images.train.images, pool.images) and torch.equal(images.train.labels, pool.labels)
    assert sorted(p.name for p in (tmp_path / "pool").iterdir()) == sorted([TABLE, LINEAGE, CARD, store.MANIFEST])


def test_nothing_is_held_out_so_nothing_has_labels_to_measure_with(folder: Path) -> None:
    images = load(f"pool:{folder}")
    assert len(images.validation) == 6 and len(images.test) == 12 and len(images.train) == 60
    for split in (images.validation, images.test):
        assert (split.labels == -1).all() and torch.equal(split.images, images.train.images[split.ids])
    assert not set(images.validation.ids.tolist()) & set(images.test.ids.tolist())
    assert torch.equal(load(f"pool:{folder}").test.ids, images.test.ids)
    assert load(f"pool:{folder}", size=16, channels=3).shape == (3, 16, 16)


def test_the_lineage_leads_to_the_teacher(folder: Path, teacher: models.Model) -> None:
    pool, images = filled(), load_pool(folder)
    assert images.lineage is not None and images.licence == "Apache-2.0"
    assert images.lineage["digest"] == store.tensor_digest({"images": pool.images, "labels": pool.labels})
    (parent,) = images.lineage["parents"]
    assert parent["role"] == "teacher" and parent["name"] == "digits_teacher"
    assert parent["digest"] == store.tensor_digest(teacher.module.state_dict())
    assert "teacher: digits_teacher" in lineage.tree(images.lineage)
    wrapped = Columns(Logits(teacher.module), torch.arange(10))
    assert weights_digest(wrapped) == parent["digest"]


def test_the_card_says_what_it_is(folder: Path) -> None:
    text = (folder / CARD).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "apache-2.0" and "synthetic" in head["tags"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": TABLE}]
    for part in ("60 images of 8 x 8 pixels (grey)", "digits_teacher", "stub", "not private", "It took no time.",
                 "Apache-2.0", "may resemble", "| 3 | 6 |"):  # fmt: skip
        assert part in text, part


def test_a_pool_is_replaced_and_nothing_else_is(folder: Path, teacher: models.Model, tmp_path: Path) -> None:
    saved_pool(folder, teacher, filled(30, seed=1))
    assert len(load_pool(folder).train) == 30 and [p.name for p in tmp_path.iterdir()] == ["pool"]
    (other := tmp_path / "other").mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="exists and is no image pool"):
        saved_pool(other, teacher)
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="holds no image"):
        saved_pool(tmp_path / "empty", teacher, Pool(2, (1, 8, 8), (0.5,), (0.5,)))


def test_a_failed_write_leaves_the_old_pool(
    folder: Path, teacher: models.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    before = load_pool(folder).digest
    for name in ("os.fsync", "os.rename"):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
            patch.setattr(name, full)
            saved_pool(folder, teacher, filled(30, seed=1))
        assert load_pool(folder).digest == before and [p.name for p in tmp_path.iterdir()] == ["pool"]


# -- read by others ---------------------------------------------------------------------------------------------


def test_it_is_an_ordinary_parquet_folder(folder: Path) -> None:
    images = load(folder)  # with held-out images of its own, like any folder
    assert images.classes == CLASSES and images.lineage is None
    assert len(images.train) + len(images.validation) + len(images.test) == 60
    row = pq.read_table(folder / TABLE).slice(7, 1).to_pylist()[0]
    assert row["label"] == 7 and row["image"]["path"] == "000007.png"
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
    assert np.array_equal(pixels, filled().images[7, :, :, 0].numpy())


def test_hugging_faces_datasets_reads_it(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = (("parquet", {"data_files": str(folder / TABLE)}), (str(folder), {}))
    for kind, options in kinds:
        train = datasets.load_dataset(kind, **options, split="train", cache_dir=str(tmp_path / "cache"))
        assert train.features["label"].names == list(CLASSES) and len(train) == 60
        assert np.array_equal(np.asarray(train[7]["image"]), filled().images[7, :, :, 0].numpy())


# -- damage -----------------------------------------------------------------------------------------------------


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _flipped(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


@pytest.mark.parametrize("file", [TABLE, LINEAGE, store.MANIFEST])
@pytest.mark.parametrize("damage", [_cut, _flipped])
def test_damage_is_named(folder: Path, file: str, damage: Callable[[bytes, random.Random], bytes]) -> None:
    chance, whole = random.Random(3), (folder / file).read_bytes()
    for _ in range(25):
        (folder / file).write_bytes(damage(whole, chance))
        with pytest.raises(UserError, match=rf"{file} is damaged"):
            load_pool(folder)
    (folder / file).write_bytes(whole)
    (folder / CARD).write_text("a person may edit this")
    assert len(load_pool(folder).train) == 60


def test_references(folder: Path, tmp_path: Path) -> None:
    check_reference(f"pool:{folder}")
    check_reference(f"pool:{tmp_path}")  # a run that left it
    assert load(f"pool:{tmp_path}").digest == load_pool(folder).digest
    for reference, part in (("pool:", "names no image pool"), (f"pool:{tmp_path / 'x'}", "no image pool in"),
                            (f"pool:{folder / TABLE}", "no image pool in")):  # fmt: skip
        with pytest.raises(UserError, match=part):
            check_reference(reference)


# -- students from it -------------------------------------------------------------------------------------------


def test_a_pool_of_another_teacher_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = references.resolve("zoo:digits_teacher")
    with torch.no_grad():
        next(other.module.parameters()).add_(1e-3)
    saved.save(models.replace(other, lineage=None, name="cousin"), tmp_path / "cousin")
    assert cli.main([*WORDS, "--teacher=cousin", "--data=pool:pool", "--out=run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "made from digits_teacher" in said and "the teacher is cousin" in said, said
    assert "--data pool." in said and not (tmp_path / "run").exists()
    # The same images taken as ordinary ones.
    assert cli.main([*WORDS, "--teacher=cousin", "--data=./pool", "--out=run"]) == 0


def test_a_student_from_a_pool(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*WORDS, "--teacher=zoo:digits_teacher", "--data=pool:pool", "--out=run"]) == 0
    result, tree = store.read_json(Path("run/result.json")), saved.load("run").lineage
    assert any("agreement with the teacher, on images that the student is" in note for note in result["notes"])
    assert result["rows"][0]["accuracy"] == [1.0] and result["data"]["train"] == 60 == result["data"]["labelled"]
    assert tree is not None and [p["role"] for p in tree["parents"]] == ["teacher", "image pool"]
    assert tree["parents"][1]["parents"][0]["name"] == "digits_teacher" and tree["licence"]["id"] == "Apache-2.0"
    assert tree["data"]["name"] == "noise"
    words = [*WORDS, "--teacher=zoo:digits_teacher", "--data=pool:pool", "--test-data=digits", "--out=measured"]
    assert cli.main(words) == 0
    result = store.read_json(Path("measured/result.json"))
    assert not any("agreement" in note for note in result["notes"]) and result["data"]["test"] == 500
    assert 0.97 < result["rows"][0]["accuracy"][0] < 1 and "digits" in result["data"]["name"]
    assert cli.main(["distill", "--method=tfkd", *WORDS[1:], "--data=pool:pool", "--out=alone"]) == 2
    assert "give --test_data" in capsys.readouterr().err


def test_a_pools_licence_binds_its_students(tmp_path: Path) -> None:
    """The images carry the licence of the network that they were made from, whoever else has part in the student."""
    strict = references.resolve("zoo:digits_teacher")
    strict = models.replace(strict, lineage=None, licence="CC-BY-NC-SA-4.0", name="strict")
    images = load_pool(saved_pool(tmp_path / "pool", strict))
    assert isinstance(images, Images) and images.licence == "CC-BY-NC-SA-4.0" and images.lineage is not None
    plain = lineage.node(name="open", digest="", licence="MIT", role="teacher")
    student = lineage.child([plain, {**images.lineage, "role": "image pool"}], name="student", digest="")
    assert student["licence"]["id"] == "CC-BY-NC-SA-4.0"
