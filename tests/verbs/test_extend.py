"""The verb: tasks one after another from the command line, extended again, resumed, bounded, reported, refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import upcycle
from tests.settings import tiny_data, tiny_model, tiny_stream
from upcycle import cli
from upcycle.continual.protocol.past import Past
from upcycle.core.errors import UserError
from upcycle.core.run import Run
from upcycle.core.store import read_json, tensor_digest
from upcycle.verbs.adapt import Setting as OtherSetting
from upcycle.verbs.extend import FIGURES, Setting, extend
from upcycle.verbs.methods import all_methods

NET = "zoo:convnet_small"
SHORT = ["--recipe.epochs=1", "--recipe.batch_size=16", "--replay.images=20", "--quiet"]
QUICK: dict[str, Any] = {"recipe": {"epochs": 1, "batch_size": 16, "lr": 0.05}, "quiet": True}


def folders(root: Path, tasks: list[list[int]], n: int = 12, side: int = 8) -> Path:
    """A stream of digits as PNG files: TASK/CLASS/IMAGE, the class named after the digit."""
    data = upcycle.load_data("digits").train
    for t, digits in enumerate(tasks):
        for digit in digits:
            place = root / f"task{t}" / f"digit{digit}"
            place.mkdir(parents=True)
            for i, pixels in enumerate(data.images[data.labels == digit][:n]):
                image = Image.fromarray(pixels[..., 0].numpy())
                (image if side == 8 else image.resize((side, side))).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on six digits, two at a time, in folders."""
    here = tmp_path_factory.mktemp("extend")
    folders(here / "first", [[0, 1], [2, 3], [4, 5]])
    assert cli.main(["extend", NET, f"--stream=folders:{here / 'first'}", f"--out={here / 'run'}", *SHORT]) == 0
    return here / "run"


def digest(run: Path) -> str:
    return tensor_digest(upcycle.load(run).module.state_dict())


def losses(run: Path) -> str:
    return (run / "metrics.csv").read_text()


def test_what_a_run_leaves(done: Path) -> None:
    for name in ("config.yaml", "result.json", "report.html", "model/weights.safetensors", "memory/state.json",
                 "memory/state.safetensors", "pictures/accuracy_class.json", "pictures/memory.json"):  # fmt: skip
        assert (done / name).is_file(), name
    result = read_json(done / "result.json")
    assert [line["role"] for line in result["rows"]] == ["lower bound", "upper bound", "product"]
    assert result["figure"] == FIGURES["class"] and set(result["scores"]) == {"finetune", "joint", "derpp"}
    for line, (name, scores) in zip(result["rows"], result["scores"].items(), strict=True):
        matrix = scores["matrices"]["class"]
        assert len(matrix) == (1 if name == "joint" else 3)
        # The mean over tasks of the last row, not the share of all test images.
        assert line["accuracy"] == [pytest.approx(sum(matrix[-1]) / 3)]
        assert line["shown"]["told the task"] == f"{100 * scores['scores']['task']['average accuracy']:.1f} %"
        assert line["protocol"] == scores["protocol"] and "class-incremental" in scores["protocol"]
    assert [line["shown"]["passes"] for line in result["rows"]] == ["1", "1", "3"]
    assert [bool(line["shown"]["kept"]) for line in result["rows"]] == [False, False, True]
    assert all("forward transfer" not in line["shown"] for line in result["rows"])  # classes to come: not measured
    assert "memory 20 images with logits" in result["sentence"] and "fine-tuning" in result["sentence"]
    assert len(result["rows"][-1]["per_class"]) == 6 == len(result["data"]["classes"])
    tree = read_json(done / "model" / "lineage.json")
    assert tree["parents"] == [] and tree["data"]["name"].startswith("folders:")
    assert tree["metrics"] == {FIGURES["class"]: [pytest.approx(result["rows"][-1]["accuracy"][0], abs=1e-5)]}


