"""The documentation is true: its commands parse, its examples run, its tables are those of cards and results."""

from __future__ import annotations

import doctest
import functools
import importlib
import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from scripts import photographs

import upcycle
from tests import documented
from tests.settings import TinyNet
from upcycle import cli
from upcycle.core.store import tensor_digest
from upcycle.verbs import methods

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example_method.py"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "src/upcycle/distillation/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"(?:<!-- test: (\w+) ?(\S*) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str, str, str]]:
    """The fenced blocks of a page: what the test does with it, a file name, the language, the text."""
    return BLOCK.findall(page.read_text())


def upcycle_commands(text: str) -> list[list[str]]:
    """The words after ``upcycle`` of each command of a console block."""
    lines = [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("$ ")]
    return [words[1:] for words in lines if words[0] == "upcycle"]


@pytest.fixture
def script() -> ModuleType:
    return _import(ROOT / "scripts" / "docs.py", "docs_script")


def _import(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plugins() -> Iterator[None]:
    """Methods that a test adds are gone after it."""
    before = dict(methods._plugins)
    yield
    methods._plugins.clear()
    methods._plugins.update(before)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real pictures, 60 of each of three classes."""
    place = tmp_path_factory.mktemp("real") / "photos"
    photographs.write(place, 60)
    return place


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: None, photos: Path) -> Path:
    """An empty directory to work in, with what the pages take for granted: photographs of three classes, recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    (tmp_path / "docs").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "docs")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copytree(photos, tmp_path / "photos")
    return tmp_path


# -- commands and examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_on_the_page_parses(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk / "runs" / "first").mkdir(parents=True)
    (desk / "runs" / "first" / "config.yaml").write_text("method: kd\nstudent: zoo:convnet_small\n")
    for verb in cli.SUMMARY.keys() - cli.MAKERS.keys():  # everything but the work itself
        module, name = cli.function_of(verb)
        monkeypatch.setattr(module, name, functools.wraps(getattr(module, name))(lambda **values: 0))
    for _, _, language, text in blocks(page):
        for words in upcycle_commands(text) if language == "console" else ():
            if words[0] in cli.MAKERS:
                values, method = cli.arguments_of(words[0], words[1:])
                assert values["method"] is method
            else:
                assert cli.main(words) == 0, words


def aside(said: str) -> list[str]:
    """Lines beside the output that are no progress."""
    return [line for line in said.splitlines() if not re.fullmatch(r"([\w/, -]+  )?epoch \d+/\d+  \d+ %  .*", line)]


@pytest.mark.parametrize("page", [p for p in PAGES if "<!-- test: " in p.read_text()], ids=page_id)
def test_what_is_marked_on_the_page_runs_and_shows_success(
    page: Path, desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.name == "graphs.md":
        pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra graphs)")
    figures: dict[str, documented.Rows] = {}
    names: dict[str, Any] = {"__name__": "__main__"}
    for what, name, language, text in blocks(page):
        if what == "file":
            (desk / name).write_text(text)
            monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
            if name == "my_models.py":  # over photographs
                documented.train(importlib.import_module("my_models").large(), desk / "photos", desk / "large.pt")
        elif what == "run" and language == "console":
            for words in upcycle_commands(text):
                words = documented.offline(words, desk)
                capsys.readouterr()
                assert cli.main(words) == 0, (words, capsys.readouterr().err)
                said = capsys.readouterr()
                assert aside(said.err) == [], words
                figures |= documented.printed(words, said.out, desk)
        elif what == "run":
            assert language == "python"
            exec(compile(text, page.name, "exec"), names)
            figures |= documented.bound(names)
    assert aside(capsys.readouterr().err) == []
    figures |= documented.runs(desk)
    bars = documented.BARS.get(page_id(page), {})
    assert figures.keys() == bars.keys(), "every figure has a bar, and every bar a figure"
    for name, bar in bars.items():
        bar.check(figures[name], f"{page_id(page)}, {name}")


