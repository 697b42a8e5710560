"""Files and endpoints of strangers: no network, no secret, no path outside, no command in a name."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import upcycle
from tests.data.test_data import encode, pixels
from tests.predictor_server import serve
from tests.settings import fitted, tiny_data
from upcycle import cli
from upcycle.adaptation.adapters.scale_shift import load_adapter
from upcycle.core import fetching, saved, store
from upcycle.core.addresses import KEYS
from upcycle.core.errors import UserError
from upcycle.core.outputs import innermost
from upcycle.core.references import resolve
from upcycle.data.labels import targets_of
from upcycle.predictors.http import Http
from upcycle.predictors.onnx_file import OnnxFile
from upcycle.reports.card import model_card
from upcycle.verbs.adapt import adapt
from upcycle.verbs.predict import Predictions

TEACHER = "zoo:digits_teacher"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may be asked, not even once."""

    def refuse(*given: Any, **options: Any) -> None:
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_OFFLINE", False)
    fetching._answers.cache_clear()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c" / "d")
    return tmp_path


def forged(directory: Path, **changes: Any) -> Path:
    """A saved model that says something else, under a manifest that holds."""
    record = {**store.read_json(directory / "architecture.json"), **changes}
    store.write_json(directory / "architecture.json", record)
    store.write_manifest(directory)
    return directory


# -- a saved model reaches no network ---------------------------------------------------------------------------------

TIMM = {"model_type": "timm_wrapper", "architecture": "resnet10t", "num_classes": 3, "label_names": ["a", "b", "c"]}
ELSEWHERE: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "hf-hub:evil/x"}, "architecture: hf-hub:evil/x"),
    ({"architecture": "local-dir:/etc"}, "architecture: local-dir:/etc"),
    ({"model_args": {"checkpoint_path": "x.pth"}}, "model_args.checkpoint_path"),
    ({"attn_implementation": "evil/kernel"}, "attn_implementation"),
    ({"_attn_implementation": "flash_attention_2"}, "_attn_implementation"),
    ({"backbone": "evil"}, "backbone"),
    ({"vision_config": {"backbone_config": {}, "backbone": "evil"}}, "vision_config.backbone"),
    ({"text_config": {"model_type": "detr"}}, "text_config.model_type: detr"),
    ({"quantization_config": {"quant_method": "evil"}}, "quantization_config"),
    ({"model_type": "detr", "backbone": "evil/x", "use_pretrained_backbone": True}, "no image classifier"),
    ({"model_type": ["vit"]}, "no image classifier"),
]


@pytest.mark.parametrize(("changes", "says"), ELSEWHERE)
def test_a_configuration_that_names_others_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path, alone: None
) -> None:
    pytest.importorskip("transformers")
    config = {**TIMM, **changes}
    saved.save(resolve(TEACHER), tmp_path / "m")
    options = {"input_shape": [3, 32, 32], "config": config}
    forged(tmp_path / "m", reference="hf:org/name", options=options)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "config.json").write_text(json.dumps(config))
    for ask in (lambda: saved.load(tmp_path / "m"), lambda: resolve(f"hf:{tmp_path / 't'}", pretrained=False)):
        with pytest.raises(UserError) as caught:
            ask()
        assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"config": None}, {"config": "org/name"}, {"input_shape": [3, 32, 32]}])
def test_a_model_without_its_configuration_is_not_asked_for(
    options: dict[str, Any], tmp_path: Path, alone: None
) -> None:
    pytest.importorskip("transformers")
    saved.save(resolve(TEACHER), tmp_path / "m")
    forged(tmp_path / "m", reference="hf:org/name", options=options)
    with pytest.raises(UserError, match=r"\$\.options\.config must be a mapping"):
        saved.load(tmp_path / "m")


def test_a_wrapped_network_of_timm_is_built_from_its_configuration(tmp_path: Path, alone: None) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "t").mkdir()
    # As the hub has them: with addresses of weights that are not needed.
    config = {**TIMM, "pretrained_cfg": {"hf_hub_id": "timm/resnet10t", "url": "https://x/y"}, "_name_or_path": "a/b"}
    (tmp_path / "t" / "config.json").write_text(json.dumps(config))
    model = resolve(f"hf:{tmp_path / 't'}", pretrained=False, input_shape=(3, 32, 32))
    assert model.classes == ("a", "b", "c") and "Timm" in type(innermost(model.module)).__name__
    saved.save(model, tmp_path / "m")
    shutil.rmtree(tmp_path / "t")
    again = saved.load(tmp_path / "m")
    x = model.example()
    with torch.no_grad():
        assert torch.equal(model.module(x), again.module(x))


def test_weights_in_several_files_lie_beside_their_index(tmp_path: Path, alone: None) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../y.safetensors"}}))
    with pytest.raises(UserError, match=r"index\.json is damaged: \$\.weight_map"):
        resolve(f"hf:{tmp_path}")


