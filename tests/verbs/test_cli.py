"""The command line as a person uses it: every command, end to end on real digits."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
import yaml

from tests.corpus import picture_folder
from tests.verbs.test_bad_input import NETS
from upcycle import cli
from upcycle.core import guide, saved, store
from upcycle.core.evaluate import evaluate
from upcycle.core.references import resolve
from upcycle.data import load as load_data
from upcycle.verbs import methods as known

DISTILL = ["distill", "--teacher", "zoo:digits_teacher", "--student", "zoo:convnet_small", "--data", "digits",
           "--recipe.epochs=1"]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, in which imports are looked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    out = tmp_path_factory.mktemp("done") / "run"
    assert cli.main([*DISTILL, "--quiet", "--out", str(out)]) == 0
    return out


def digest(run: Path) -> str:
    return store.digest_of((run / "model" / saved.WEIGHTS).read_bytes())


# -- before anything runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", cli.MAKERS)
def test_every_option_of_a_verb_has_a_help_line_of_its_own(verb: str) -> None:
    setting = importlib.import_module(cli.MAKERS[verb].module).Setting
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(setting, fail_untyped=True)
    helps = {action.dest: action.help or "" for action in parser._actions if action.dest != "help"}
    assert set(helps) >= {f.name for f in dataclasses.fields(setting)} >= {"seed", "seeds", "out"}
    for name, text in helps.items():
        assert len(text.split()) > 2 and not text.startswith("see "), (name, text)
    assert len(set(helps.values())) == len(helps)


def test_a_small_run_imports_nothing_that_takes_longer_than_itself(tmp_path: Path) -> None:
    slow = {"torch._dynamo", "torch._inductor", "sympy", "triton", "lightning_fabric", "sklearn", "scipy"}
    slow |= {"transformers", "timm", "torchvision", "pandas", "pyarrow"}
    code = f"import sys; from upcycle import cli; cli.main(sys.argv[1:]); print(sorted({slow} & set(sys.modules)))"
    words = [*DISTILL, "--quiet", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_one_copy_of_the_teacher_is_asked_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    plain = guide.frozen

    def noted(*words: Any, **kind: Any) -> Any:
        made.append(plain(*words, **kind))
        return made[-1]

    monkeypatch.setattr(guide, "frozen", noted)
    assert cli.main([*DISTILL, "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert len(made) == 1
    teacher = json.loads((tmp_path / "run" / "result.json").read_text())["rows"][0]
    data, model = load_data("digits"), resolve("zoo:digits_teacher")
    measured = evaluate(model.module, data.normalised(model.mean, model.std).test)
    assert teacher["role"] == "teacher" and teacher["accuracy"] == [pytest.approx(measured.accuracy, abs=0.005)]


# -- distill ----------------------------------------------------------------------------------------------------


def test_distill_leaves_a_run(done: Path) -> None:
    for name in ("config.yaml", "metrics.csv", "result.json", "report.html", "checkpoints/index.json"):
        assert (done / name).is_file(), name
    for name in ("weights.safetensors", "architecture.json", "lineage.json", "README.md", "manifest.json"):
        assert (done / "model" / name).is_file(), name
    assert not list(done.rglob("*.tmp"))
    result = store.read_json(done / "result.json")
    teacher, student = result["rows"]
    assert (teacher["role"], student["role"]) == ("teacher", "student")
    assert teacher["accuracy"][0] > 0.97 and teacher["parameters"] > 20 * student["parameters"]
    lineage = store.read_json(done / "model" / "lineage.json")
    assert lineage["parents"][0]["name"] == "digits_teacher" and lineage["licence"]["id"]
    assert result["method"] == "kd" and result["data"]["name"] == "digits"
    assert b"<html" in (done / "report.html").read_bytes()


def test_distill_says_what_it_does(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*DISTILL, "--out=run", "--alone", "--labels=20"]) == 0
    said = capsys.readouterr()
    assert re.search(r"^teacher  digits_teacher: 9\d\.\d% on 297 validation images$", said.out, re.MULTILINE)
    for part in ("digits_teacher  ", "convnet_small alone", "convnet_small by kd", "multiply-adds", "run/report.html"):
        assert part in said.out, part
    assert all(re.search(r"epoch \d+/\d+ ", line) for line in said.err.splitlines())


def test_a_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*DISTILL, "--dry-run"]) == 0
    assert "8 updates" in (said := capsys.readouterr().out) and "Nothing was written" in said
    assert not list(here.iterdir())


def test_a_finished_run_resumes_to_itself(here: Path, done: Path) -> None:
    expected, log = digest(done), (done / "metrics.csv").read_text()
    assert cli.main([*DISTILL, "--quiet", f"--out={done}", "--resume"]) == 0
    assert digest(done) == expected and (done / "metrics.csv").read_text() == log


def test_a_run_is_re_made_from_its_configuration(here: Path, done: Path) -> None:
    assert cli.main(["distill", "--config", str(done / "config.yaml"), "--out=again", "--quiet"]) == 0
    assert digest(here / "again") == digest(done)
    config = yaml.safe_load((here / "again" / "config.yaml").read_text())
    assert config == {**yaml.safe_load((done / "config.yaml").read_text()), "out": "again"}


def test_a_run_is_re_made_from_its_command(here: Path, done: Path) -> None:
    command = store.read_json(done / "result.json")["command"]
    words = command.removeprefix("upcycle ").split()
    assert cli.main([*words, "--out=again", "--quiet"]) == 0
    assert digest(here / "again") == digest(done)


def test_the_last_word_counts(here: Path) -> None:
    Path("c.yaml").write_text(yaml.safe_dump({"student": "zoo:convnet", "recipe": {"epochs": 7, "lr": 0.3}}))
    values, cls = cli.arguments_of("distill", ["--config=c.yaml", "--recipe.epochs=2", "--dry-run"])
    assert (values["recipe"].epochs, values["recipe"].lr, values["dry_run"]) == (2, 0.3, True)
    assert cls.card.name == "kd" and values["student"] == "zoo:convnet"


@pytest.mark.parametrize("word", ["--explain_nodes=17", "--explain_nodes=[17]", "--explain_nodes=17,42"])
def test_a_list_of_one_number_needs_no_brackets(word: str) -> None:
    values, _ = cli.arguments_of("distill", ["--method=spagan", "--student=zoo:spagan", word])
    assert values["explain_nodes"][0] == 17


# -- what can be done with a run --------------------------------------------------------------------------------


def test_evaluate(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(done), "--data=digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == pytest.approx(
        store.read_json(done / "result.json")["rows"][1]["accuracy"][0], abs=0.005
    )
    assert cli.main(["evaluate", "zoo:digits_teacher", "--split", "validation"]) == 0
    said = capsys.readouterr().out
    assert "297 validation images of digits" in said and "by class" in said


def test_predict(here: Path, done: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    (here / "images").mkdir()
    for i in range(40):
        Image.fromarray((found.images[i] * 15.9375).astype("uint8")).save(here / "images" / f"{i:02d}.png")
    assert cli.main(["predict", "zoo:digits_teacher", "images", "--out=p.csv"]) == 0
    rows = list(csv.DictReader((here / "p.csv").open()))
    assert [r["path"] for r in rows] == [f"{i:02d}.png" for i in range(40)]
    assert sum(int(r["class"]) == found.target[i] for i, r in enumerate(rows)) >= 38
    for r in rows:
        p = [float(r[str(k)]) for k in range(10)]
        assert abs(sum(p) - 1) < 1e-4 and float(r["probability"]) == max(p) == p[int(r["class"])]
    assert cli.main(["predict", str(done), "images", "--out=q.csv"]) == 0


def test_report_and_lineage(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done / "report.html").unlink()
    assert cli.main(["report", str(done)]) == 0
    assert "report.html" in capsys.readouterr().out and (done / "report.html").stat().st_size > 5000
    assert cli.main(["lineage", str(done)]) == 0
    said = capsys.readouterr().out
    assert "convnet_small" in said and "digits_teacher" in said and "kd" in said


def test_export(here: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(done), "net.pt2", "--format=torch"]) == 0
    assert "on a held batch" in capsys.readouterr().out
    exported, model = torch.export.load("net.pt2").module(), saved.load(done)
    images = model.example(5)
    with torch.no_grad():
        assert torch.allclose(exported(images), model.module(images), atol=1e-4)


def test_export_to_onnx(here: Path, done: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    assert cli.main(["export", str(done), "net.onnx"]) == 0
    model = saved.load(done)
    images = model.example(5)
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model.module(images)
    assert torch.allclose(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected, atol=1e-4)


def test_methods_advise_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    cards = [method.card for method in known.all_methods()]
    assert cli.main(["methods"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {card.name} " in said and card.summary in said for card in cards) and "works" in said
    assert cli.main(["methods", "kd"]) == 0
    said = capsys.readouterr().out
    assert "**Verdict here:** works: +5.4 points" in said and "`--terms`" in said
    assert cli.main(["methods", "--verb", "treat", "--json"]) == 0
    treat = {method["name"]: method["verdict"] for method in json.loads(capsys.readouterr().out)}
    assert treat["modeldoctor"]["verdict"] == "harms" and {"crt", "tau", "simcal"} < {*treat}
    for words, told in (
        (["methods", "kdd"], "Did you mean 'kd'"),
        (["methods", "--verb", "predict"], "verb with methods"),
    ):
        assert cli.main(words) == 2 and told in capsys.readouterr().err
    assert cli.main(["advise", "--data=few"]) == 0
    assert "--method netgraft" in capsys.readouterr().out
    assert cli.main(["advise", "--data", "unlabelled", "--teacher", "predictions"]) == 0
    assert "--method kd" in capsys.readouterr().out
    assert cli.main(["doctor"]) in (0, 1)
    assert "torch" in capsys.readouterr().out


# -- one's own --------------------------------------------------------------------------------------------------


def test_models_and_images_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "nets.py").write_text(NETS)
    sys.path.insert(0, str(here))
    try:
        import nets  # type: ignore[import-not-found]

        torch.manual_seed(1)
        torch.save(nets.net(3).state_dict(), "trained.pt")
    finally:
        sys.path.remove(str(here))
    picture_folder(here / "pictures")
    words = ["distill", "--teacher=nets:net", "--teacher_weights=trained.pt", "--student=zoo:convnet_small",
             "--data=./pictures", "--recipe.epochs=1", "--quiet"]  # fmt: skip
    assert cli.main([*words, "--teacher_mean=[0.4]", "--teacher_std=[0.2]", "--out=first"]) == 0
    assert saved.load(here / "first").classes == ("cat", "dog", "owl")
    # What came out is a teacher and a student again.
    again = ["distill", "--data=./pictures", "--recipe.epochs=1", "--quiet"]
    assert cli.main([*again, "--teacher=first", "--student=first", "--out=second"]) == 0
    again += ["--teacher=second", "--student=second"]
    assert cli.main([*again, "--student_weights=first/model/weights.safetensors", "--out=third"]) == 0
    tree = store.read_json(here / "third" / "model" / "lineage.json")
    assert tree["parents"][0]["parents"][0]["digest"] == store.tensor_digest(
        saved.load(here / "first").module.state_dict()
    )
    assert digest(here / "second") != digest(here / "first") != digest(here / "third")


PLUGIN = '''
"""KD that softens less and less: the temperature falls from its start to 1."""

from dataclasses import dataclass, field

from torch import nn

from upcycle import Card, Method, Model, Needs, Recipe, Run, kd_loss


@dataclass(kw_only=True, eq=False, repr=False)
class CoolingKD(Method):
    """L = T² KL(softmax(z_t / T) || softmax(z_s / T)), T falling from ``start`` to 1.

    Args:
        teacher: a trained classifier.
        student: any network with the same classes.
        start: the first temperature.
        recipe: ordinary training.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    start: float = 8.0
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=4, batch_size=64))

    card = Card(name="coolingkd", title="Cooling KD", paper="made up here", verb="distill",
                needs=Needs(data="unlabelled", teacher="predictions"), summary="KD that cools down.",
                cost="as KD", published="nowhere")

    def fit(self, run: Run, data):
        teacher = run.frozen(self.model("teacher", data), data.validation)
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        for epoch in run.epochs(self.recipe.epochs):
            student.train()
            t = self.start ** (1 - epoch / self.recipe.epochs)
            for images, _, _ in run.batches(data.train, self.recipe.batch_size, save_within=True):
                self.recipe.schedule_rate(optimizer, run.progress)
                loss = kd_loss(student(images), teacher(images), t)
                run.backward(loss)
                run.update(optimizer)
                run.track(loss=loss)
            run.evaluate(student, data.validation)
        return run.plain(student)
