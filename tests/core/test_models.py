"""Model references, weights files, saved models and exports."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from upcycle.core import building, models, references, store
from upcycle.core.errors import UserError
from upcycle.core.lineage import node
from upcycle.core.models import Model
from upcycle.core.outputs import Columns, Logits
from upcycle.core.references import check_reference, resolve
from upcycle.core.saved import load, save
from upcycle.core.weights import load_weights

SHAPE = (1, 8, 8)


def small(seed: int = 0, **options: Any) -> Model:
    torch.manual_seed(seed)
    return resolve("zoo:convnet_small", pretrained=False, input_shape=SHAPE, **options)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory holds a module of the user's with callables that make networks."""
    (tmp_path / "my_networks_7f.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
        "def fixed():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
        "def text():\n"
        "    return 'no network'\n"
        "def broken():\n"
        "    raise RuntimeError('out of\\norder')\n"
    )
    (tmp_path / "my_broken_7f.py").write_text("import there_is_no_such_module_7f\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks_7f", raising=False)
    return tmp_path


# -- references ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("zoo:convnet_smal", "Did you mean 'convnet_small'"),
        ("zoo:", "names no model"),
        ("resnet20", "Did you mean zoo:resnet20"),
        ("tim:resnet18", "Did you mean 'timm'"),
        ("no_such_package_7f.models:net", "zoo:NAME, timm:NAME, torchvision:NAME, hf:ORG/NAME"),
        ("./no/such/directory", "no directory"),
        ("hf:a/b/c", "hf:ORG/NAME"),
    ],
)
def test_unknown_references_are_named_at_once(reference: str, says: str) -> None:
    for act in (check_reference, resolve):
        with pytest.raises(UserError) as caught:
            act(reference)
        assert says in str(caught.value)


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no saved model"):
        check_reference(str(tmp_path))
    (tmp_path / "weights.pt").touch()
    with pytest.raises(UserError, match="Give its architecture as the model and this file as its weights"):
        resolve(tmp_path / "weights.pt")


def test_callable_from_the_current_directory(here: Path) -> None:
    check_reference("my_networks_7f:tiny")
    assert references.is_bare("my_networks_7f:tiny")
    assert not references.is_bare("zoo:mlp")
    model = resolve("my_networks_7f:tiny", input_shape=SHAPE, num_classes=5)
    assert model.module(model.example(3)).shape == (3, 5)
    assert model.classes == ("0", "1", "2", "3", "4")
    assert (model.mean, model.std) == ((0.0,), (1.0,))
    assert (model.reference, model.options) == ("my_networks_7f:tiny", {"num_classes": 5})
    assert not model.module.training
    assert str(here) not in sys.path


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("my_networks_7f:tyni", "Did you mean 'tiny'"),
        ("my_networks_7f:text", "returned a str"),
        ("my_networks_7f:broken", "RuntimeError: out of."),
        ("my_networks_7f:nn", "is not a callable"),
        ("my_broken_7f:net", "No module named 'there_is_no_such_module_7f'"),
        ("my_networks_7f:fixed", "has 4 outputs, not 5"),
    ],
)
def test_callables_that_fail_do_so_in_one_sentence(here: Path, reference: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(reference, input_shape=SHAPE, num_classes=5)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_objects_are_imported_by_name(here: Path) -> None:
    assert building.import_object("my_networks_7f:fixed").__name__ == "fixed"
    for name in ("my_networks_7f", ":fixed", "my_networks_7f:", "no_package_7f:fixed", "a b:c"):
        with pytest.raises(UserError, match=r"package\.module:name"):
            building.import_object(name)


def test_callable_needs_an_image_shape(here: Path) -> None:
    with pytest.raises(UserError, match=r"give input_shape=\(channels, height, width\)"):
        resolve("my_networks_7f:tiny")


def test_a_bare_module_keeps_its_mode_and_statistics() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3))
    module[0].eval()
    before, rng = state_of(module), torch.get_rng_state()
    model = resolve(module, input_shape=SHAPE, classes=("a", "b", "c"), mean=(0.3,), std=(0.4,))
    assert model.module is module
    assert [m.training for m in module] == [False, True, True]
    assert equal(before, module.state_dict())
    assert torch.equal(rng, torch.get_rng_state())
    assert (model.mean, model.std, model.reference) == ((0.3,), (0.4,), None)


