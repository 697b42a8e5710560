"""The commands that take networks apart and put them together, on real digits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import upcycle
from tests.settings import fitted, tiny_data
from upcycle import cli
from upcycle.core import store
from upcycle.core.errors import UserError
from upcycle.core.evaluate import predict_logits
from upcycle.core.references import resolve
from upcycle.core.saved import load
from upcycle.data import load as load_data
from upcycle.data.joining import joined
from upcycle.data.labels import relabelled
from upcycle.verbs.reassemble import _fronts, members

TEACHER = "zoo:digits_teacher"
REASSEMBLE = ["--blocks=2", "--probe=64", "--runs=5", "--candidates=4", "--score_batches=1", "--recipe.epochs=1"]


def run(*words: str) -> int:
    return cli.main([*words])


def say(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    assert "Traceback" not in found.err
    return found.err


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two components of the shipped network."""
    folder = tmp_path_factory.mktemp("zoo")
    for name, classes in (("low", "0,1,2"), ("high", "7,8,9")):
        assert run("disassemble", TEACHER, "--classes", classes, "--out", str(folder / name), "--quiet") == 0
    return folder


def test_a_component_is_smaller_works_and_comes_back(parts: Path) -> None:
    whole, part = resolve(TEACHER), load(parts / "low")
    assert part.classes == ("0", "1", "2")
    smaller, larger = (sum(p.numel() for p in m.module.parameters()) for m in (part, whole))
    assert smaller < larger
    result = json.loads((parts / "low" / "result.json").read_text())
    source, product = result["rows"]
    assert source["role"] == "source" and product["role"] == "product"
    assert product["accuracy"][0] > 0.8 and product["parameters"] == smaller < source["parameters"]
    assert part.lineage is not None and part.lineage["parents"][0]["role"] == "source"
    text = (parts / "low" / "report.html").read_text()
    assert "Traceback" not in text and "cannot be drawn" not in text


