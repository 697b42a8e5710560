"""TinyMIM: the invariants of its card, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import upcycle
from tests.settings import seen, tiny_data, tiny_model, tiny_vit, token_networks
from upcycle import cli
from upcycle.core.attention import Heads, SelfAttention, self_attentions
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate
from upcycle.core.heads import classifier
from upcycle.core.models import Model, copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import uniform
from upcycle.data import Images, load
from upcycle.data.augment import color
from upcycle.distillation.plain import Plain
from upcycle.distillation.tinymim import TinyMIM, jittered, reached, relation_loss, relations
from upcycle.zoo.vit import ViT

SHORT = Recipe(epochs=2, batch_size=32, optimizer="adamw", lr=0.01, weight_decay=0.05)


def heads(seed: int = 0, b: int = 3, h: int = 2, n: int = 5, d: int = 4) -> Heads:
    return Heads(*torch.randn(3, b, h, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


# -- relations and their loss -----------------------------------------------------------------------------------------


def by_hand(x: Heads, b: int, m: int, which: str) -> list[list[float]]:
    """One relation, number by number: rows of softmax(X_i · Y_j / √d)."""
    left, right = {"QK": (x.q, x.k), "VV": (x.v, x.v)}[which]
    left, right = left[b, m].tolist(), right[b, m].tolist()
    rows = []
    for query in left:
        scores = [sum(p * q for p, q in zip(query, key, strict=True)) / math.sqrt(len(query)) for key in right]
        total = sum(math.exp(score) for score in scores)
        rows.append([math.exp(score) / total for score in scores])
    return rows


def test_relations_are_those_of_a_loop_by_hand() -> None:
    x = heads()
    found = relations(x).softmax(-1)
    assert found.shape == (3, 4, 5, 5)
    for b in range(3):
        for m in range(2):
            for which, at in (("QK", m), ("VV", 2 + m)):
                right = torch.tensor(by_hand(x, b, m, which), dtype=torch.float64)
                assert torch.allclose(found[b, at], right, atol=1e-12)


def test_the_loss_is_that_of_a_loop_by_hand() -> None:
    s, t = heads(0, d=4), heads(1, d=6)  # each with its own d
    expected = 0.0
    for which in ("QK", "VV"):
        total = 0.0
        for b in range(3):
            for m in range(2):
                for row_t, row_s in zip(by_hand(t, b, m, which), by_hand(s, b, m, which), strict=True):
                    total += sum(p * (math.log(p) - math.log(q)) for p, q in zip(row_t, row_s, strict=True))
        expected += total / (3 * 2 * 5)
    assert float(relation_loss(relations(s), relations(t))) == pytest.approx(expected, rel=1e-12)


def test_rows_sum_to_one_and_scores_of_values_are_symmetric() -> None:
    scores = relations(heads())
    assert torch.allclose(scores.softmax(-1).sum(-1), torch.ones(3, 4, 5, dtype=torch.float64))
    assert torch.allclose(scores[:, 2:], scores[:, 2:].mT) and not torch.allclose(scores[:, :2], scores[:, :2].mT)


def test_a_rotation_within_a_head_changes_nothing() -> None:
    s, t = heads(0), relations(heads(1))
    g = torch.Generator().manual_seed(2)
    Q, R = (torch.linalg.qr(torch.randn(2, 4, 4, generator=g, dtype=torch.float64))[0] for _ in range(2))
    turned = Heads(s.q @ Q, s.k @ Q, s.v @ R)
    assert torch.allclose(relation_loss(relations(turned), t), relation_loss(relations(s), t), rtol=1e-12)
    apart = Heads(s.q @ Q, s.k @ R, s.v)
    assert not torch.allclose(relation_loss(relations(apart), t), relation_loss(relations(s), t), rtol=1e-3)


def test_a_number_added_to_a_row_of_scores_changes_nothing() -> None:
    s, t = relations(heads(0)), relations(heads(1))
    shift = 100 * torch.randn(3, 4, 5, 1, dtype=torch.float64)
    assert torch.allclose(relation_loss(s + shift, t - shift), relation_loss(s, t), rtol=1e-9)


def test_the_gradient_is_the_difference_of_relations_and_none_goes_to_the_teacher() -> None:
    s, t = relations(heads(0)).requires_grad_(), relations(heads(1)).requires_grad_()
    relation_loss(s, t).backward()
    expected = (s.softmax(-1) - t.softmax(-1)) / (3 * 2 * 5)
    assert s.grad is not None and torch.allclose(s.grad, expected, atol=1e-12) and t.grad is None


def test_half_precision_neither_underflows_nor_overflows() -> None:
    x, y = heads(0), heads(1)
    s, t = (Heads(*(300 * part.half() for part in whole)) for whole in (x, y))
    assert relations(s).dtype == torch.float32
    assert bool(relation_loss(relations(s), relations(t)).isfinite())


# -- two networks -----------------------------------------------------------------------------------------------------


def method(**options: Any) -> TinyMIM:
    return TinyMIM(**{**token_networks(), "recipe": SHORT, **options})


def loss_of(made: TinyMIM, data: Images) -> Tensor:
    """L of a batch that both see alike, in evaluation mode."""
    blocks, x = made.blocks(data), data.train.batch(torch.arange(16), device=torch.device("cpu")).images
    scores = []
    for role, tokens in (("student", blocks.tokens[1]), ("teacher", blocks.tokens[0])):
        attention = getattr(blocks, role)
        found = attention.read(made.model(role, data).module.eval(), x, blocks.heads)
        scores.append(relations(found.among(tokens)))
    return relation_loss(*scores)


def test_the_teachers_own_weights_give_nought() -> None:
    data, teacher = tiny_data(), tiny_vit(7, "teacher")
    own = dataclasses.replace(teacher, module=copy_of(teacher.module), name="student")
    for h in (0, 2, 4):
        assert abs(float(loss_of(method(teacher=teacher, student=own, heads=h), data).detach())) <= 1e-6
    assert float(loss_of(method(teacher=teacher, student=tiny_vit(8)), data).detach()) > 1e-4


def test_the_target_is_the_last_block_or_at_three_quarters_of_a_deeper_teacher() -> None:
    data = tiny_data()
    depths = {(2, 2): 2, (2, 3): 2, (4, 2): 3, (3, 2): 2, (24, 12): 18, (12, 12): 12}
    for (theirs, ours), block in depths.items():
        networks = {"teacher": tiny_vit(7, "teacher", depth=theirs), "student": tiny_vit(8, depth=ours)}
        found = method(**networks).blocks(data)
        assert (found.block, found.depth) == (block, theirs)
        assert (found.teacher.name, found.student.name) == (
            f"blocks.{block - 1}.attention",
            f"blocks.{ours - 1}.attention",
        )
    assert method(block=4).blocks(data).teacher.name == "blocks.3.attention"


def test_heads_are_the_teachers_unless_they_are_given() -> None:
    found = method().blocks(tiny_data())
    assert (found.teacher.heads, found.student.heads, found.heads) == (3, 2, 3)
    assert method(heads=4).blocks(tiny_data()).heads == 4


BEHIND = ("attention.out", "norm2", "mlp")


def is_behind(name: str) -> bool:
    """Whether a parameter of the student lies behind the relations of its last block, blocks.1."""
    return name.startswith(("norm.", "linear.", *(f"blocks.1.{part}." for part in BEHIND)))


def test_no_gradient_goes_beyond_the_relations_of_the_last_block() -> None:
    data, made = tiny_data(), method()
    loss_of(made, data).backward()
    student = made.model("student", data).module
    for name, p in student.named_parameters():
        assert (p.grad is None or not bool(p.grad.any())) == is_behind(name), name
    assert all(p.grad is None for p in made.model("teacher", data).module.parameters() if not p.requires_grad)


def test_what_relations_do_not_reach_is_not_trained() -> None:
    data, made = tiny_data(), method()
    student = made.model("student", data)
    names = {id(p): name for name, p in student.module.named_parameters()}
    found = {names[id(p)] for p in reached(student.module, made.blocks(data).student, student.example())}
    assert found == {name for name in names.values() if not is_behind(name)}
    before = copy.deepcopy(student.module.state_dict())
    after = made.fit(Run(None, quiet=True, precision="32-true"), data).state_dict()
    assert list(after) == list(before)
    assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in before.items()}
    for name in names.values():
        if not name.startswith("linear."):  # the probe
            assert torch.equal(after[name], before[name]) == is_behind(name), name
    assert not torch.equal(after["linear.weight"], before["linear.weight"])


def test_the_teacher_stays_and_runs_no_further_than_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    data, networks, ran = tiny_data(), token_networks(), set()
    teacher = networks["teacher"]
    for i, block in enumerate(teacher.module.blocks):
        block.register_forward_pre_hook(lambda m, x, i=i: ran.add(i))  # copied with the network
    before = copy.deepcopy(teacher.module.state_dict())
    made, read = method(**networks), SelfAttention.read

    def counted(self: SelfAttention, network: nn.Module, images: Tensor, heads: int = 0) -> Heads:
        ran.clear()
        found = read(self, network, images, heads)
        assert ran <= {0, 1, 2}, "behind block 3, the target"
        if hasattr(network, "network"):
            assert ran == {0, 1, 2} and not any(t.requires_grad for t in found)
        return found

    monkeypatch.setattr(SelfAttention, "read", counted)
    made.fit(Run(None, quiet=True), data)
    assert all(torch.equal(value, before[key]) for key, value in teacher.module.state_dict().items())
    assert all(p.grad is None for p in teacher.module.parameters())


def test_both_see_the_same_crop_and_the_student_other_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    data, given, read = tiny_data().augmented(("crop", "flip")), [], SelfAttention.read

    def recorded(self: SelfAttention, network: nn.Module, images: Tensor, heads: int = 0) -> Heads:
        if len(images) == 32:
            given.append(images.clone())
        return read(self, network, images, heads)

    monkeypatch.setattr(SelfAttention, "read", recorded)
    for jitter in (False, True):
        given.clear()
        recipe = dataclasses.replace(SHORT, epochs=1)
        method(jitter=jitter, recipe=recipe).fit(Run(None, seed=5, quiet=True, precision="32-true"), data)
        assert len(given) == 10
        for teachers, students in zip(given[::2], given[1::2], strict=True):
            assert torch.equal(teachers, students) != jitter
    # The jitter is that of the colours, by (seed, epoch, sample), between the pixels' bounds.
    index, view = torch.tensor([3, 140]), (5, 2)
    batch = data.train.batch(index, device=torch.device("cpu"))
    pixels = data.train.images[index].float()
    pixels = pixels / 255 if data.train.images.dtype == torch.uint8 else pixels.permute(0, 2, 3, 1)
    factors = 1 + 0.4 * (2 * uniform(*view, data.train.ids[index], "colours of the student", 3) - 1)
    expected = (color(pixels, factors.float()).permute(0, 3, 1, 2) - 0.3) / 0.4
    found = jittered(batch, data, view)
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, batch.images, atol=1e-2)
    alone = jittered(data.train.batch(index[1:], device=torch.device("cpu")), data, view)
    assert torch.equal(alone[0], found[1])


def test_tokens_of_a_class_count_where_both_have_as_many() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed (extra vision)")

    def model(**options: Any) -> Model:
        torch.manual_seed(0)
        size = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "num_heads": 2, "num_classes": 10}
        module = timm.models.vision_transformer.VisionTransformer(depth=2, **size, **options)
        return dataclasses.replace(tiny_model("timm", 0), module=module)

    mean_pooled: dict[str, Any] = {"class_token": False, "global_pool": "avg"}
    data = tiny_data()
    both = method(teacher=model(), student=model()).blocks(data)
    assert [len(one) for one in both.tokens] == [17, 17]
    for ours, theirs in ((mean_pooled, {}), ({}, mean_pooled), (mean_pooled, {"reg_tokens": 3})):
        found = method(teacher=model(**theirs), student=model(**ours)).blocks(data)
        assert [len(one) for one in found.tokens] == [16, 16]
    run = Run(None, quiet=True)
    method(teacher=model(reg_tokens=3), student=model(**mean_pooled)).fit(run, data)
    assert any("4 of the tokens of timm are left out" in note for note in run.notes)
    assert "Compared are the relations of 16 tokens in 2 heads" in run.notes[0]


# -- the product ------------------------------------------------------------------------------------------------------


def test_the_product_is_the_student_with_a_probe_whose_labels_are_named() -> None:
    data = tiny_data()
    for keep, words in (
        (5, "fitted to the labels of 50 training images"),
        (0, "to the labels of 50 validation images"),
    ):
        made, some, run = method(), data.hide_labels(keep, seed=0), Run(None, quiet=True)
        made.require(some)
        product = made.product(made.fit(run, some), some)
        assert product.name == "student-probe" and len(product.classes) == 10
        (note,) = [note for note in run.notes if "linear probe" in note]
        assert words in note and "--method plain" in note
        assert product.module(product.example()).shape == (2, 10)
    unknown = data.hide_labels(0, seed=0)
    blank = torch.full_like(unknown.validation.labels, -1)
    unknown = dataclasses.replace(unknown, validation=dataclasses.replace(unknown.validation, labels=blank))
    run, made = Run(None, quiet=True), method()
    before = copy.deepcopy(made.model("student", data).module.linear.state_dict())
    after = made.fit(run, unknown).linear.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert any("No image has a label" in note for note in run.notes)


def test_features_see_no_label() -> None:
    data, made = tiny_data(), []
    for keep in (0, 5):
        fitted = method().fit(Run(None, seed=1, quiet=True), data.hide_labels(keep, seed=0)).state_dict()
        made.append({key: value for key, value in fitted.items() if not key.startswith("linear.")})
    assert all(torch.equal(value, made[1][key]) for key, value in made[0].items())


def test_relations_come_nearer_and_pictures_show_them(tmp_path: Path) -> None:
    data, made = tiny_data(), method(recipe=dataclasses.replace(SHORT, epochs=20))
    before = float(loss_of(made, data))
    run = Run(tmp_path, quiet=True)
    made.fit(run, data)
    run.close()
    assert float(loss_of(made, data)) < before / 2
    assert {file.stem for file in (tmp_path / "pictures").iterdir()} == {"relations-teacher", "relations-student"}


REAL_RECIPE = Recipe(epochs=12, batch_size=64, optimizer="adamw", lr=2e-3, weight_decay=0.05, warmup=1)


def test_features_of_a_trained_network_are_worth_more_than_fresh_ones() -> None:
    """Digits at 16 x 16, 16 tokens: probes on 10 labels a class, of the distilled student and of a fresh one."""
    data = load("digits", size=16).normalised((0.3,), (0.4,))
    data = dataclasses.replace(data, validation=data.validation.subset(torch.arange(100)))

    def vit(name: str, **sizes: int) -> Model:
        torch.manual_seed(len(name))
        return Model(
            module=ViT((1, 16, 16), 10, **sizes),
            input_shape=(1, 16, 16),
            mean=(0.3,),
            std=(0.4,),
            classes=data.classes,
            name=name,
        )

    teacher = vit("teacher", width=48, depth=3, heads=3)
    Plain(student=teacher, recipe=REAL_RECIPE).fit(Run(None, quiet=True), data)
    some, student = data.hide_labels(10, seed=0), {"width": 24, "depth": 2, "heads": 2}
    found = {}
    for name in ("distilled", "fresh"):
        lr = REAL_RECIPE.lr if name == "distilled" else 1e-12
        recipe = dataclasses.replace(REAL_RECIPE, lr=lr, epochs=12 if name == "distilled" else 1)
        made = TinyMIM(teacher=teacher, student=vit("student", **student), recipe=recipe, jitter=False)
        module = made.fit(Run(None, quiet=True), some)
        found[name] = evaluate(module, data.test, device=torch.device("cpu")).accuracy
    assert found["distilled"] > found["fresh"] + 0.05, found


# -- what is refused --------------------------------------------------------------------------------------------------


def plain_vit(**sizes: int) -> Model:
    torch.manual_seed(0)
    return dataclasses.replace(tiny_model("wide", 0), module=ViT((1, 8, 8), 10, **sizes))


class Patches(nn.Module):
    """A transformer of 16 tokens, where zoo:vit has 4."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = ViT((1, 16, 16), 10, width=12, depth=1, heads=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"teacher": seen(tiny_model("net", 7))}, "net has no self-attention whose queries"),
        ({"student": tiny_model("small", 7)}, "small has no self-attention .* its layers are AdaptiveAvgPool2d"),
        (
            {"student": dataclasses.replace(tiny_model("many", 7), module=Patches())},
            "teacher has 4 tokens of an image and many 16 tokens of an image",
        ),
        (
            {"student": plain_vit(width=16, depth=2, heads=2)},
            "the width 16 of wide cannot be divided into 3 heads, .* a divisor of 24 and 16",
        ),
        ({"heads": 5}, "the width 24 of teacher cannot be divided into 5 heads"),
        ({"block": 5}, "teacher has 4 blocks with attention, so there is no --block 5"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        method(**options).require(tiny_data())


NETS = """
from torch import nn
from upcycle.zoo.vit import ViT

class Patches(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.vit = ViT((1, 16, 16), num_classes, width=48, depth=1, heads=3)

    def forward(self, x):
        return self.vit(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--teacher=zoo:digits_teacher"], ["digits_teacher has no self-attention", "its layers are", "Conv2d"]),
        (["--student=zoo:convnet_small"], ["convnet_small has no self-attention", "its layers are", "Conv2d"]),
        (["--student=nets:Patches"], ["vit has 4 tokens of an image", "16 tokens of an image"]),
        (["--heads=7"], ["the width 96 of vit cannot be divided into 7 heads", "a divisor of 96 and 48"]),
        (["--heads=32"], ["the width 48 of vit_small cannot be divided into 32 heads"]),
        (["--block=9"], ["vit has 4 blocks with attention", "no --block 9"]),
        (["--block=-1"], ["block must not be negative"]),
        (["--recipe.mix=mixup"], ["tinymim takes no --recipe.mix mixup, because no label or answer takes part"]),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(
    words: list[str],
    says: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    Path("nets.py").write_text(NETS)
    options = {"--teacher": "zoo:vit", "--student": "zoo:vit_small", "--data": "digits", "--out": "run"}
    options |= dict(word.split("=") for word in words)
    if options["--teacher"] == "zoo:vit":
        options["--teacher_weights"] = "fresh"
    command = ["distill", "--method=tinymim", *(f"{name}={value}" for name, value in options.items())]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("upcycle: ") and said.count("\n") == 1
    for part in says:
        assert part in said, said
    assert not Path("run").exists()


@pytest.mark.parametrize("options", [{"block": -1}, {"heads": -2}])
def test_impossible_options(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} must not be negative"):
        method(**options)


def test_it_is_not_compiled() -> None:
    with pytest.raises(UserError, match="leave out --compile"):
        method().fit(Run(None, quiet=True, compile=True), tiny_data())


def test_a_classifier_that_cannot_be_replaced_is_refused() -> None:
    student = tiny_vit(8)
    student.module.linear = nn.Sequential(nn.Linear(16, 10), nn.LayerNorm(10))
    with pytest.raises(UserError, match="does not end in a linear layer"):
        method(student=student).require(tiny_data())


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_command_from_data_to_report_and_on_to_fine_tuning(tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    said: list[str] = []
    options: dict[str, Any] = {"data": "digits", "say": said.append, "recipe": {"epochs": 1}}
    result = upcycle.distill(
        method="tinymim",
        teacher=token_networks()["teacher"],
        student=tiny_vit(8, width=12),
        labels=5,
        out=out,
        **options,
    )
    assert result.rows[-1]["name"] == "student-probe by tinymim"
    assert any("linear probe, fitted to the labels of 50 training images" in line for line in said)
    assert result.model.module.linear.out_features == 10 and (out / "report.html").is_file()


def test_saved_products_are_tuned_and_taught_from(tmp_path: Path) -> None:
    data = ["--data=digits", "--quiet", "--recipe.epochs=1"]
    common = ["distill", "--method=tinymim", "--teacher=zoo:vit", "--teacher_weights=fresh", "--student=zoo:vit_small"]
    first, second, tuned = tmp_path / "first", tmp_path / "second", tmp_path / "tuned"
    assert cli.main([*common, *data, "--labels=0", f"--out={first}"]) == 0
    tune = ["distill", "--method=plain", f"--student={first}", "--student_weights=pretrained", *data, f"--out={tuned}"]
    assert cli.main(tune) == 0
    again = ["distill", "--method=tinymim", f"--teacher={first}", "--student=zoo:vit_small", "--heads=3", *data]
    assert cli.main([*again, f"--out={second}"]) == 0


def test_a_teacher_of_other_classes_serves(tmp_path: Path) -> None:
    data = tiny_data()
    torch.manual_seed(0)
    teacher = seen(dataclasses.replace(tiny_vit(7, "teacher", 24, 4, 3), module=ViT((1, 8, 8), 7, 24, 4, 3)))
    teacher = dataclasses.replace(teacher, classes=tuple("abcdefg"))
    said: list[str] = []
    options: dict[str, Any] = {"data": data, "student": tiny_vit(8, width=12), "say": said.append}
    recipe = {"epochs": 1}
    result = upcycle.distill(method="tinymim", teacher=teacher, recipe=recipe, out=tmp_path / "run", **options)
    assert [row["role"] for row in result.rows] == ["student"]
    assert any("The classes of teacher are not those of" in line for line in said)
    with pytest.raises(UserError, match="do not match"):
        upcycle.distill(method="kd", teacher=teacher, recipe=recipe, out=tmp_path / "kd", **options)


LARGE = {"teacher": "timm:vit_small_patch16_224", "student": "timm:vit_tiny_patch16_224"}


def large_data() -> Images:
    """Two images of 3 x 224 x 224 in each split."""
    small, splits = tiny_data(2), {}
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    for name in ("train", "validation", "test"):
        split = getattr(small, name).subset(torch.arange(2))
        splits[name] = dataclasses.replace(split, images=images, mean=(0.5,) * 3, std=(0.5,) * 3)
    return dataclasses.replace(small, **splits)


@pytest.mark.slow
def test_vit_small_to_vit_tiny_is_estimated(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    said: list[str] = []
    out, fresh = tmp_path / "run", {"teacher_weights": "fresh"}
    upcycle.distill(method="tinymim", **LARGE, **fresh, data=large_data(), out=out, dry_run=True, say=said.append)
    assert any("Nothing was written" in line for line in said) and not out.exists()


@pytest.mark.slow
def test_a_step_from_vit_small_to_vit_tiny_at_224() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    torch.manual_seed(0)
    networks = {}
    for role, reference in LARGE.items():
        module = timm.create_model(name := reference.removeprefix("timm:"), num_classes=10)
        whole = {"input_shape": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3, "classes": tuple("0123456789")}
        networks[role] = Model(module=module, name=name, **whole)
    data = large_data()
    made = TinyMIM(**networks, recipe=dataclasses.replace(SHORT, epochs=1, batch_size=2, lr=1e-3))
    blocks = made.blocks(data)
    assert (blocks.heads, blocks.block, blocks.depth) == (6, 12, 12)  # ViT-T has 3 heads, d_h = 64, here 32
    assert [len(tokens) for tokens in blocks.tokens] == [197, 197]
    before = copy.deepcopy(networks["student"].module.state_dict())
    run = Run(None, quiet=True)
    after = made.fit(run, data).state_dict()
    assert run.updates == 1
    assert not torch.equal(after["patch_embed.proj.weight"], before["patch_embed.proj.weight"])
    assert torch.equal(after["blocks.11.attn.proj.weight"], before["blocks.11.attn.proj.weight"])
    assert self_attentions(networks["student"])[-1].heads == 3
    assert classifier(networks["student"]) == "head"