def test_a_model_passes_through_with_overrides() -> None:
    model = small()
    other = resolve(model, mean=(0.1,), classes=tuple("abcdefghij"))
    assert other.module is model.module
    assert (other.mean, other.std, other.classes[0]) == ((0.1,), model.std, "a")
    assert model.classes[0] == "0"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": (0.1, 0.2)}, "mean must have one number for each of the 1 channels"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"std": (float("nan"),)}, "std must have one number"),
        ({"classes": ("a", "b")}, "10 outputs, but 2 class names"),
        ({"num_classes": 7}, "10 outputs, not 7"),
        ({"input_shape": (2, 8, 8), "mean": (0, 0), "std": (1, 1)}, "does not take images with 2 channels"),
        ({"input_shape": (0, 8, 8)}, "three positive numbers"),
    ],
)
def test_facts_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(small(), **change)
    assert says in str(caught.value)


class Answer(nn.Module):
    """A classifier that gives its logits in some wrapping."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.wrap = nn.Linear(64, 3), wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.linear(images.flatten(1)))


class WithLogits:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


WRAPS = [lambda x: (x, "more"), lambda x: {"loss": None, "logits": x}, WithLogits]


@pytest.mark.parametrize("wrap", WRAPS)
def test_wrapped_logits_are_taken_out(wrap: Callable[[Tensor], Any], tmp_path: Path) -> None:
    network = Answer(wrap)
    model = resolve(network, input_shape=SHAPE)
    x = model.example(4)
    assert isinstance(model.module, Logits)
    assert torch.equal(model.module(x), network.linear(x.flatten(1)))
    assert len(model.classes) == 3
    save_file(Answer(wrap).state_dict(), tmp_path / "w.safetensors")  # the file knows nothing of the wrapper
    load_weights(model.module, tmp_path / "w.safetensors")
    assert equal(store.parse_tensors((tmp_path / "w.safetensors").read_bytes(), tmp_path), network.state_dict())


@pytest.mark.parametrize("wrap", [lambda x: x[0], lambda x: x[:, :, None], lambda x: None, lambda x: {"out": x}])
def test_what_is_no_classifier_is_refused(wrap: Callable[[Tensor], Any]) -> None:
    with pytest.raises(UserError, match="is no classifier of images"):
        resolve(Answer(wrap), input_shape=SHAPE)


def test_a_network_spoilt_by_nan_is_refused() -> None:
    model = small()
    model.module.get_parameter("block2.1.weight").data[3, 1, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"block2\.1\.weight"):
        resolve(model)


def test_example_is_fixed_and_normalised() -> None:
    model = resolve("zoo:resnet8", pretrained=False, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    rng = torch.get_rng_state()
    x = model.example(16)
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.equal(x, model.example(16))
    images = x * torch.tensor(model.std).view(3, 1, 1) + torch.tensor(model.mean).view(3, 1, 1)
    assert x.shape == (16, 3, 32, 32)
    assert images.min() >= -1e-6 and images.max() <= 1 + 1e-6 and images.std() > 0.2


def test_columns_read_the_outputs_in_another_order() -> None:
    model = small()
    x = model.example(3)
    assert torch.equal(Columns(model.module, torch.tensor([4, 1]))(x), model.module(x)[:, [4, 1]])


def test_a_copy_is_independent() -> None:
    model = small()
    copy = models.copy_of(model.module)
    copy.get_parameter("linear.bias").data.add_(1)
    assert not torch.equal(copy.get_parameter("linear.bias"), model.module.get_parameter("linear.bias"))


# -- weights files -------------------------------------------------------------------------------------------


def envelopes() -> dict[str, Callable[[dict[str, Tensor]], Any]]:
    def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
        return lambda state: {prefix + key: tensor for key, tensor in state.items()}

    return {
        "plain": lambda state: state,
        "ordered": OrderedDict,
        "state_dict": lambda state: {"epoch": 3, "state_dict": state, "best": torch.tensor(0.9)},
        "nested": lambda state: {"model": {"state_dict": state}},
        "ema": lambda state: {"ema": state},
        "parallel": prefixed("module."),
        "compiled": prefixed("_orig_mod.module."),
        "lightning": lambda state: {"state_dict": prefixed("model.")(state), "callbacks": {}},
        "half": lambda state: {k: t.half() if t.is_floating_point() else t for k, t in state.items()},
        "old": lambda state: {k: t for k, t in state.items() if "num_batches" not in k},
    }


@pytest.mark.parametrize("name", envelopes())
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_fill_a_network(name: str, zipped: bool, tmp_path: Path) -> None:
    source, target = small(1).module, small(2).module
    torch.save(envelopes()[name](state_of(source)), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    load_weights(target, tmp_path / "w.pth")
    exact = {k: t.half().float() if name == "half" and t.is_floating_point() else t
             for k, t in state_of(source).items()}  # fmt: skip
    assert equal(state_of(target), exact)


def test_weights_for_a_reference_need_no_trained_ones(tmp_path: Path) -> None:
    source = small(1)
    save_file(source.module.state_dict(), tmp_path / "w.safetensors")
    model = resolve("zoo:convnet_small", weights=tmp_path / "w.safetensors", input_shape=SHAPE)
    assert equal(state_of(model.module), state_of(source.module))
    assert model.licence == "unknown"


def changed(name: str) -> dict[str, Tensor]:
    state = state_of(small(1).module)
    match name:
        case "missing":
            return {k: t for k, t in state.items() if not k.startswith("block3.1.") and not k.startswith("linear")}
        case "none":
            return {k.replace(".", "_"): t for k, t in state.items()}
        case "surplus":
            return {**state, "fc.weight": torch.zeros(2)}
        case "shape":
            return {**state, "linear.weight": torch.zeros(7, 16)}
        case "nan":
            state["block1.0.weight"][0, 0, 1, 1] = float("inf")
    return state


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "lacks 3 of the 20 weights of ConvNet: block3.1.weight, linear.weight, linear.bias"),
        ("none", "belongs to another network"),
        ("surplus", "fc.weight"),
        ("shape", "'linear.weight' with shape (7, 16), but ConvNet has (10, 16)"),
        ("nan", "not finite, in 'block1.0.weight'"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_that_do_not_fit_change_nothing(name: str, says: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(changed(name), file)
    module = small(2).module
    before = state_of(module)
    with pytest.raises(UserError) as caught:
        load_weights(module, file)
    assert says in str(caught.value) and str(file) in str(caught.value)
    assert equal(before, state_of(module))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated_files_are_named(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"w.{suffix}"
    module = small().module
    (save_file if suffix == "safetensors" else torch.save)(state_of(module), file)
    content = file.read_bytes()
    for size in (0, 1, 7, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"w\."):
            load_weights(module, file)


def test_other_files_are_named(tmp_path: Path) -> None:
    module = small().module
    (tmp_path / "text.pt").write_text("not weights at all")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    torch.save({"lr": 0.1}, tmp_path / "empty.pt")
    for name, says in (
        ("text.pt", "is refused"),
        ("list.pt", "no state dict"),
        ("empty.pt", "no state dict"),
        ("absent.pt", "no weights file"),
    ):
        with pytest.raises(UserError, match=says):
            load_weights(module, tmp_path / name)
    with pytest.raises(UserError, match="is a directory"):
        load_weights(module, tmp_path)


@pytest.mark.parametrize("place", ["sidecar", "list", "upper list"])
def test_a_flipped_bit_is_noticed_where_there_is_a_digest(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    file = folder / "w.safetensors"
    save_file(small(1).module.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    where, line = {
        "sidecar": (folder / "w.safetensors.sha256", digest),
        "list": (folder / "SHA256SUMS", f"{'0' * 64}  other.bin\n{digest} *w.safetensors"),
        "upper list": (tmp_path / "SHA256SUMS", f"{digest}  ./weights/w.safetensors"),
    }[place]
    where.write_text(line + "\n")
    load_weights(small(2).module, file)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_weights(small(2).module, file)


def test_the_weights_of_a_saved_model_are_checked_by_its_manifest(tmp_path: Path) -> None:
    save(small(1), tmp_path / "m")
    file = tmp_path / "m" / "weights.safetensors"
    load_weights(small(2).module, file)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"tensor '"):
        load_weights(small(2).module, file)


class Evil:
    """Unpickled, it would call ``call``."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def evil_files(folder: Path, marker: Path) -> list[Path]:
    """Pickles in many disguises that would each make the file ``marker``."""
    touch = f"open({str(marker)!r}, 'w').close()"
    calls = {
        "system": Evil(os.system, f"touch {marker}"),
        "exec": Evil(exec, touch),
        "eval": Evil(eval, touch),
        "popen": Evil(subprocess.Popen, ["touch", str(marker)]),
        "mkdir": Evil(os.mkdir, str(marker)),
        "open": Evil(open, str(marker), "w"),
        "getattr": Evil(getattr, Evil(__import__, "os"), "system"),
    }
    state = state_of(small().module)
    files = []
    for name, evil in calls.items():
        for protocol in (0, 2, 4):
            files.append(folder / f"{name}-{protocol}.pkl")
            files[-1].write_bytes(pickle.dumps(evil, protocol=protocol))
        for zipped in (True, False):
            files.append(folder / f"{name}-{zipped}.pt")
            torch.save({**state, "linear.bias": evil}, files[-1], _use_new_zipfile_serialization=zipped)
        files.append(folder / f"{name}-key.pt")
        torch.save({"state_dict": state, "optimizer": [{"lr": (evil,)}]}, files[-1])
        files.append(folder / f"{name}.safetensors")
        files[-1].write_bytes(pickle.dumps(evil))
    archive = folder / "tar.pt"
    with tarfile.open(archive, "w") as tar:
        for part in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(calls["system"], protocol=2)
            info = tarfile.TarInfo(part)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    script = folder / "script.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(script))
    swapped = folder / "swapped.pt"  # a sound archive whose pickle was exchanged
    torch.save(state, folder / "sound.bin")
    with zipfile.ZipFile(folder / "sound.bin") as old, zipfile.ZipFile(swapped, "w") as new:
        for item in old.namelist():
            evil_pickle = pickle.dumps(calls["system"], protocol=2)
            new.writestr(item, evil_pickle if item.endswith("data.pkl") else old.read(item))
    return [*files, archive, script, swapped]