@pytest.mark.parametrize("reference", ["timm:resnet10t", "torchvision:resnet18", "hf:org/name"])
def test_a_dry_run_downloads_nothing(
    reference: str, here: Path, alone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("transformers", "timm"):
        pytest.importorskip(module)
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(here))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *given, **options: None)
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_CACHE", str(here))
    words = ["distill", f"--teacher={reference}", "--student=zoo:convnet_small", "--data=digits", "--dry_run"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is not kept on this machine, and a dry run downloads nothing" in said


def test_weights_of_timm_that_were_fetched_before_serve_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm, hub = pytest.importorskip("timm"), pytest.importorskip("huggingface_hub")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    own = timm.create_model("resnet10t")
    save_file(own.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *given, **options: str(tmp_path / "model.safetensors"))
    with fetching.nothing_fetched("a test fetches nothing"):
        found = resolve("timm:resnet10t")
    assert torch.equal(found.module.state_dict()["fc.weight"], own.state_dict()["fc.weight"])


# -- secrets stay out -------------------------------------------------------------------------------------------------


def test_the_query_of_an_address_is_sent_and_stays_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "method": "dine",
        "data": tiny_data(),
        "cache": tmp_path / "cache",
        "student": "zoo:convnet_small",
        "epochs_tune": 1,
        "bottleneck": {"width": 16, "backbone_rate": 1.0},
        "control": False,
        "recipe": {"epochs": 1, "batch_size": 64},
        "out": tmp_path / "run",
    }
    headers: list[str] = []
    with serve(fitted("api", 7), opening=[None, lambda handler: headers.append(handler.headers["X-Key"])]) as url:
        monkeypatch.setenv(KEYS, f"{url.split('/')[2]} X-Key: SESAME")
        adapt(f"{url}?token=SECRET", **options)
        with pytest.raises(UserError, match=r"gives|breaks|answers"):  # its GET is not answered
            Http(f"{url}?token=OTHER", cache=tmp_path / "cache", retries=0)
        assert headers == ["SESAME"]
        with pytest.raises(UserError) as caught:
            adapt(f"{url}?token=ANOTHER", **{**options, "resume": True})
    said = "".join(capsys.readouterr()) + str(caught.value)
    assert "predictor" in str(caught.value), "another address is another endpoint"
    for file in tmp_path.rglob("*"):
        said += file.name + (file.read_bytes().decode(errors="replace") if file.is_file() else "")
    for secret in ("SECRET", "ANOTHER", "OTHER", "SESAME"):
        assert secret not in said, secret