def test_every_mark_belongs_to_a_block() -> None:
    for page in PAGES:
        assert page.read_text().count("<!-- test: ") == sum(bool(what) for what, *_ in blocks(page)), page


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_parses(recipe: Path) -> None:
    name = yaml.safe_load(recipe.read_text())["method"]
    (verb,) = (m.card.verb for m in methods.all_methods() if m.card.name == name)
    values, method = cli.arguments_of(verb, ["--config", str(recipe)])
    assert method.card.name == name
    assert values["recipe"].epochs >= 1 if "recipe" in values else values["method"]


# -- the worked example -----------------------------------------------------------------------------------------


def test_the_example_method_is_listed_runs_resumes_and_reports(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "--plugin", "docs/example_method.py", "--method", "logits", "--teacher", "zoo:digits_teacher",
             "--student", "zoo:convnet_small", "--data", "digits", "--recipe.epochs", "1"]  # fmt: skip
    assert cli.main(["methods", "--plugin", "docs/example_method.py"]) == 0
    assert re.search(r"^  logits +\S", capsys.readouterr().out, re.MULTILINE)
    weights = []
    for more in (["--out", "a"], ["--out", "a", "--resume"], ["--out", "b"]):
        assert cli.main([*words, *more]) == 0
        weights.append((desk / more[1] / "model" / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]
    assert "Do Deep Nets Really Need to be Deep?" in (desk / "a" / "report.html").read_text()


def test_the_example_loss_is_what_it_says(plugins: None) -> None:
    methods.add_plugin(EXAMPLE)
    logit_loss = importlib.import_module("upcycle_plugin_example_method").logit_loss
    g = torch.Generator().manual_seed(0)
    z_s, z_t = (torch.randn(5, 7, generator=g, dtype=torch.float64) for _ in range(2))
    z_s.requires_grad_()
    assert logit_loss(z_t, z_t) == 0
    shifted = logit_loss(z_s + torch.randn(5, 1, generator=g, dtype=torch.float64), z_t)
    torch.testing.assert_close(shifted, logit_loss(z_s, z_t))
    (gradient,) = torch.autograd.grad(logit_loss(z_s, z_t), z_s)
    difference = z_s.detach() - z_t
    torch.testing.assert_close(gradient, (difference - difference.mean(1, keepdim=True)) / 5)


def test_the_example_method_leaves_the_teacher_alone(plugins: None) -> None:
    from tests.settings import tiny_data, tiny_model
    from upcycle.core.run import Run

    (method,) = methods.add_plugin(EXAMPLE)
    teacher, student = tiny_model("teacher", 7), tiny_model("student", 8)
    before = tensor_digest(teacher.module.state_dict())
    net = method(teacher=teacher, student=student).fit(Run(None), tiny_data(64))  # type: ignore[call-arg]
    assert isinstance(net, TinyNet) and not net.training
    assert tensor_digest(teacher.module.state_dict()) == before


def entries() -> list[str]:
    """Entries of the page of Python."""
    return re.findall(r"^::: (.+)$", (ROOT / "docs" / "python-api.md").read_text(), re.MULTILINE)


def found_at(place: str) -> Any:
    module, _, last = place.rpartition(".")
    return getattr(importlib.import_module(module), last)


def test_the_python_page_has_every_public_name() -> None:
    shown = [found_at(place) for place in entries()]  # each of which exists
    public = {name: getattr(upcycle, name) for name in upcycle.__all__}
    public |= {method.__name__: method for method in methods.all_methods()}
    missing = [name for name, thing in public.items() if not any(thing is one for one in shown)]
    assert not missing, f"docs/python-api.md lacks {', '.join(missing)}"


def test_the_python_page_has_no_name_twice() -> None:
    assert len(entries()) == len(set(entries()))


# -- generated parts --------------------------------------------------------------------------------------------


def test_the_generated_parts_are_up_to_date(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--check"]) == 0, capsys.readouterr().out + "Run python -m scripts.docs."


def test_a_stale_block_is_found_and_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- begin: commands -->\nstale text\n<!-- end: commands -->\nb\n")
    monkeypatch.setattr(script, "documents", lambda: [page])
    monkeypatch.setattr(script, "files", lambda: {tmp_path / "plots" / "kd.svg": "<svg/>"})
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.main(["--check"]) == 1 and "stale text" in page.read_text()
    assert script.main([]) == 0 and script.main(["--check"]) == 0
    assert (tmp_path / "plots" / "kd.svg").read_text() == "<svg/>"
    text = page.read_text()
    assert (
        text.startswith("a\n")
        and text.endswith("-->\nb\n")
        and "`upcycle distill`" in text
        and "stale text" not in text
    )


@pytest.mark.parametrize(
    "text",
    [
        "<!-- begin: nonsense -->\n<!-- end: nonsense -->",
        "<!-- begin: methods -->\n",
        "<!-- begin: methods -->\n<!-- end: claims -->",
    ],
)
def test_a_block_that_nobody_can_fill_is_an_error(script: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="block"):
        script.filled(text)


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (" \n", "empty"),
        ("a\n\n| a | b |\n| --- | --- |\n\nb\n", "without a row"),
        ("| a |\n| --- |\n| {'ms': 3.78} |\n", "dictionary"),
    ],
)
def test_a_block_that_shows_nothing_or_shows_python_is_an_error(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, made: str, fault: str
) -> None:
    monkeypatch.setitem(script.BLOCKS, "methods", lambda: made)
    with pytest.raises(ValueError, match=fault):
        script.filled("<!-- begin: methods -->\n<!-- end: methods -->")
    fenced = "```python\nx = {'a': 1}\n```\n"
    assert script.shown("methods", fenced) == fenced


