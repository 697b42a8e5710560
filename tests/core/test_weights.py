"""Weights files of other people's training scripts: what is taken, what is left out, what is refused."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import upcycle
from tests.awkward import SHAPE, Body
from tests.corpus import Call
from upcycle import cli
from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.core.weights import load_weights
from upcycle.verbs.distill import Setting
from upcycle.verbs.naming import naming_of

State = dict[str, Tensor]


def body(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Body()


def state(seed: int = 1) -> State:
    return body(seed).state_dict()


def under(prefix: str, tensors: State) -> State:
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def filled(content: Any, folder: Path, key: str | None = None) -> tuple[State, tuple[str, ...]]:
    """Give what a network holds after it was given a file with ``content``, and what is said of it."""
    file, network = folder / "w.pt", body(0)
    torch.save(content, file)
    notes = load_weights(network, file, key)
    return network.state_dict(), notes


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- kinds of numbers ---------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda t: (100 * t).to(torch.int8),
    "int64": Tensor.long,
    "bool": lambda t: t > 0,
    "complex64": lambda t: t.to(torch.complex64),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_numbers_of_another_kind_are_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    tensors, file, network = state(), tmp_path / f"w.{suffix}", body(0)
    tensors["linear.weight"] = KINDS[kind](tensors["linear.weight"])
    (save_file if suffix == "safetensors" else torch.save)(tensors, file)
    with pytest.raises(UserError, match=rf"'linear\.weight' in {kind}, and Body has float32 there"):
        load_weights(network, file)
    assert same(network.state_dict(), state(0))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_formats_of_real_numbers_are_rounded(kind: torch.dtype, tmp_path: Path) -> None:
    tensors = {k: t.to(kind) if t.is_floating_point() else t for k, t in state().items()}
    found, _ = filled(tensors, tmp_path)
    assert same(found, {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()})


def test_counters_stay_whole_numbers(tmp_path: Path) -> None:
    tensors = {k: t + 7 if "tracked" in k else t for k, t in state().items()}
    assert filled(tensors, tmp_path)[0]["bn1.num_batches_tracked"] == 7
    averaged = {k: t.float() if "tracked" in k else t for k, t in tensors.items()}  # as averages of states have them
    counter = filled(averaged, tmp_path)[0]["bn1.num_batches_tracked"]
    assert counter == 7 and counter.dtype == torch.int64


# -- which weights ------------------------------------------------------------------------------------------------


def test_raw_weights_are_taken_beside_averaged_ones_and_it_is_said(tmp_path: Path) -> None:
    content = {"epoch": 3, "state_dict": state(1), "state_dict_ema": state(2)}
    found, notes = filled(content, tmp_path)
    assert same(found, state(1)) and "'state_dict'; state_dict_ema would fit too" in notes[0]
    found, notes = filled(content, tmp_path, "state_dict_ema")
    assert same(found, state(2)) and notes == ("The weights of w.pt are those under 'state_dict_ema'.",)


def test_averaged_weights_alone_are_taken_by_their_name(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(body(2))
    found, notes = filled({"model": state(1), "model_ema": averaged.state_dict()}, tmp_path, "model_ema")
    assert same(found, state(2))
    assert notes[0].endswith("'model_ema.module'.") and notes[1].endswith("no weight of the network: n_averaged.")
    found, notes = filled({"ema": state(2)}, tmp_path)
    assert same(found, state(2)) and "'ema'" in notes[0]


ENVELOPES: dict[str, Callable[[State], Any]] = {
    "model_state": lambda s: {"model_state": s},
    "module.student": lambda s: under("module.student.", s),
    "state_dict.backbone": lambda s: {"state_dict": under("backbone.", s)},
    "encoder": lambda s: under("encoder.", s),
    "checkpoint.teacher.module": lambda s: {"checkpoint": {"teacher": under("module.", s)}},
    "a.b.c.state_dict._orig_mod": lambda s: {"a": {"b": {"c": {"state_dict": under("_orig_mod.", s)}}}},
}


@pytest.mark.parametrize("name", ENVELOPES)
def test_envelopes_and_prefixes_are_taken_off_and_named(name: str, tmp_path: Path) -> None:
    found, notes = filled(ENVELOPES[name](state(1)), tmp_path)
    assert same(found, state(1)) and f"'{name}'" in notes[0]


def test_a_prefix_before_all_but_the_classifier(tmp_path: Path) -> None:
    tensors = {k if k.startswith("linear") else f"backbone.{k}": t for k, t in state(1).items()}
    assert same(filled(tensors, tmp_path)[0], state(1))


@pytest.mark.parametrize(
    "content",
    [
        {"student": state(1), "teacher": state(2)},
        {**under("module.student.", state(1)), **under("module.teacher.", state(2))},
    ],
    ids=["envelopes", "prefixes"],
)
def test_student_and_teacher_are_not_guessed(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 sets of weights that fit: '.*student', '.*teacher'; .* weights_key"):
        filled(content, tmp_path)
    assert same(filled(content, tmp_path, "student")[0], state(1))
    found, _ = filled(content, tmp_path, "teacher")
    assert same(found, state(2))
    with pytest.raises(UserError, match=r"no weights called 'ema'; it has .*student"):
        filled(content, tmp_path, "ema")


def test_the_same_weights_twice_are_one_set(tmp_path: Path) -> None:
    assert same(filled({"best": state(1), "last": state(1)}, tmp_path)[0], state(1))


def test_what_is_no_weight_is_left_out_and_named(tmp_path: Path) -> None:
    beside = {
        "n_averaged": torch.tensor(3),
        "conv1.total_ops": torch.zeros(1),
        "total_params": torch.zeros(1),
        "criterion.weight": torch.ones(10),
        "loss.centers": torch.ones(10, 4),
    }
    found, notes = filled({**state(1), **beside}, tmp_path)
    assert same(found, state(1))
    assert notes == (
        "Of w.pt is left out what is no weight of the network: n_averaged, conv1.total_ops, total_params and 2 more.",
    )


def test_weights_of_another_depth_are_still_surplus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 weights that Body does not have: conv3\.weight"):
        filled({**state(1), "conv3.weight": torch.ones(2)}, tmp_path)
    with pytest.raises(UserError, match=r"1 weights that Body does not have: conv3\.weight"):
        filled({"model": under("module.", {**state(1), "conv3.weight": torch.ones(2)})}, tmp_path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_part_that_looks_like_the_whole_is_not_taken_for_it(prefix: str, tmp_path: Path) -> None:
    content = under(prefix, {**state(1), **under("momentum.", state(2))})
    with pytest.raises(UserError, match=r"has 16 weights that Body does not have: momentum\.conv1\.weight"):
        filled(content, tmp_path)
    assert same(filled(content, tmp_path, "momentum")[0], state(2))


def test_a_network_that_has_such_a_weight_keeps_it(tmp_path: Path) -> None:
    network = nn.ModuleDict({"criterion": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
    content = {key: tensor + 1 for key, tensor in network.state_dict().items()}
    torch.save(content, tmp_path / "w.pt")
    assert load_weights(network, tmp_path / "w.pt") == ()
    assert same(network.state_dict(), content)


# -- what else a file holds ---------------------------------------------------------------------------------------

BESIDE: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), deeper=argparse.Namespace(seed=1)),
    "numpy scalars": {"best": np.float64(0.93), "epoch": np.int64(3), "done": np.bool_(True)},
    "numpy array": np.arange(6.0).reshape(2, 3),
    "array of objects": np.array([{"a": 1}, None], dtype=object),
    "paths": [pathlib.Path("a/b"), pathlib.PureWindowsPath("c:/d"), pathlib.PurePosixPath("e")],
    "defaultdict": collections.defaultdict(list, {"loss": [1.0, 2.0]}),
    "nested defaultdict": collections.defaultdict(dict, {"a": collections.defaultdict(float, {"b": 1.0})}),
    "ordered": collections.OrderedDict(a=1),
    "torch": [torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.strided],
    "a set and a counter": [{1, 2}, collections.Counter("aab")],
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_objects_beside_weights_do_no_harm(name: str, zipped: bool, tmp_path: Path) -> None:
    file, network = tmp_path / "w.pt", body(0)
    content = {
        "state_dict": state(1),
        "args": BESIDE[name],
        "optimizer": torch.optim.SGD(network.parameters(), 1).state_dict(),
    }
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    load_weights(network, file)
    assert same(network.state_dict(), state(1))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2"])
def test_weights_in_arrays_of_numpy(order: Any, kind: str, tmp_path: Path) -> None:
    arrays = {k: np.asarray(t, dtype=kind if t.is_floating_point() else None, order=order) for k, t in state(1).items()}
    found, _ = filled({"model": arrays}, tmp_path)
    exact = {k: torch.from_numpy(a.astype(a.dtype.newbyteorder("="))) for k, a in arrays.items()}
    assert same(found, {k: t.float() if t.is_floating_point() else t for k, t in exact.items()})


class Config:
    """A class of a training script."""


def test_a_class_of_the_script_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds code \(tests\.core\.test_weights\.Config\)"):
        filled({"state_dict": state(1), "config": Config()}, tmp_path)


def forged(name: str, canary: Path) -> Any:
    """A checkpoint that reaches for ``canary`` through the objects that are let in."""
    evil = Call(os.system, f"touch {canary}")
    match name:
        case "factory":
            return {"state_dict": state(1), "log": Call(collections.defaultdict, evil)}
        case "namespace":
            return {"state_dict": state(1), "args": argparse.Namespace(lr=evil)}
        case "path":
            return {"state_dict": state(1), "out": Call(pathlib.PosixPath, evil)}
        case "array":
            return {"state_dict": state(1), "best": np.array([evil], dtype=object)}
    return {"state_dict": state(1), "log": Call(list, Call(map, os.mkdir, [str(canary)]))}


@pytest.mark.parametrize("name", ["factory", "namespace", "path", "array", "list"])
def test_nothing_is_executed_through_what_is_let_in(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(UserError, match="is refused"):
        filled(forged(name, canary), tmp_path)
    assert not canary.exists()


class Pointers:
    """An array of objects by numpy's own names, whose bytes would be read as addresses."""

    def __reduce__(self) -> Any:
        kind = (np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
        reconstruct = np.arange(1).__reduce__()[0]
        return reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), Reduced(*kind), False, b"\x01" * 8)