def test_an_endpoint_that_repeats_its_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def echo(handler: Any) -> None:
        said = f"Cannot GET {handler.path} {handler.headers['Authorization']}"
        body = (" " * 190 + said).encode()
        handler.send_response(404, said)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with serve(fitted("api", 7), opening=[echo]) as url:
        monkeypatch.setenv(KEYS, f"{url.split('/')[2]} Authorization: Bearer SESAME")
        with pytest.raises(UserError, match="refuses with 404") as caught:
            Http(f"{url}?SECRET", cache=tmp_path)
    assert "SECRET" not in str(caught.value) and "SESAM" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["distill", "--teacher=http://me:SECRET@host/x", "--student=zoo:convnet_small"],
        ["distill", "--teacher=https://host/x?token=SECRET", "--student=zoo:convnet_small"],
        ["evaluate", "localhost:8000/x?token=SECRET"],
        ["evaluate", TEACHER, "--data=https://host/x?token=SECRET"],
        ["adapt", "https://me:SECRET@host/x", "--method=dine", "--student=zoo:convnet_small"],
        ["adapt", "https://host/x?token=SEC RET", "--method=dine", "--student=zoo:convnet_small"],
        ["distill", "https://host/x?token=SECRET"],
        ["predict", TEACHER, "https://host/x?token=SECRET"],
        ["https://host/x?token=SECRET"],
    ],
)
def test_an_address_in_the_wrong_place_is_told_without_its_secrets(
    words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    said = "".join(capsys.readouterr())
    assert said.count("\n") == 1 and "SEC" not in said


# -- paths stay inside ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../x.png", "/dev/zero", "link.png", "pipe.png", "deep/../../x.png"])
def test_images_of_a_table_lie_in_its_folder(path: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "x.png").write_bytes(encode(pixels(8, 8, 3)))
    (folder / "link.png").symlink_to(tmp_path / "x.png")
    os.mkfifo(folder / "pipe.png")
    rows: list[dict[str, Any]] = [{"bytes": encode(pixels(8, 8, 3, seed=i)), "path": None} for i in range(29)]
    table = pa.table({"image": [*rows, {"bytes": None, "path": path}], "label": pa.array([0, 1] * 15)})
    pq.write_table(table, folder / "train.parquet")
    with pytest.raises(UserError, match=r"which is not in|pipe or a device"):
        upcycle.load_data(str(folder))


@pytest.mark.parametrize("name", ["../../../x", "/no/such/x", "..", "a/../../../../x"])
def test_a_name_that_leads_outside_does_not(name: str, here: Path) -> None:
    saved.save(resolve(TEACHER), here / "m")
    forged(here / "m", name=name)
    before = set(here.rglob("*"))
    assert cli.main(["diagnose", str(here / "m"), "--data=digits"]) == 0
    made = set(here.rglob("*")) - before
    (directory,) = Path("runs").iterdir()
    assert made and all(path.is_relative_to(Path("runs").resolve()) for path in made)
    assert directory.name.startswith("diagnose-")


READERS: dict[str, Callable[[Path], object]] = {
    "x.safetensors": lambda path: resolve(TEACHER, weights=path),
    "x.pth": lambda path: resolve(TEACHER, weights=path),
    "x.onnx": lambda path: OnnxFile(path),
    "x.yaml": lambda path: cli.read_config(str(path)),
    "map.csv": targets_of,
    "adapter.safetensors": lambda path: load_adapter(path, resolve(TEACHER)),
    "m/architecture.json": lambda path: saved.load(path.parent),
    "m/manifest.json": lambda path: saved.load(path.parent),
    "m/weights.safetensors": lambda path: saved.load(path.parent),
    "m/lineage.json": lambda path: saved.lineage_of(path.parent),
    "g/x_A.txt": lambda path: upcycle.load_data(f"graphs:{path.parent}"),
    "train.parquet": lambda path: upcycle.load_data(str(path.parent)),
    "train-images-idx3-ubyte.gz": lambda path: upcycle.load_data(str(path.parent)),
    "cat/1.png": lambda path: upcycle.load_data(str(path.parent.parent)),
}


@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_pipe(name: str, tmp_path: Path) -> None:
    saved.save(resolve(TEACHER), tmp_path / "m")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(UserError) as caught:
        READERS[name](path)
    assert "\n" not in str(caught.value)


# -- names are text ---------------------------------------------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07\x1b[2J"


@pytest.mark.parametrize("field", ["name", "classes", "licence"])
def test_a_model_whose_names_are_commands_is_refused(
    field: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved.save(resolve(TEACHER), here / "m")
    value = ["0\nnote: all is well", *"123456789"] if field == "classes" else ESCAPE
    forged(here / "m", **{field: value})
    assert cli.main(["evaluate", str(here / "m"), "--data=digits"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said[:-1].isprintable() and "control character" in said


@pytest.mark.parametrize(
    "words",
    [
        ["distill", f"--teacher={ESCAPE}x", "--student=zoo:convnet_small"],
        [ESCAPE],
        ["evaluate", TEACHER, f"--data={ESCAPE}"],
        ["evaluate", TEACHER, f"--{ESCAPE}=1"],
        ["methods", ESCAPE],
    ],
)
def test_what_is_told_of_a_mistake_has_no_power(
    words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said[:-1].isprintable()


def test_a_class_folder_whose_name_is_a_command_is_written_out(tmp_path: Path) -> None:
    for name in ("cat", "dog\nnote: all is well"):
        (tmp_path / name).mkdir()
        for i in range(4):
            (tmp_path / name / f"{i}.png").write_bytes(encode(pixels(8, 8, 3, seed=i)))
    assert upcycle.load_data(str(tmp_path)).classes == ("cat", r"dog\nnote: all is well")


def test_file_names_are_written_out_where_images_are_told_of(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    Image.new("L", (8, 8)).save("in/a\x1b.png")
    (Path("in") / "broken\x1b.png").write_bytes(b"x")
    assert cli.main(["predict", TEACHER, "in"]) == 2
    said = capsys.readouterr().err
    assert said[:-1].isprintable() and r"broken\x1b.png" in said


def test_a_table_of_predictions_holds_no_formula() -> None:
    model = resolve(TEACHER)
    classes = ("=cmd()", "+1", "-2", "@x", *"456789")
    made = Predictions(model=model, paths=["=a.png", "b.png"], classes=classes, scores=torch.eye(2, 10))
    rows = list(csv.reader(io.StringIO(made.csv())))
    assert rows[0][3:7] == ["'=cmd()", "+1", "-2", "'@x"]
    assert rows[1][:2] == ["./=a.png", "'=cmd()"] and rows[2][:2] == ["b.png", "+1"]


def test_a_card_shows_markup_and_does_not_obey_it() -> None:
    evil = "<script>x</script>[a](javascript:b)|\x1b[2J"
    node = {
        "name": evil,
        "digest": "",
        "verb": evil,
        "method": evil,
        "config": {},
        "versions": {"torch": evil},
        "metrics": {},
        "licence": {"id": evil, "why": evil, "obligations": [evil]},
        "date": "",
        "role": "",
        "parents": [],
        "data": {"name": evil, "licence": evil},
    }
    rows = [{"name": evil, "accuracy": [0.5], "parameters": 1}]
    result = {
        "sentence": evil,
        "rows": rows,
        "data": {"name": evil},
        "figure": evil,
        "paper": evil,
        "title": evil,
        "command": evil,
        "notes": [evil],
    }
    _, header, body = model_card(node, result).split("---\n", 2)
    outside = "".join(body.split("```")[::2])
    assert "<script" not in outside and "[a]" not in outside.replace(r"\[a\]", "")
    assert body.replace("\n", "").isprintable() and header.replace("\n", "").isprintable()