def test_nothing_of_a_strangers_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    files = evil_files(tmp_path, marker)
    assert len(files) > 30
    with pytest.raises(AttributeError):  # the marker works: this call is what unpickling would have made
        os.system(f"touch {marker}").nothing  # type: ignore[attr-defined]  # noqa: B018
    assert marker.exists()
    marker.unlink()
    module = small().module
    before = state_of(module)
    for file in files:
        with pytest.raises(UserError) as caught:
            load_weights(module, file)
        assert str(file) in str(caught.value)
        if file.suffix == ".pt":
            assert "refused" in str(caught.value) and "safetensors" in str(caught.value), file
        assert not marker.exists(), file
    assert equal(before, state_of(module))


# -- saved models --------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = small(3, mean=(0.2,), std=(0.3,), classes=tuple("abcdefghij"), num_classes=10)
    model.lineage, model.licence, model.name = node(name="x", digest=""), "MIT", "tiny"
    model.module.to(memory_format=torch.channels_last).train()
    save(model, tmp_path / "run" / "model", readme="# tiny\n")
    assert sorted(p.name for p in (tmp_path / "run" / "model").iterdir()) == [
        "README.md", "architecture.json", "lineage.json", "manifest.json", "weights.safetensors",
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["model"]
    model.module.eval()
    for back in (load(tmp_path / "run" / "model"), load(tmp_path / "run"), resolve(tmp_path / "run")):
        for fact in (
            "input_shape",
            "mean",
            "std",
            "classes",
            "reference",
            "options",
            "licence",
            "lineage",
            "name",
        ):
            assert getattr(back, fact) == getattr(model, fact), fact
        assert equal(state_of(back.module), state_of(model.module))
        assert all(t.is_contiguous() for t in back.module.state_dict().values())
        assert not back.module.training
    record = store.read_json(tmp_path / "run" / "model" / "architecture.json")
    assert record["weights"] == store.tensor_digest(model.module.state_dict())


def test_the_same_architecture_with_fresh_weights_and_other_classes(tmp_path: Path) -> None:
    save(small(3), tmp_path / "m")
    fresh = resolve(tmp_path / "m", pretrained=False, num_classes=4)
    assert fresh.module(fresh.example()).shape == (2, 4)
    assert len(fresh.classes) == 4 and fresh.input_shape == SHAPE
    same = resolve(tmp_path / "m", pretrained=False)
    assert not torch.equal(state_of(same.module)["linear.weight"], state_of(small(3).module)["linear.weight"])


def test_dtype_survives(tmp_path: Path) -> None:
    model = small(3)
    model.module.double()
    save(model, tmp_path / "m")
    assert equal(state_of(load(tmp_path / "m").module), state_of(model.module))


def test_saving_again_replaces_and_spares_what_is_not_ours(tmp_path: Path) -> None:
    save(small(1), tmp_path / "m")
    save(small(2), tmp_path / "m")
    assert equal(state_of(load(tmp_path / "m").module), state_of(small(2).module))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is no saved model"):
        save(small(), tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(small(1), tmp_path / "m")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_manifest", full)
    with pytest.raises(UserError, match="No space left"):
        save(small(2), tmp_path / "m")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert equal(state_of(load(tmp_path / "m").module), state_of(small(1).module))


def test_every_damaged_byte_of_a_saved_model_is_noticed(tmp_path: Path) -> None:
    save(small(1), tmp_path / "m")
    generator = torch.Generator().manual_seed(0)
    for name in ("weights.safetensors", "architecture.json", "manifest.json"):
        file = tmp_path / "m" / name
        whole = file.read_bytes()
        for _ in range(20):
            at, bit = (int(torch.randint(n, (), generator=generator)) for n in (len(whole), 8))
            content = bytearray(whole)
            content[at] ^= 1 << bit
            for broken in (bytes(content), whole[:at]):
                file.write_bytes(broken)
                with pytest.raises(UserError, match=r"m/"):
                    load(tmp_path / "m")
        file.write_bytes(whole)
    load(tmp_path / "m")


def test_the_model_card_may_be_edited(tmp_path: Path) -> None:
    save(small(1), tmp_path / "m", readme="card")
    (tmp_path / "m" / "README.md").write_text("a better card")
    load(tmp_path / "m")


def test_a_python_instance_reloads_into_another(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    model = resolve(network(), input_shape=SHAPE)
    save(model, tmp_path / "m")
    for act in (load, resolve):
        with pytest.raises(UserError, match=r"load\(path, into=module\)"):
            act(tmp_path / "m")
    other = network()
    assert load(tmp_path / "m", into=other).module is other
    assert equal(state_of(other), state_of(model.module))
    with pytest.raises(UserError, match=r"lacks|another network|shape"):
        load(tmp_path / "m", into=nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))


def test_code_is_imported_only_when_trusted(here: Path) -> None:
    model = resolve("my_networks_7f:tiny", input_shape=SHAPE, num_classes=5)
    save(model, here / "m")
    (here / "my_networks_7f.py").write_text("open('imported', 'w').close()\n" + Path("my_networks_7f.py").read_text())
    sys.modules.pop("my_networks_7f")
    with pytest.raises(UserError, match="--trust my_networks_7f"):
        resolve(here / "m", trust=("os", "torch"))
    assert not (here / "imported").exists()
    back = resolve(here / "m", trust=("my_networks_7f",))
    assert (here / "imported").exists()
    assert equal(state_of(back.module), state_of(model.module))


def reseal(directory: Path, **changes: Any) -> None:
    """Forge a saved model: other facts under a valid manifest."""
    record = {**store.read_json(directory / "architecture.json"), **changes}
    store.write_json(directory / "architecture.json", record)
    store.write_manifest(directory)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 3}, "use the version that wrote it"),
        ({"reference": "os:system"}, "--trust os"),
        ({"options": {"pretrained": True, "trust_remote_code": True}}, "takes no option 'trust_remote_code'"),
        ({"input_shape": "abc"}, "is damaged"),
        ({"mean": None}, "is damaged"),
        ({"reference": "zoo:resnet8"}, "another network|lacks"),
        ({"reference": "zoo:nothing"}, "no zoo model"),
    ],
)
def test_forged_models_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    save(small(), tmp_path / "m")
    reseal(tmp_path / "m", **changes)
    with pytest.raises(UserError, match=says):
        load(tmp_path / "m")


@pytest.mark.parametrize("reference", ["assembly:stitched", "continual:meat"])
def test_what_was_made_of_others_is_no_model_by_itself(reference: str) -> None:
    for ask in (check_reference, resolve):
        with pytest.raises(UserError, match="no model by itself; give the directory"):
            ask(reference)