class Reduced:
    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return self.parts


def test_no_array_is_made_of_a_strangers_addresses(tmp_path: Path) -> None:
    found, _ = filled({"state_dict": state(1), "best": Pointers(), "linear.bias": Pointers()}, tmp_path)
    assert same(found, state(1))


def test_mappings_that_hold_themselves_or_one_another_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {"x": torch.zeros(1)}
    for _ in range(40):
        content = {f"{i}": content for i in range(30)}
    content["self"] = content
    with pytest.raises(UserError, match=r"no state dict|another network"):
        filled(content, tmp_path)


# -- by the verbs -------------------------------------------------------------------------------------------------


def test_the_verbs_take_the_key_and_say_what_was_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = resolve("zoo:digits_teacher").module
    trained = network.state_dict()
    torch.save({"student": {k: 0 * t for k, t in trained.items()}, "teacher": trained}, file := tmp_path / "both.pt")
    words = ["evaluate", "zoo:digits_teacher", "--data=digits", f"--weights={file}"]
    assert cli.main(words) == 2 and "weights_key" in capsys.readouterr().err
    assert cli.main([*words, "--weights_key", "teacher"]) == 0
    said = capsys.readouterr().out
    assert "99.20%" in said and "note     The weights of both.pt are those under 'teacher'." in said
    with pytest.raises(UserError, match="weights_key chooses among the weights in a file"):
        upcycle.evaluate("zoo:digits_teacher", "digits", weights_key="teacher")


