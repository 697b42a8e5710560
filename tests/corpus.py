"""What goes wrong, on purpose: malicious pickles, damaged files, bad pictures, and command lines with a mistake.

Used by the tests and by ``benchmarks/torture.py``. Everything random is drawn from a seed.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import os
import pickle
import random
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from upcycle.data import graph_sources
from upcycle.verbs.distill import Setting
from upcycle.verbs.methods import find_method

RECIPES = Path(__file__).parent.parent / "recipes"

# -- malicious pickles ------------------------------------------------------------------------------------------


class Call:
    """Unpickled, it would call ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what


class Extended(Call):
    """The same through the longer form of ``__reduce__``, with a state that is set afterwards."""

    def __reduce__(self) -> Any:
        return (*self.what, {"state": 1})


class Persistent(pickle.Pickler):
    """Hides what is evil behind a persistent id, where torch keeps its storages."""

    def persistent_id(self, item: Any) -> Any:
        return ("storage", item.hidden, "0", "cpu", 4) if isinstance(item, Storage) else None


@dataclass
class Storage:
    """Stands where torch has a tensor's storage, and holds something else."""

    hidden: Call


def malicious_files(folder: Path, canary: Path, state: dict[str, Tensor]) -> list[Path]:
    """Thirty files that would each make the file ``canary`` if anything in them were executed.

    Args:
        state: the state dict of a real network, which some of them hold as well, to be believed.
    """
    here, touch = str(canary), f"open({str(canary)!r}, 'w').close()"
    system, run = Call(os.system, f"touch {here}"), Call(exec, touch)
    calls = {
        "system": system,
        "exec": run,
        "eval": Call(eval, touch),
        "popen": Call(subprocess.Popen, ["touch", here]),
        "call": Call(subprocess.check_output, ["touch", here]),
        "open": Call(open, here, "w"),
        "mkdir": Call(os.mkdir, here),
        "copy": Call(shutil.copyfile, __file__, here),
        "getattr": Call(getattr(Path, "touch"), Path(here)),  # noqa: B009
        "extended": Extended(os.system, f"touch {here}"),
        "map": Call(list, Call(map, os.mkdir, [here])),
        "save": Call(torch.save, 1, here),
    }
    # Text opcodes: GLOBAL then REDUCE, INST, OBJ, and a global found by walking attributes (protocol 4).
    texts = {
        "global": f"cos\nsystem\n(S'touch {here}'\ntR.",
        "inst": f"(S'touch {here}'\nios\nsystem\n.",
        "obj": f"(cos\nsystem\nS'touch {here}'\no.",
        "builtins": f"c__builtin__\nexec\n(S{touch!r}\ntR.",
        "runpy": f"crunpy\n_run_code\n(S{touch!r}\n(dtR.",
    }
    attribute = b"\x80\x04\x8c\x02os\x8c\x0apath.os.system"[:-15] + b"\x8c\x0epath.os.system\x93\x8c"
    dotted = attribute + bytes([len(f"touch {here}")]) + f"touch {here}".encode() + b"\x85R."
    raw: dict[str, bytes] = {name: pickle.dumps(call, protocol=2) for name, call in calls.items()}
    raw |= {name: text.encode() for name, text in texts.items()} | {"dotted": dotted}
    files = [_write(folder / f"{name}.pkl", content) for name, content in raw.items()]

    def saved(name: str, value: Any, zipped: bool = True) -> None:
        torch.save(value, folder / name, _use_new_zipfile_serialization=zipped)
        files.append(folder / name)

    saved("beside.pt", {**state, "extra": system})
    saved("envelope.pth", {"state_dict": state, "optimizer": [{"lr": (run,)}]})
    saved("key.pt", {"state_dict": state, "epoch": {1: Call(eval, touch)}})
    saved("legacy.pt", {**state, "extra": system}, zipped=False)
    saved("legacy_whole.pth", run, zipped=False)
    files.append(_write(folder / "disguised.safetensors", pickle.dumps(system, protocol=4)))
    buffer = io.BytesIO()
    Persistent(buffer, protocol=2).dump({"w": Storage(system)})
    files.append(_write(folder / "persistent.bin", buffer.getvalue()))
    torch.save(state, sound := io.BytesIO())
    files.append(_exchanged(sound, folder / "swapped.pt", {"data.pkl": raw["system"]}))
    files.append(_exchanged(sound, folder / "persistent.pt", {"data.pkl": buffer.getvalue()}))
    inner = io.BytesIO(files[18].read_bytes())
    files.append(_exchanged(inner, folder / "script.pt", {}, {"constants.pkl": raw["exec"]}))
    with zipfile.ZipFile(folder / "nested.pt", "w") as archive:
        archive.writestr("archive/data.pkl", raw["eval"])
        archive.writestr("archive/inner.pt", inner.getvalue())
    with tarfile.open(folder / "tar.pt", "w") as tar:
        for part in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(part)
            info.size = len(raw["system"])
            tar.addfile(info, io.BytesIO(raw["system"]))
    return [*files, folder / "nested.pt", folder / "tar.pt"]


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _exchanged(
    archive: io.BytesIO, path: Path, changed: dict[str, bytes], added: dict[str, bytes] | None = None
) -> Path:
    """A copy of a zip archive in which some members hold something else."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        names = old.namelist()
        for name in names:
            new.writestr(name, changed.get(Path(name).name, old.read(name)))
        for name, content in (added or {}).items():
            new.writestr(f"{Path(names[0]).parts[0]}/{name}", content)
    return path


# -- damaged files ----------------------------------------------------------------------------------------------


def damaged(content: bytes, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Endless damage, in turn: one flipped bit, and everything after some place lost."""
    while True:
        at, bit = chance.randrange(len(content)), chance.randrange(8)
        yield f"bit {bit} of byte {at}", content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        at = chance.randrange(len(content))
        yield f"cut at byte {at}", content[:at]


