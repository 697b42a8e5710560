"""One way to name a network: what a person says beside the reference, what is read off the data, label maps."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import upcycle
from tests.corpus import picture_folder
from tests.verbs.test_bad_input import Refused, here, refused
from upcycle import UserError, cli
from upcycle.core import references, saved
from upcycle.data.images import Images
from upcycle.verbs.adapt import Setting
from upcycle.verbs.methods import find_method
from upcycle.verbs.naming import Naming, naming_of
from upcycle.verbs.networks import network, network_and_images
from upcycle.verbs.options import default_of, split_options

__all__ = ["here", "refused"]  # fixtures

TEACHER = "zoo:digits_teacher"


class Brightness(nn.Module):
    """Tells images by their mean alone: of any size, with any channels, with as many outputs as are asked for."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1, k)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((1, 2, 3))[:, None])


class Wide(nn.Module):
    """Takes images of 16 x 48 pixels in one channel and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16 * 48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


# -- what a network takes ---------------------------------------------------------------------------------------


def test_a_module_takes_its_shape_and_names_from_the_data() -> None:
    model, images = network_and_images(Brightness(10), "digits", Naming())
    assert model.input_shape == images.shape == (1, 8, 8) and model.classes == images.classes
    model, images = network_and_images(Brightness(10), "digits", Naming(size=(3, 12, 20)))
    assert model.input_shape == images.shape == (3, 12, 20)
    model, _ = network_and_images(Brightness(10), "digits", Naming(mean=(0.5,) * 3, std=(0.25,) * 3))
    assert model.input_shape == (3, 8, 8) and model.mean == (0.5, 0.5, 0.5)


def test_without_data_the_size_says_it() -> None:
    assert network(Brightness(4), Naming(size=(3, 16, 48))).input_shape == (3, 16, 48)
    assert network(Brightness(4), Naming(size=16, mean=(0.5,))).input_shape == (1, 16, 16)
    with pytest.raises(UserError, match=r"Brightness does not say what images it takes: give --size CHANNELS"):
        network(Brightness(4), Naming(size=16))


def test_images_need_not_be_square() -> None:
    found = upcycle.evaluate(Wide(), "digits", size=(16, 48))
    assert found.model.input_shape == (1, 16, 48) and found.count == 500
    with pytest.raises(UserError, match="1 channels of 8 x 8 pixels"):
        upcycle.evaluate(Wide(), "digits")


def test_weights_fill_a_copy(tmp_path: Path) -> None:
    mine, other = Brightness(10), Brightness(10)
    before = mine.linear.weight.detach().clone()
    torch.save(other.state_dict(), tmp_path / "w.pt")
    filled = network(mine, Naming(weights=str(tmp_path / "w.pt"), size=(1, 8, 8)))
    assert torch.equal(mine.linear.weight, before)
    assert torch.equal(filled.module.state_dict()["linear.weight"], other.linear.weight)


def test_fresh_weights_are_for_references() -> None:
    model, images = network_and_images("zoo:convnet_small", "digits", Naming(weights="fresh"))
    assert model.input_shape == images.shape and model.classes == images.classes
    with pytest.raises(UserError, match="comes as it is, and not with fresh weights"):
        network(Brightness(4), Naming(weights="fresh", size=(1, 8, 8)))


def test_a_size_that_a_network_does_not_take() -> None:
    with pytest.raises(UserError, match=r"takes no images of 1 x 8 x 9 .*; leave out --size for its own 16 x 48"):
        network(references.resolve(Wide(), input_shape=(1, 16, 48)), Naming(size=(8, 9)))


@pytest.mark.parametrize("kind", ["zoo:convnet_small", "zoo:mlp_small"])
def test_a_named_set_of_another_size_is_no_surprise(kind: str, here: Path, refused: Refused) -> None:
    """A network without a word on smaller images than its own, or a traceback where it takes no others."""
    saved.save(references.resolve(kind, pretrained=False, num_classes=10, input_shape=(1, 16, 16)), here / "net")
    commands = {
        "evaluate": ["evaluate", "net", "--data=digits"],
        "distill": ["distill", "--teacher=net", "--student=zoo:convnet_small", "--data=digits", "--dry_run"],
        "disassemble": ["disassemble", "net", "--data=digits", "--classes=3", "--dry_run"],
    }
    for words in commands.values():
        refused(words, "takes images of 16 x 16 pixels, and those of digits have 8 x 8: give --size 16,16")
    for size in ("--size=16,16", "--size=8,8") if "conv" in kind else ("--size=16,16",):
        assert cli.main([*commands["evaluate"], size]) == 0
        assert cli.main([*commands["distill"], size]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size must be positive"),
        ({"size": (1, 2, 3, 4)}, "SIDE or HEIGHT,WIDTH or CHANNELS,HEIGHT,WIDTH, not 1,2,3,4"),
        ({"weights": "nowhere.pt"}, "There is no file nowhere.pt"),
        ({"label_map": "nowhere.csv"}, "There is no file nowhere.csv"),
        ({"trust": ("a b",)}, "'a b' is no such name"),
        ({"classes": ("cat", "")}, "names with commas between"),
    ],
)
def test_what_is_said_wrongly(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Naming(**options)
    with pytest.raises(UserError, match=r"no option of evaluate 'wieghts'. Did you mean 'weights'"):
        upcycle.evaluate(TEACHER, wieghts="x")


def test_class_names_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\n golden retriever \n")
    assert Naming(classes=(str(tmp_path / "names.txt"),)).classes == ("cat", "golden retriever")


def test_a_role_has_its_own_options_and_shares_the_others() -> None:
    from upcycle.verbs.distill import Setting

    setting = Setting(teacher_mean=(0.5,), student_std=(0.2,), size=(16, 48), trust=("my_models",))
    teacher, student = naming_of(setting, "teacher"), naming_of(setting, "student")
    assert (teacher.mean, teacher.std, student.mean, student.std) == ((0.5,), None, None, (0.2,))
    assert teacher.size == student.size == (16, 48) and teacher.trust == student.trust == ("my_models",)


# -- what is said about no network ------------------------------------------------------------------------------


def test_what_is_said_about_a_network_that_is_not_there(here: Path, refused: Refused) -> None:
    student = ["--student=zoo:convnet_small", "--data=digits"]
    refused(["distill", "--method=tfkd", *student, "--teacher_mean=[0.5]"], "no teacher here; leave out --teacher_mean")
    refused(["adapt", TEACHER, "--student_weights=pretrained", "--out=run"], "no student; leave out --student_weights")
    refused(["adapt", "--method=ba3us", *student, "--source_data=digits", "--weights=fresh", "--out=run"],
            "no MODEL; leave out --weights")  # fmt: skip


# -- label maps -------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped(here: Path) -> tuple[nn.Module, Path]:
    """A network with ten outputs, a folder with three of its classes, and the map between them."""
    picture_folder(here / "animals", ("cat", "dog", "owl"), n=20)
    (here / "map.csv").write_text("teacher,student\n7,cat\n0,dog\n3,owl\n")
    torch.manual_seed(0)
    return Brightness(10), here / "map.csv"


def test_a_map_names_the_outputs_that_are_measured(mapped: tuple[nn.Module, Path]) -> None:
    net, file = mapped
    found = upcycle.evaluate(net, "animals", label_map=file)
    assert found.classes == ("cat", "dog", "owl") and len(found.confusion) == 3
    with pytest.raises(UserError, match=r"10 outputs, not 3: .*label map"):
        upcycle.evaluate(net, "animals")
    with pytest.raises(UserError, match=r"10 classes of digits_teacher and the 3 of animals .* --label_map FILE"):
        upcycle.evaluate(TEACHER, "animals")
    assert upcycle.evaluate(TEACHER, "animals", label_map=file).classes == found.classes


def test_a_map_names_what_is_predicted(mapped: tuple[nn.Module, Path]) -> None:
    net, file = mapped
    whole, chosen = upcycle.predict(net, "animals"), upcycle.predict(net, "animals", label_map=file, out="p.csv")
    assert chosen.classes == ("cat", "dog", "owl") and whole.classes == tuple("0123456789")
    among = whole.probabilities[:, [7, 0, 3]]
    torch.testing.assert_close(chosen.probabilities, among / among.sum(1, keepdim=True))
    rows = list(csv.DictReader(Path("p.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == chosen.predicted and len(rows) == len(chosen.paths)


def test_a_teacher_with_more_outputs_than_the_data_have_classes(mapped: tuple[nn.Module, Path]) -> None:
    net, file = mapped
    made = upcycle.distill(teacher=net, student=Brightness(3), data="animals", label_map=file, out="run", quiet=True,
                           recipe={"epochs": 1})  # fmt: skip
    assert made.model.classes == ("cat", "dog", "owl")
    names = tuple("abcdefghij")
    (file.parent / "named.csv").write_text("teacher,student\nh,cat\na,dog\nd,owl\n")
    again = upcycle.distill(teacher=net, teacher_classes=names, student=Brightness(3), data="animals", quiet=True,
                            label_map="named.csv", out="again", recipe={"epochs": 1})  # fmt: skip
    assert again.rows[0]["accuracy"] == made.rows[0]["accuracy"]


def test_the_images_of_a_treatment_are_labelled_by_a_map(mapped: tuple[nn.Module, Path]) -> None:
    from upcycle.verbs.networks import in_classes_of

    net, file = mapped
    model, images = network_and_images(net, "animals", said := Naming(label_map=file))
    seen: Images = in_classes_of(model, images, said)
    assert seen.classes == tuple("0123456789") and set(seen.train.labels.tolist()) == {7, 0, 3}


# -- verbs that give data ---------------------------------------------------------------------------------------


def test_an_image_alone_is_predicted_and_explained(here: Path) -> None:
    Image.new("L", (8, 8), 99).save("one.png")
    found = upcycle.predict(TEACHER, "one.png")
    assert found.paths == ["one.png"] and found.probabilities.shape == (1, 10) and not list(here.glob("*.csv"))
    assert cli.main(["explain", TEACHER, "one.png", "--methods=saliency", "--out=why"]) == 0
    assert len(list(Path("why/maps/saliency").glob("*.png"))) == 1


def test_a_lineage_is_read_without_its_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.save(references.resolve(TEACHER), here / "net")

    def no(*given: Any, **options: Any) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(saved, "_rebuild", no)
    monkeypatch.setattr(references, "resolve", no)
    assert upcycle.lineage("net")["name"] == "digits_teacher"
    assert cli.main(["lineage", "net"]) == 0
    with pytest.raises(UserError, match="carries no lineage"):
        upcycle.lineage(Brightness(3))


def test_export_takes_a_module(here: Path) -> None:
    file = upcycle.export(Brightness(3), "net.pt2", format="torch", size=(1, 8, 8), classes=("a", "b", "c"))
    assert file == Path("net.pt2") and file.is_file()
    with pytest.raises(UserError, match="give --size CHANNELS,HEIGHT,WIDTH"):
        upcycle.export(Brightness(3), "other.pt2", format="torch")


def test_a_report_is_the_function_whatever_was_imported_before(here: Path) -> None:
    import upcycle.reports

    with pytest.raises(UserError, match="holds no finished run"):
        upcycle.report("nowhere")


# -- several networks -------------------------------------------------------------------------------------------


def test_parts_of_ones_own_are_named_in_their_order(here: Path) -> None:
    said: dict[str, Any] = {"size": (1, 8, 8), "quiet": True}
    made = upcycle.assemble([Brightness(2), Brightness(3)], classes=tuple("abcde"), out="run", **said)
    assert made.model.classes == tuple("abcde")
    with pytest.raises(UserError, match=r"2 \+ 3 outputs, and --classes names 4"):
        upcycle.assemble([Brightness(2), Brightness(3)], classes=tuple("abcd"), out="no", **said)
    with pytest.raises(UserError, match="does not tell which of its classes each part knows"):
        upcycle.assemble([Brightness(5), Brightness(5)], data="digits", out="no", quiet=True)


def test_a_mapping_changes_a_group_of_options_as_the_command_line_does() -> None:
    """An option that it does not name keeps the method's default, which is not that of the group."""
    method = find_method("ssf", "adapt")
    _, own = split_options(method, Setting, {"recipe": {"epochs": 3}})
    usual = default_of(method, "recipe")
    assert own["recipe"] == dataclasses.replace(usual, epochs=3) and usual.optimizer == "adamw"
    typed = cli.arguments_of("adapt", ["zoo:digits_teacher", "--method", "ssf", "--recipe.epochs", "3"])[0]
    assert typed["recipe"] == own["recipe"]