def test_each_role_has_a_key_of_its_own(tmp_path: Path) -> None:
    torch.save({"raw": state(1), "mean": state(2)}, file := tmp_path / "both.pt")
    setting = Setting(teacher_weights=str(file), teacher_weights_key="raw", student_weights=str(file))
    teacher, student = (naming_of(setting, role) for role in ("teacher", "student"))
    assert (teacher.weights_key, student.weights_key) == ("raw", None)
    model = resolve(body(0), input_shape=SHAPE, weights=teacher.file, weights_key=teacher.weights_key)
    assert same(model.module.state_dict(), state(1)) and "'raw'" in model.notes[0]


class Elsewhere:
    """A class that another library tells torch's reader to trust."""


def test_names_that_other_libraries_trust_are_not_known(tmp_path: Path) -> None:
    foreign = [Elsewhere, list, (dict, "collections.defaultdict")]
    with torch.serialization.safe_globals(foreign):
        before = set(torch.serialization.get_safe_globals())
        file, network = tmp_path / "w.pt", body(0)
        torch.save({"state_dict": state(1), "args": collections.defaultdict(list, {"loss": [1.0]})}, file)
        load_weights(network, file)
        assert same(network.state_dict(), state(1))
        torch.save({"state_dict": state(1), "args": Elsewhere()}, file)
        with pytest.raises(UserError, match="Elsewhere"):
            load_weights(network, file)
        assert set(torch.serialization.get_safe_globals()) == before