def test_claims_show_what_was_measured_and_what_it_decides(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upcycle.claims import find
    from upcycle.core.store import write_json
    from upcycle.verbs.prove import Proof, Seed

    claim = find("vam")
    arms = {"KD (%)": [80.0, 81.0, 82.0], "VAM + KD (%)": [79.0, 80.0, 81.2],
            "extra parameters while training (%)": [0.5] * 3, "folding error (relative)": [1e-7] * 3}  # fmt: skip
    seeds = [Seed(seed=i, seconds=30.0, date="2026-01-02", commit="abc", machine={}, versions={}) for i in range(3)]
    write_json(tmp_path / "prove_vam.json", Proof(claim=claim, measured=arms, seeds=seeds).record())
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    rows = {row.split("|")[1].strip(): row for row in script.claims().splitlines() if "|" in row}
    assert "| harms | -0.93 (-1.22 to -0.65) points | 3 |" in rows["[`vam`](methods/vam.md)"]
    assert (
        "not measured yet" in rows["[`kd`](methods/kd.md)"] and "ER over training on" in rows["[`er`](methods/er.md)"]
    )
    assert set(script.verdicts()) == {"vam"} and script.verdicts()["vam"]["verdict"] == "harms"
    shown = script.claim_page("vam")
    assert "80.00, 81.00, 82.00" in shown and "1 min 30 s" in shown and "(../assets/claims/vam.svg)" in shown
    assert "Not measured yet" in script.claim_page("kd")
    assert [file.name for file in script.plots()] == ["vam.svg"]


def test_every_method_has_its_page_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    names = {method.card.name for method in methods.all_methods()}
    assert {file.stem for file in (ROOT / "docs" / "methods").glob("*.md")} == names
    for name in names:
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
        assert f"- {name}: methods/{name}.md\n" in navigation
        assert page.startswith(f"<!-- begin: method-{name} -->\n# {name}: ")


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8192


def test_benchmark_tables_show_every_figure(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upcycle.core.store import write_json

    figures = {"by arm": {"a": {"rate": 12345.6, "seconds": [1.0, 2.0]}, "b": {"rate": 2, "seconds": [3.0]}},
               "by figure": {"milliseconds": {"a": 0.12345, "b": 2}, "speed_up": {"a": 1.0, "b": 3.0}},
               "single": {"gain": [1.0, 2.0, 3.0], "interval": [-0.5, 0.25], "holds": True}}  # fmt: skip
    origin = {"settings": {"batch": 128}, "machine": {"cpu": "X", "cores": 2}, "versions": {"torch": "9"},
              "date": "2026-01-02 10:00 UTC", "commit": "abc"}  # fmt: skip
    write_json(tmp_path / "extra.json", {"figures": {k: v for f in figures.values() for k, v in f.items()}, **origin})
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    assert script.benchmark("extra") == (
        "|  | rate |\n| --- | --- |\n| a | 12,346 |\n| b | 2 |\n"
        "\n|  | milliseconds | speed up |\n| --- | --- | --- |\n| a | 0.123 | 1 |\n| b | 2 | 3 |\n"
        "\n|  | figure |\n| --- | --- |\n| gain | 2 ± 1 |\n| interval | -0.5 to 0.25 |\n| holds | yes |\n"
        "\nSettings: batch 128.\n"
        "\n*X, 2 cores; torch 9; 2026-01-02; commit abc; `python -m benchmarks.extra`*\n"
    )
    assert script.benchmark("torture") == script.MISSING


def test_the_matrix_of_networks_says_each_reason_once() -> None:
    from scripts.matrix import matrix

    def cell(reason: str = "", outcome: str = "refused") -> dict[str, Any]:
        return {"outcome": outcome if reason else "worked", "reason": reason, "seconds": 1.0}

    cut = "mda cannot run here: {} cannot be cut into channels: 'norm' in '{}' is not understood"
    cells = {
        "timm:a": {"evaluate": cell(), "cut": cell(cut.format("A", "blocks.0.norm"))},
        "timm:b": {"evaluate": cell(), "cut": cell(cut.format("BNet", "stem.norm"))},
        "own:c": {"evaluate": cell("c is quantised (Linear)"), "cut": cell("c is quantised (Linear)")},
        "own:d": {"evaluate": cell("no end after 600 seconds", "failed"), "cut": cell()},
    }
    text = matrix(cells)
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert text.startswith("4 networks, 2 uses of each, 8 in all: 3 worked, 4 refused, 1 failed.\n")
    for row in (
        ["", "evaluate", "cut"],
        ["**timm**", "", ""],
        ["`a`", "+", "–"],
        ["`d`", "**failed**", "+"],
        ["**refused**", "1", "3"],
        ["cut", "It cannot be cut into channels: 'norm' in 'blocks.0.norm' is not understood", "`a`, `b`"],
        ["every one", "It is quantised (Linear)", "`c`"],
        ["evaluate", "no end after 600 seconds", "`d`"],
    ):
        assert rows.count(row) == 1, row


# -- the rest ---------------------------------------------------------------------------------------------------


EXAMPLES = re.compile(r"^ *>>> (?!.*\+SKIP)", re.MULTILINE)


def _with_examples() -> list[str]:
    files = sorted((ROOT / "src").rglob("*.py"))
    found = [f.relative_to(ROOT / "src").with_suffix("") for f in files if EXAMPLES.search(f.read_text())]
    return [".".join(path.parts).removesuffix(".__init__") for path in found]


@pytest.mark.parametrize("module", _with_examples())
def test_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (page.parent / target).exists(), target


def test_the_citation_names_this_version() -> None:
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == upcycle.__version__
    assert citation["authors"] and citation["title"] and citation["message"] and citation["license"] == "Apache-2.0"
    assert upcycle.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_site_lists_every_page() -> None:
    navigation = re.findall(r"^ +- .*: ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(navigation) == sorted(str(p.relative_to(docs)) for p in docs.rglob("*.md"))