def test_the_report_shows_the_figures(done: Path) -> None:
    page, result = (done / "report.html").read_text(), read_json(done / "result.json")
    for text in ("Class-incremental accuracy", "Told the task", "Forgetting", "Kept", "Passes", "lower bound",
                 "Accuracy after each task", "What is in the memory", "What is left of each task"):  # fmt: skip
        assert text in page, text
    for line in result["rows"]:
        assert f"{100 * line['accuracy'][0]:.1f} %" in page
    memory = read_json(done / "pictures" / "memory.json")
    assert [item["label"].split()[0] for item in memory["items"]] == [
        c for c in result["data"]["classes"] if any(i["label"].startswith(c) for i in memory["items"])
    ]
    state = Past.load(done / "memory").state["buffer"]["labels"]
    counted = sum(int(item["label"].split("(")[1].rstrip(")")) for item in memory["items"])
    assert counted == len(state) == 20


def test_extended_again_and_a_third_time(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = folders(tmp_path / "second", [[6, 7]])
    words = ["extend", str(done), f"--stream=folders:{second}", f"--out={tmp_path / 'again'}", *SHORT[:-1]]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "goes on after 3 tasks that it learnt by derpp: digit0" in said
    assert "6 classes were learnt before" in said
    model = upcycle.load(tmp_path / "again")
    assert model.classes == tuple(f"digit{i}" for i in range(8))
    past = Past.load(tmp_path / "again" / "memory")
    assert past.tasks == ((0, 1), (2, 3), (4, 5), (6, 7)) and len(past.streams) == 2
    assert past.state["buffer"]["seen"] > Past.load(done / "memory").state["buffer"]["seen"]
    assert set(past.state["buffer"]["labels"].tolist()) & set(range(6))  # the old images are there still
    tree = read_json(tmp_path / "again" / "model" / "lineage.json")
    assert tree["parents"][0]["digest"] == digest(done) and tree["parents"][0]["role"] == "initial weights"
    third = folders(tmp_path / "third", [[8, 9]])
    last = extend(tmp_path / "again" / "model", stream=f"folders:{third}", replay={"images": 20}, control=False,
                  out=tmp_path / "last", **QUICK)  # fmt: skip
    assert len(last.model.classes) == 10 and len(last.rows) == 1
    # The very names of what it has learnt are refused, and so is another method.
    assert (
        cli.main(["extend", str(done), f"--stream=folders:{done.parent / 'first'}", f"--out={tmp_path / 'x'}", *SHORT])
        == 2
    )
    assert "learnt already" in capsys.readouterr().err
    words = ["extend", str(done), "--method=er", f"--stream=folders:{third}", f"--out={tmp_path / 'x'}", *SHORT]
    assert cli.main(words) == 2
    assert "go on with --method derpp" in capsys.readouterr().err
    assert cli.main([*words[:2], *words[3:-3], "--replay.images=30", "--quiet"]) == 2
    assert "--replay.images 20" in capsys.readouterr().err


def test_a_damaged_memory_is_named(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = folders(tmp_path / "second", [[6, 7]])
    words = ["extend", str(done), f"--stream=folders:{second}", f"--out={tmp_path / 'x'}", *SHORT]
    for name in ("state.json", "state.safetensors"):
        file = done / "memory" / name
        whole = file.read_bytes()
        for damaged in (whole[:-30] + bytes([whole[-30] ^ 4]) + whole[-29:], whole[: len(whole) // 2], b""):
            file.write_bytes(damaged)
            assert cli.main(words) == 2
            said = capsys.readouterr().err
            assert name in said and said.count("\n") == 1, said
        file.write_bytes(whole)
    assert not (tmp_path / "x").exists()


class Killed(BaseException):
    """As sudden as a kill."""


def test_killed_and_resumed_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["extend", NET, "--stream=splits:digits/5", "--few=12", "--save_every=0", *SHORT]
    assert cli.main([*words, f"--out={tmp_path / 'whole'}"]) == 0
    updated = Run.update
    for after in (7, 14, 24):  # in the method, in fine-tuning, in joint training
        left = after

        def kill(self: Run, *args: object, **kwargs: object) -> None:
            nonlocal left
            updated(self, *args, **kwargs)  # type: ignore[arg-type]
            left -= 1
            if not left:
                raise Killed

        out = tmp_path / str(after)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Run, "update", kill)
            cli.main([*words, f"--out={out}"])
        assert not (out / "model").exists() and not (out / "memory").exists()
        assert cli.main([*words, f"--out={out}", "--resume", "--seed=3"]) == 2  # from the first step on
        assert cli.main([*words, f"--out={out}", "--resume"]) == 0
        assert digest(out) == digest(tmp_path / "whole") and losses(out) == losses(tmp_path / "whole")
        files = [(place / "memory" / "state.safetensors").read_bytes() for place in (out, tmp_path / "whole")]
        assert files[0] == files[1]


def test_a_resumed_run_keeps_seed_order_and_stream(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extend", NET, f"--stream=folders:{done.parent / 'first'}", f"--out={done}", *SHORT, "--resume"]
    before = sorted(str(p) for p in done.rglob("*"))
    for change, part in (("--seed=1", "seed: 0"), ("--shuffle=3", "shuffle: None"), ("--few=4", "few"),
                         ("--stream=splits:digits/5", "stream"), ("--scenario=task", "scenario")):  # fmt: skip
        assert cli.main([*words, change]) == 2
        said = capsys.readouterr().err
        assert part in said and "keeps its configuration" in said, said
        assert sorted(str(p) for p in done.rglob("*")) == before
    assert cli.main(words) == 0  # a finished one comes to itself


def test_controls_change_nothing_and_can_be_left_out(tmp_path: Path) -> None:
    model, data = tiny_model("tiny", 3), tiny_stream()(160)
    options = {"stream": data, "method": "er", "replay": {"images": 20}, **QUICK}
    found = [extend(model, out=tmp_path / str(control), control=control, **options)
             for control in (True, False)]  # fmt: skip
    assert [len(result.rows) for result in found] == [3, 1]
    assert len({tensor_digest(result.model.module.state_dict()) for result in found}) == 1
    assert not (tmp_path / "False" / "more").exists()
    for method, roles in (("finetune", ["upper bound", "product"]), ("joint", ["lower bound", "product"])):
        result = extend(model, stream=data, method=method, out=tmp_path / method, **QUICK)
        assert [line["role"] for line in result.rows] == roles


@pytest.mark.parametrize(
    ("reference", "scenario"),
    [("rotated:digits/2", None), ("permuted:digits/2", None), ("splits:digits/2", "task"), ("drifting:digits", None)],
)
def test_every_scenario(reference: str, scenario: str | None, tmp_path: Path) -> None:
    options = {"scenario": scenario, "few": 10, "method": "er", "replay": {"images": 20}, **QUICK}
    result = extend("zoo:mlp100", stream=reference, out=tmp_path, **options)
    record = read_json(tmp_path / "result.json")
    (kind,) = {scores["scenario"] for scores in record["scores"].values()}
    assert record["figure"] == FIGURES[kind] and len(result.rows) == 3
    # Told the task, the answer of one network depends on it: there is no confusion of all classes to show.
    assert ("per_class" in result.rows[-1]) == (kind != "task")
    assert ("forward transfer" in result.rows[-1]["shown"]) == (kind in ("task", "domain"))


def test_where_the_network_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry: dict[str, Any] = {"stream": "splits:digits/5", "dry_run": True, "out": tmp_path / "run"}
    first = extend(NET, **dry).model
    again, other = extend(NET, **dry).model, extend(NET, **dry, seed=1).model
    digests = [tensor_digest(m.module.state_dict()) for m in (first, again, other)]
    assert digests[0] == digests[1] != digests[2] and first.classes == tuple("0123456789")
    assert "fresh weights" in capsys.readouterr().out
    trained, source = extend("zoo:digits_teacher", **dry).model, upcycle.resolve("zoo:digits_teacher")
    assert all(
        torch.equal(a, b)
        for a, b in zip(trained.module.state_dict().values(), source.module.state_dict().values(), strict=True)
    )
    assert "goes on from its trained weights" in capsys.readouterr().out
    fresh = extend("zoo:digits_teacher", **dry, weights="fresh").model
    assert tensor_digest(fresh.module.state_dict()) != tensor_digest(source.module.state_dict())
    # Classes of one's own: the classifier begins anew, what is below it stays.
    place = folders(tmp_path / "own", [[0, 1], [2, 3]])
    mine = extend("zoo:digits_teacher", **{**dry, "stream": f"folders:{place}"}).model
    assert mine.classes == tuple(f"digit{i}" for i in range(4)) and torch.equal(
        mine.module.block1[0].weight, source.module.block1[0].weight
    )
    assert float(mine.module.linear.weight.abs().max()) == 0
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert extend(bare, **dry).model.module is not bare
    assert not (tmp_path / "run").exists()


def test_an_estimate_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extend", NET, "--recipe.epochs=2", "--recipe.batch_size=100", f"--out={tmp_path / 'run'}", "--dry-run"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    n = torch.bincount(upcycle.load_data("digits").train.labels).view(5, 2).sum(1)  # images of each task
    updates = 2 * int((n / 100).ceil().sum())
    assert (
        f"3 run(s) of {updates:,} updates" in said and "Nothing was written" in said and not (tmp_path / "run").exists()
    )


def test_no_option_of_a_method_is_one_of_the_verb() -> None:
    own = {f.name for f in dataclasses.fields(Setting)} | {"model", "method"}
    for method in all_methods():
        if method.card.verb == "extend":
            assert not own & set(method.options()), method.card.name
    assert "data" not in own and "data" in {f.name for f in dataclasses.fields(OtherSetting)}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "extend needs a network: upcycle extend MODEL"),
        ([""], "extend needs a network"),
        (["zoo:convnet_smal"], "Did you mean 'convnet_small'"),
        ([NET, "--method=kd"], "kd is run by upcycle distill, not extend"),
        ([NET, "--method=derp"], "Did you mean 'derpp'"),
        ([NET, "--data=digits"], "There is no option '--data'"),
        ([NET, "--stream=split:digits/5"], "Did you mean 'splits'"),
        ([NET, "--stream=digits"], "A stream is written KIND:DATA/TASKS"),
        ([NET, "--stream=splits:digit/5"], "Did you mean 'digits'"),
        ([NET, "--stream=splits:digits/11"], "do not divide into 11 tasks"),
        ([NET, "--stream=splits:digits/5,3"], "adds up to 8 classes, and digits has 10"),
        ([NET, "--stream=splits:digits/0"], "splits:digits/0 has no task; each number behind the / is 1 or more"),
        ([NET, "--stream=splits:digits/5,0,5"], "has a task without classes"),
        ([NET, "--stream=splits:digits"], "needs the number of its tasks"),
        ([NET, "--stream=drifting:digits/3"], "leave out /3"),
        ([NET, "--stream=permuted:digits/3", "--shuffle=1"], "leave out shuffle"),
        ([NET, "--stream=permuted:digits/3", "--scenario=class"], "its scenario is domain"),
        ([NET, "--scenario=clas"], "Did you mean 'class'"),
        ([NET, "--few=1"], "few takes at least 2"),
        ([NET, "--replay.images=7"], "a memory of 7 images cannot hold one of each of the 10 classes"),
        ([NET, "--replay.images=-1"], "images must not be negative"),
        ([NET, "--weights=nowhere.safetensors"], "weights must be pretrained, fresh or a file. There is no"),
        ([NET, "--weights=pretrained"], "has no trained weights"),
        ([NET, "--stream=folders:nowhere"], "There is no folder nowhere"),
        ([NET, "--stream=folders:empty"], "There is no folder in empty"),
        ([NET, "--stream=folders:sizes"], "--size"),
        ([NET, "--stream=folders:twice"], "has the class 'digit1' that an earlier task had"),
        ([NET, "--stream=folders:unlabelled"], "1 class, and nothing was learnt before"),
        ([NET, "--stream=folders:twice", "--scenario=domain"], "lacks some of the classes"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_sentence(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if any("folders:" in word for word in words):
        (tmp_path / "empty").mkdir()
        folders(tmp_path / "twice", [[0, 1], [1, 2]], n=6)
        folders(tmp_path / "sizes", [[0, 1]], n=6)
        other = folders(tmp_path / "other", [[2, 3]], n=6, side=10)
        (other / "task0").rename(tmp_path / "sizes" / "task1")
        (tmp_path / "unlabelled").mkdir()
        folders(tmp_path / "one", [[0]])
        (tmp_path / "one" / "task0" / "digit0").rename(tmp_path / "unlabelled" / "task0")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    assert cli.main(["extend", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("upcycle: ") and said.count("\n") == 1 and says in said, said
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_mistakes_in_python(tmp_path: Path) -> None:
    data = tiny_stream()(160)
    with pytest.raises(UserError, match="leave out shuffle"):
        extend(tiny_model("tiny", 3), stream=data, shuffle=1, out=tmp_path / "run")
    with pytest.raises(UserError, match="leave out weights='fresh'"):
        extend(tiny_model("tiny", 3), stream=data, weights="fresh", out=tmp_path / "run")
    with pytest.raises(UserError, match="tasks 0 to 4, so there is no task 5"):
        data.task(5)
    blind = dataclasses.replace(data.base, test=data.base.test.subset(torch.arange(0)))
    unmeasured = dataclasses.replace(data, base=blind, make=lambda t: blind)
    with pytest.raises(UserError, match="no labelled test images"):
        extend(tiny_model("tiny", 3), stream=unmeasured, out=tmp_path / "run")
    with pytest.raises(UserError, match="There is no option of derpp 'data'"):
        extend(tiny_model("tiny", 3), data=tiny_data(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_was_learnt_before_competes_in_every_answer() -> None:
    from upcycle.continual import Finetune
    from upcycle.continual.protocol.scores import Scores
    from upcycle.continual.protocol.tasks import tasks

    data = tiny_stream()(160)
    assert data.before == () and data.after(("old", "older")).before == (0, 1)
    later = data.after(("old", "older"))
    # A network that only ever answers with an old class knows nothing of the new ones, told the task or not.
    old = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))
    nn.init.zeros_(old[1].weight)
    old[1].bias.data = torch.tensor([1.0] + [0.0] * 11)
    net = dataclasses.replace(tiny_model("old", 0), module=old, classes=later.classes)

    run = Run(None)
    for _ in tasks(Finetune(student=net), run, later, net):
        pass
    scores: Scores = run.left["scores"]
    assert all(a == 0 for row in scores.matrices["class"] for a in row if a is not None)
    assert any(a for row in scores.matrices["task"] for a in row if a is not None)


def test_a_run_is_re_made_from_its_command_and_its_configuration(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = read_json(done / "result.json")["command"]
    assert command.startswith(f"upcycle extend {NET} ") and "--stream folders:" in command
    for i, words in enumerate(
        (command.removeprefix("upcycle ").split(), ["extend", "--config", str(done / "config.yaml")])
    ):
        assert cli.main([*words, f"--out={tmp_path / str(i)}", "--quiet"]) == 0
        assert digest(tmp_path / str(i)) == digest(done)
    config = json.loads(json.dumps(read_json(done / "result.json")["config"]))
    assert config["stream"].startswith("folders:") and "data" not in config


def test_few_updates_a_task_are_said(tmp_path: Path) -> None:
    """Two batches a task leave a network nowhere near what it could learn; twenty are not remarked upon."""

    def notes(epochs: int) -> list[str]:
        recipe = {"epochs": epochs, "batch_size": 20}
        options = {"few": 20, "control": False, "quiet": True, "recipe": recipe}
        made = extend(NET, stream="splits:digits/5", out=tmp_path / str(epochs), **options)
        return [note for note in read_json(made.directory / "result.json")["notes"] if "updates" in note]

    assert notes(10) == []
    (note,) = notes(1)
    assert note.startswith("Each task was learnt in 2 updates on average") and "--recipe.epochs" in note


def test_a_network_that_was_told_the_task_says_so_where_it_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of its classes compete then that did not before, so a lower figure has a reason."""
    options = {"few": 20, "control": False, "quiet": True, "method": "finetune", "recipe": {"epochs": 2}}
    for scenario in ("task", "class"):
        extend(NET, stream="splits:digits/5", scenario=scenario, out=tmp_path / scenario, **options)
    accuracy = read_json(tmp_path / "task" / "result.json")["rows"][-1]["accuracy"][0]

    def said(run: str) -> list[str]:
        return [note for note in upcycle.evaluate(tmp_path / run).notes if "task" in note]

    (note,) = said("task")
    assert f"with the task of each sample told, {accuracy:.1%} right" in note and "all its 10 classes" in note
    assert said("class") == []
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    assert "was measured with the task" in upcycle.predict(tmp_path / "task", tmp_path / "black.png").text()
    capsys.readouterr()
    stream = f"--stream=folders:{folders(tmp_path / 'further', [[0, 1]])}"
    words = ["extend", str(tmp_path / "task"), "--method=finetune", stream, "--scenario=task", "--dry_run"]
    assert cli.main(words) == 0 and "task of each sample" not in capsys.readouterr().out  # it is told again there