def test_parts_become_one_network_that_answers_as_they_do(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "joined"
    assert run("assemble", str(parts / "low"), str(parts / "high"), "--out", str(out), "--quiet") == 0
    network = load(out)
    assert network.classes == ("0", "1", "2", "7", "8", "9")
    images = network.example(16)
    with torch.no_grad():
        alone = torch.cat([load(parts / name).module(images) for name in ("low", "high")], 1)
        torch.testing.assert_close(network.module(images), alone, rtol=1e-5, atol=1e-5)
    assert json.loads((out / "result.json").read_text())["rows"][-1]["accuracy"] == []
    assert {p["role"] for p in network.lineage["parents"]} == {"part"}  # type: ignore[index]


def test_with_images_the_assembly_is_scaled_and_measured(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "measured"
    words = ("assemble", str(parts / "low"), str(parts / "high"), "--data", "digits", "--out", str(out), "--quiet")
    assert run(*words) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["data"]["classes"] == ["0", "1", "2", "7", "8", "9"]
    assert result["rows"][-1]["accuracy"][0] > 0.5
    before = (out / "model" / "weights.safetensors").read_bytes()
    assert run(*words, "--resume") == 0
    assert (out / "model" / "weights.safetensors").read_bytes() == before
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["parts"] == [str(parts / "low"), str(parts / "high")] and config["method"] == "mdaassembly"


def test_a_part_that_is_weak_alone_is_measured_within_the_whole_too(tmp_path: Path) -> None:
    """The scales of assembling balance the classes of a part, which is why the whole may be better than its parts."""
    for name in ("23", "678"):
        upcycle.disassemble(TEACHER, classes=tuple(name), data="digits", out=tmp_path / name, quiet=True)
    parts = [tmp_path / "23", tmp_path / "678"]
    result = upcycle.assemble(parts, data="digits", out=tmp_path / "whole", quiet=True)
    inside, alone = (re.findall(r"[\d.]+%", text) for text in result.sentence.split("Among")[1].split("parts alone"))
    assert alone == [f"{row['accuracy'][0]:.1%}" for row in result.rows[:2]]
    whole, data = load(tmp_path / "whole"), load_data("digits").only(("2", "3"))
    z = predict_logits(whole.module, data.normalised(whole.mean, whole.std).test)[:, :2]
    assert inside[0] == f"{(z.argmax(1) == data.test.labels).double().mean():.1%}"
    assert float(inside[0][:-1]) > float(alone[0][:-1]) + 5
    assert any(
        "winning ones have a mean of 1" in note
        for note in json.loads((tmp_path / "whole" / "result.json").read_text())["notes"]
    )
    again = upcycle.assemble(parts, data="digits", scale=False, out=tmp_path / "unscaled", quiet=True)
    inside, alone = (re.findall(r"[\d.]+%", text) for text in again.sentence.split("Among")[1].split("parts alone"))
    assert inside == alone  # which shows that nothing else is in it


def test_a_component_is_again_an_input_to_every_verb(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "smaller"
    assert run("disassemble", str(parts / "low"), "--classes", "1,2", "--out", str(out), "--quiet") == 0
    assert load(out).classes == ("1", "2")
    assert run("lineage", str(out)) == 0 and "digits_teacher" in capsys.readouterr().out
    assert run("export", str(out), str(tmp_path / "net.pt2"), "--format", "torch") == 0
    twice = ("assemble", str(out), str(parts / "high"), "--out", str(tmp_path / "of-parts"), "--quiet")
    assert run(*twice) == 0 and load(tmp_path / "of-parts").classes == ("1", "2", "7", "8", "9")


def test_a_zoo_becomes_a_network(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "mixed"
    words = ("reassemble", "--zoo", f"{TEACHER},{parts / 'low'}", *REASSEMBLE, "--out", str(out), "--quiet")
    assert run(*words) == 0
    network, result = load(out), json.loads((out / "result.json").read_text())
    assert [row["role"] for row in result["rows"]] == ["member", "member", "product"]
    assert network.classes == tuple("0123456789")
    used = {parent["name"] for parent in network.lineage["parents"]}  # type: ignore[index]
    assert used == set(network.module.recipe["names"])  # type: ignore[arg-type,index]
    assert result["rows"][-1]["parameters"] == sum(p.numel() for p in network.module.parameters())
    assert "cannot be drawn" not in (out / "report.html").read_text()
    with torch.no_grad():
        assert network.module(network.example(2)).shape == (2, 10)


def test_in_python_with_modules(tmp_path: Path) -> None:
    source = fitted("source", 7)
    result = upcycle.disassemble(source, classes=("3", "5"), data="digits", out=tmp_path / "part", quiet=True)
    assert result.model.classes == ("3", "5") and result.report.is_file()
    with pytest.raises(UserError, match="into=module"):
        load(tmp_path / "part")  # a bare Python instance comes back only into one


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["disassemble"], "upcycle disassemble MODEL"),
        (["disassemble", TEACHER, "--classes", "3,tree"], "'tree'"),
        (["disassemble", TEACHER, "--class", "3"], "Did you mean"),
        (["disassemble", TEACHER, "--alpha", "2"], "alpha must be below 1"),
        (["disassemble", TEACHER, "--method", "kd"], "upcycle distill"),
        (["disassemble", "zoo:digits_techer"], "Did you mean 'digits_teacher'"),
        (["assemble", TEACHER], "two parts or more"),
        (["assemble", TEACHER, TEACHER], "twice|in two|both"),
        (["assemble", TEACHER, "zoo:nothing"], "no zoo model"),
        (["assemble", TEACHER, TEACHER, "--tune"], "needs images"),
        (["assemble", TEACHER, TEACHER, "--data", "digits,digits,digits"], "3 sets for 2 parts"),
        (["reassemble"], "--zoo"),
        (["reassemble", "--zoo", TEACHER], "at least 2 networks"),
        (["reassemble", "--zoo", "zoo:nothing,zoo:mlp"], "no zoo model"),
        (["reassemble", "--zoo", f"{TEACHER},{TEACHER}", "--params", "many"], "'many' is no amount"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    text = say(capsys)
    assert text.count("\n") == 1 and re.search(says, text), text
    assert not any(tmp_path.iterdir())


def test_a_budget_below_the_smallest_says_which_that_is(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reassemble", "--zoo", f"{TEACHER},{parts / 'low'}", *REASSEMBLE, "--params", "1k", "--quiet"]
    assert cli.main([*words, "--out", str(tmp_path / "none")]) == 2
    assert "smallest" in say(capsys)


def test_a_zoo_is_a_folder_of_saved_models(parts: Path, tmp_path: Path) -> None:
    assert members(str(parts)) == [str(parts / "high"), str(parts / "low")]
    assert members("zoo:a, zoo:b") == ["zoo:a", "zoo:b"]
    with pytest.raises(UserError, match="no saved models"):
        members(tmp_path)


def test_what_was_made_is_rebuilt_only_from_its_own_directory() -> None:
    with pytest.raises(UserError, match="directory that the model was saved in"):
        resolve("assembly:resized")


@pytest.mark.parametrize(
    "change",
    [
        {"reference": "assembly:nothing"},
        {"options": {}},
        {"options": {"widths": 7}},
        {"options": {"source": {"reference": "zoo:digits_teacher"}}},
        {"options": {"source": {"reference": "os:system", "options": {}, "input_shape": [1, 8, 8]}}},
        {"options": {"copies": 10**9}},
        {"options": {"more": 1}},
    ],
)
def test_a_record_that_somebody_changed_is_refused(change: dict[str, object], parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(parts / "low" / "model", folder)
    record = json.loads((folder / "architecture.json").read_text())
    options = change.get("options")
    record["options"] = {**record["options"], **options} if options else change.get("options", record["options"])
    record["reference"] = change.get("reference", record["reference"])
    store.write_json(folder / "architecture.json", record)
    store.write_manifest(
        folder, {"weights.safetensors": store.unsealed(folder / store.MANIFEST, dict)["files"]["weights.safetensors"]}
    )
    with pytest.raises(UserError, match=r"damaged|trust|takes no option|no zoo model"):
        load(folder)


def test_a_product_stands_among_its_zoo() -> None:
    def line(name: str, role: str, accuracy: list[float], cost: int) -> dict[str, object]:
        return {"name": name, "role": role, "accuracy": accuracy, "parameters": cost, "macs": cost, "latency": cost}

    rows = [line("a", "member", [0.9], 5), line("b", "member", [0.8], 9), line("c", "product", [0.7], 3)]
    pictures = _fronts(rows)
    assert set(pictures) == {"zoo-parameters", "zoo-macs", "zoo-latency"}
    assert [item["front"] for item in pictures["zoo-macs"]["items"]] == [True, False, True]
    assert _fronts(rows[1:]) == {} and _fronts([line("p", "part", [0.5], 1)] * 3) == {}


# -- data ---------------------------------------------------------------------------------------------------------


def test_only_keeps_classes_in_the_order_asked_for() -> None:
    data = load_data("digits")
    part = data.only(("7", "2"))
    assert part.classes == ("7", "2") and set(part.test.labels.tolist()) == {0, 1}
    sevens = (data.test.labels == 7).nonzero()[:, 0]
    assert torch.equal(part.test.images[part.test.labels == 0], data.test.images[sevens])
    with pytest.raises(UserError, match="There is no class of digits 'x'"):
        data.only(("x",))


def test_joined_sets_have_the_classes_of_all_and_ids_of_their_own() -> None:
    data = tiny_data()
    one, two = data.only(("3", "4")), data.only(("0",))
    both = joined([one, two])
    assert both.classes == ("3", "4", "0") and len(both.train) == len(one.train) + len(two.train)
    assert torch.equal(both.train.labels[len(one.train) :], torch.full((len(two.train),), 2))
    assert len(set(both.train.ids.tolist())) == len(both.train)
    with pytest.raises(UserError, match="'3' is in two"):
        joined([one, one])
    with pytest.raises(UserError, match="--size"):
        joined([one, load_data("digits", size=16).only(("0",))])


def test_labels_follow_the_order_of_the_network() -> None:
    data = load_data("digits")
    turned = relabelled(data, tuple("9876543210"))
    assert torch.equal(turned.test.labels, 9 - data.test.labels)