# -- pictures ---------------------------------------------------------------------------------------------------


def picture_folder(folder: Path, classes: tuple[str, ...] = ("cat", "dog", "owl"), n: int = 14, side: int = 8) -> Path:
    """A folder of one's own: ``CLASS/IMAGE.png``, grey, each class with a brightness of its own."""
    from PIL import Image

    chance = torch.Generator().manual_seed(0)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = torch.randint(0, 60, (side, side), generator=chance)
            pixels = (noise + 60 * (k % 4)).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


def parquet_folder(folder: Path, labels: list[int], names: tuple[str, ...]) -> Path:
    """A folder with ``train.parquet`` in the Hugging Face layout: one small grey PNG for each of ``labels``."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    images = []
    for label in labels:
        Image.new("L", (8, 8), 20 * (label % 10)).save(file := io.BytesIO(), "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"image": images, "label": labels}, schema=schema), folder / "train.parquet")
    return folder


# -- command lines with a mistake -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """A command line that was right before one thing in it was changed.

    Args:
        text: what was changed.
        words: of ``upcycle``.
        wrong: whether it must be refused; otherwise the change is harmless.
    """

    text: str
    words: list[str]
    wrong: bool


# Each takes (chance, key, valid value) and gives a value that cannot be right there.
_ODD_TEXT = ("", " ", "ünïcødé", "数字", "x" * 3000, "\u202e", "no such thing", "-", "~", "🦉", "../../..")
_NUMBERS: dict[str, tuple[Any, ...]] = {
    "not a number": (float("nan"),),
    "infinite": (float("inf"), float("-inf")),
    "negative": (-3, -0.5, -(10**9)),
    "another type": ("fast", [1, 2], {"a": 1}, None, "1,5", "0x1G", [[]]),
    "unicode": ("１½", "½", "∞", "三"),
}
# What a number may be in spite of that: the value that means "all" or "the default".
_ALLOWED = {"labels": (-1,), "a": (-1,), "seed": (-3, -(10**9))}
_WHOLE = ("another type", "negative", "not a number", "infinite", "unicode", "a fraction")
_BASE: dict[str, Any] = {"seeds": 1, "shots": 0, "devices": 1, "save_every": 15.0, "compile": False, "alone": False}


def valid_configurations() -> list[dict[str, Any]]:
    """Configurations that are mutated: the recipes of images, with some ordinary options written out.

    Those of graphs are refused where their files are not at hand, before anything else is looked at; and those whose
    teacher another run leaves, where that was not made.
    """
    found = [yaml.safe_load(file.read_text()) for file in sorted(RECIPES.glob("*.yaml"))]
    found = [config for config in found if "student" in config and "model" not in config]  # of distill
    found = [config for config in found if not graph_sources.is_graphs(config.get("data", config.get("test_data")))]
    found = [config for config in found if not str(config.get("teacher")).startswith("runs/")]
    return [{**_BASE, **{k: v for k, v in config.items() if k != "out"}} for config in found]


def mutations(n: int, seed: int, folder: Path) -> Iterator[Mutation]:
    """``n`` mutations of the recipes, as command lines and as YAML files (which go to ``folder``), seeded.

    The kinds come in turn, so that a few mutations cover them all. None of them writes or reads anything when it
    is refused in time: a mutation that is accepted must be stopped by the caller.
    """
    chance, bases = random.Random(seed), valid_configurations()
    for i, kind in zip(range(n), itertools.cycle(_KINDS), strict=False):
        base = chance.choice(bases)
        text, config, wrong = kind(chance, copy.deepcopy(base))
        text = f"{base['method']}: {text}"
        if isinstance(config, dict) and chance.random() < 0.5 and (words := _as_words(config)) is not None:
            yield Mutation(text, ["distill", *words], wrong)
            continue
        content = config if isinstance(config, bytes) else yaml.safe_dump(config, allow_unicode=True).encode()
        file = _write(folder / f"{i}.yaml", content)
        yield Mutation(text, ["distill", "--config", str(file)], wrong)


def _as_words(config: dict[str, Any]) -> list[str] | None:
    """A configuration as words of a command line; ``None`` where that cannot be said in words."""
    words: list[str] = []
    for key, value in config.items():
        if isinstance(value, dict):
            if not all(isinstance(k, str) for k in value) or key not in ("recipe", "terms", "making"):
                return None
            pairs = [(f"{key}.{k}", v) for k, v in value.items()]
        else:
            pairs = [(key, value)]
        for name, item in pairs:
            if item is None or item in ("", " ", "-", "~") or isinstance(item, dict) or "\0" in str(item):
                return None
            said = str(item).lower() if isinstance(item, bool) else str(item)
            words.append(
                f"--{name}={said.replace('nan', '.nan').replace('inf', '.inf') if isinstance(item, float) else said}"
            )
    return words


def _paths(config: dict[str, Any], wanted: Callable[[Any], bool]) -> list[tuple[str, ...]]:
    """The keys, nested ones as (outer, inner), whose value is wanted."""
    found: list[tuple[str, ...]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += [(key, inner) for inner, item in value.items() if wanted(item)]
        elif wanted(value):
            found.append((key,))
    return found


def _put(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    place = config[path[0]] if len(path) == 2 else config
    place[path[-1]] = value
    return config


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(path: tuple[str, ...]) -> str:
    return ".".join(path)


def _typo(word: str, chance: random.Random) -> str:
    """A misspelling: two neighbours exchanged, one letter lost, doubled or wrong."""
    while True:
        i = chance.randrange(len(word))
        made = chance.choice((
            word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :], word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:], word[:i] + chance.choice("qxzé") + word[i + 1 :]))  # fmt: skip
        if made and made != word:
            return made


def _known(config: dict[str, Any]) -> set[str]:
    fields = {f.name for f in dataclasses.fields(Setting)} | {
        "teacher",
        "student",
        "method",
        "config",
        "plugin",
        "machine",
    }
    return fields | set(find_method(config["method"], "distill").options())


Changed = tuple[str, Any, bool]


def _misspelt_key(chance: random.Random, config: dict[str, Any]) -> Changed:
    path = chance.choice([p for p in _paths(config, lambda v: True) if p != ("method",)])
    place = config[path[0]] if len(path) == 2 else config
    known = set(place) | _known(config)
    while (key := _typo(path[-1], chance)) in known or not key.strip("-_ ") or "." in key:
        pass
    place[key] = place.pop(path[-1])
    return f"key {_name(path)} misspelt as {key}", config, True


def _foreign_key(chance: random.Random, config: dict[str, Any]) -> Changed:
    key = chance.choice(
        ("learning_rate", "batchsize", "model", "num_epochs", "gpus", "τ", "lr", "Teacher", "class", "0")
    )
    if chance.random() < 0.5 and "recipe" in config:
        config["recipe"][key if key != "lr" else "rate"] = 1
        return f"recipe.{key} added", config, True
    config[key] = 1
    return f"{key} added", config, True


def _misspelt_value(chance: random.Random, config: dict[str, Any]) -> Changed:
    path = chance.choice(_paths(config, lambda v: isinstance(v, str)))
    value = config[path[0]] if len(path) == 1 else config[path[0]][path[1]]
    head, colon, tail = value.rpartition(":")
    made = _typo(tail, chance)
    while made in (
        "kd",
        "vam",
        "tfkd",
        "none",
        "reg",
        "self",
        "resnet8",
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
    ):
        made = _typo(tail, chance)
    return f"{_name(path)} {value} misspelt as {made}", _put(config, path, head + colon + made), True


def _odd_text(chance: random.Random, config: dict[str, Any]) -> Changed:
    named = ("data",), ("test_data",)  # some of these texts name folders that there are
    path = chance.choice([p for p in _paths(config, lambda v: isinstance(v, str)) if p not in named])
    value = chance.choice(_ODD_TEXT)
    needs = find_method(config["method"], "distill").card.needs.teacher
    nothing = path == ("teacher",) and value == "~" and needs == "none"  # YAML's word for no value
    return f"{_name(path)} is {value[:20]!r}", _put(config, path, value), not nothing


def _bad_number(chance: random.Random, config: dict[str, Any]) -> Changed:
    path = chance.choice(_paths(config, _is_number))
    old = config[path[0]] if len(path) == 1 else config[path[0]][path[1]]
    kind = chance.choice(_WHOLE if isinstance(old, int) and path[-1] != "warmup" else tuple(_NUMBERS))
    value = 1.5 if kind == "a fraction" else chance.choice(_NUMBERS[kind])
    wrong = value not in _ALLOWED.get(path[-1], ()) if not isinstance(value, list | dict) else True
    return f"{_name(path)} is {kind} ({value!r})", _put(config, path, value), wrong


def _huge(chance: random.Random, config: dict[str, Any]) -> Changed:
    path = chance.choice(_paths(config, lambda v: isinstance(v, float)))
    if path[-1] in ("momentum", "decay", "a", "warmup", "ratio") or chance.random() < 0.5:
        return f"{_name(path)} is beyond every float", _put(config, path, 10**400), True
    return f"{_name(path)} is 1e30", _put(config, path, 1e30), False


def _switch(chance: random.Random, config: dict[str, Any]) -> Changed:
    path = chance.choice(_paths(config, lambda v: isinstance(v, bool)))
    value = chance.choice(("perhaps", 3, [True], "tru", None, 0.5))
    return f"{_name(path)} is {value!r}", _put(config, path, value), True


def _bad_list(chance: random.Random, config: dict[str, Any]) -> Changed:
    key, value = chance.choice((
        ("augment", ["crop", "auto"]), ("augment", ["croop"]), ("augment", [3]), ("augment", {"crop": True}),
        ("augment", [["crop"]]), ("augment", 7), ("teacher_mean", ["a"]), ("teacher_mean", {"r": 0.5}),
        ("teacher_std", [None]), ("teacher_std", [[0.2]]), ("trust", 5), ("trust", {"a": 1}),
    ))  # fmt: skip
    config[key] = value
    return f"{key} is {value!r}", config, True


def _nested_wrongly(chance: random.Random, config: dict[str, Any]) -> Changed:
    recipe = config.pop("recipe", None) or {"epochs": 2}
    way = chance.randrange(6)
    if way == 0:
        return "the recipe's keys beside the others", {**config, **recipe}, True
    if way == 1:
        return "an option inside the recipe", {**config, "recipe": {**recipe, "teacher": "zoo:mlp"}}, True
    if way == 2:
        return "the recipe inside a recipe", {**config, "recipe": {"recipe": recipe}}, True
    if way == 3:
        return "the recipe as a list", {**config, "recipe": [{k: v} for k, v in recipe.items()]}, True
    if way == 4:
        return "the recipe as text", {**config, "recipe": "kd_cifar10"}, True
    return "everything below a key", {"distill": config, "method": config["method"]}, True


def _dropped(chance: random.Random, config: dict[str, Any]) -> Changed:
    key, before = chance.choice([key for key in config if key != "recipe"]), config["method"]
    del config[key]
    method = find_method(config.get("method", before), "distill")
    needed = {"student"} | ({"teacher"} if method.card.needs.teacher != "none" else set())
    own = set(method.options()) - set(find_method("kd", "distill").options())  # kd does not know these
    lost = key == "method" and bool(own & set(config))
    return f"{key} dropped", config, key in needed or lost or (key == "method" and "teacher" not in config)


def _combined(chance: random.Random, config: dict[str, Any]) -> Changed:
    """Values that are right alone and cannot work."""
    key, value = chance.choice((
        ("recipe", {"epochs": 3, "warmup": 5}), ("recipe", {"batch_size": 1}), ("recipe", {"momentum": 1.0}),
        ("recipe", {"schedule": "linear"}), ("recipe", {"optimizer": "SGD"}), ("seeds", 0), ("devices", 0), ("size", 0),
        ("teacher_weights", "no/such/file.safetensors"), ("label_map", "no/such/map.csv"), ("precision", "16-mixed"),
        ("accelerator", "tpu"), ("data", "no/such/folder"), ("data", "hub:nobody"), ("labels", -2), ("out", __file__),
    ))  # fmt: skip
    return f"{key} is {value!r}", {**config, key: value}, True


def _broken_file(chance: random.Random, config: dict[str, Any]) -> Changed:
    text = yaml.safe_dump(config).encode()
    name, content = chance.choice((
        ("an unclosed bracket", text + b"augment: [crop\n"), ("a tab", text + b"a:\n\t- b\n"), ("nothing", b""),
        ("a list", yaml.safe_dump([config]).encode()), ("a number", b"42\n"), ("half a key", b"meth"),
        ("bytes that are no text", b"\xff\xfe\x00" + text), ("a tag", text + b"size: !!python/name:os.system\n"),
        ("a Python object", b"!!python/object/apply:os.getcwd []\n"), ("a zero byte", text + b'out: "a\\0b"\n'),
        ("an alias of nothing", text + b"size: *nothing\n"), ("two documents", text + b"---\n" + text),
    ))  # fmt: skip
    return f"the file holds {name}", content, True


def _harmless(chance: random.Random, config: dict[str, Any]) -> Changed:
    way = chance.randrange(4)
    if way == 0:
        return "the keys in another order", dict(sorted(config.items(), key=lambda _: chance.random())), False
    if way == 1:
        return "a default written out", {**config, "accelerator": "auto", "size": None}, False
    if way == 2:
        return "a whole number for a float", {**config, "save_every": 20}, False
    return "another seed", {**config, "seed": chance.randrange(10**6)}, False


_KINDS = (_misspelt_key, _bad_number, _misspelt_value, _nested_wrongly, _bad_list, _bad_number, _dropped, _foreign_key,
          _combined, _broken_file, _switch, _odd_text, _bad_number, _huge, _misspelt_key, _harmless)  # fmt: skip