'''


class Killed(BaseException):
    """As sudden as a kill."""


def test_a_method_from_one_file(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from upcycle import Run

    monkeypatch.setattr(known, "_plugins", {})
    (here / "my_method.py").write_text(PLUGIN)
    plugin = ["--plugin", "my_method.py"]
    assert cli.main(["methods", *plugin]) == 0
    assert "coolingkd" in capsys.readouterr().out
    words = ["distill", *plugin, "--method=coolingkd", "--teacher=zoo:digits_teacher", "--student=zoo:convnet_small",
             "--start=6", "--recipe.epochs=2", "--recipe.batch_size=64", "--save_every=0", "--quiet"]  # fmt: skip
    assert cli.main([*words, "--out=whole"]) == 0
    assert "Cooling KD" in (here / "whole" / "report.html").read_text()
    updated, left = Run.update, 21

    def kill(self: Run, *args: object, **kwargs: object) -> None:
        nonlocal left
        updated(self, *args, **kwargs)  # type: ignore[arg-type]
        left -= 1
        if not left:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "update", kill)
        cli.main([*words, "--out=killed"])
    assert not (here / "killed" / "model").exists()
    assert cli.main([*words, "--out=killed", "--resume"]) == 0
    assert digest(here / "killed") == digest(here / "whole")
    known._plugins.clear()  # the configuration says where the method is
    again = ["distill", "--config=whole/config.yaml", "--out=again", "--quiet"]
    capsys.readouterr()
    assert cli.main(again) == 2
    assert "names code to run" in (said := capsys.readouterr().err) and "--trust my_method" in said
    assert cli.main([*again, "--trust=my_method"]) == 0
    assert digest(here / "again") == digest(here / "whole")
    assert cli.main(["distill", *plugin, "--method=coolingkd", "--student=zoo:convnet_small", "--strat=2"]) == 2
    assert "Did you mean '--start'" in capsys.readouterr().err
    assert cli.main(["distill", *plugin, "--method=coolingkd", "--student=zoo:convnet_small"]) == 2
    assert "coolingkd needs a teacher" in capsys.readouterr().err


def test_plugins_that_do_not_work(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, part in (("x = 1", "defines no method"), ("import nonexistent_package", "does not import"),
                          ("def f(:", "does not import: SyntaxError")):  # fmt: skip
        (here / "plugin.py").write_text(content)
        assert cli.main(["methods", "--plugin=plugin.py"]) == 2
        said = capsys.readouterr().err
        assert part in said and said.count("\n") == 1, said


def test_advise_asks_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter(["few", "", "conv", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert cli.main(["advise"]) == 0
    assert "netgraft" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert cli.main(["advise"]) == 2
    assert "--data none, few" in capsys.readouterr().err
