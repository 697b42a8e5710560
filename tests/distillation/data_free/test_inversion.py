"""What inverting a network rests on: BatchNorm statistics, views, what a teacher must have, what is kept."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.settings import TinyNet, seen, tiny_data, tiny_model, tiny_net
from upcycle.core.errors import UserError
from upcycle.core.frozen import frozen
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data import Images
from upcycle.data.images import ImageSplit
from upcycle.data.pool import Pool
from upcycle.distillation.cmi import CMI
from upcycle.distillation.data_free import inversion
from upcycle.distillation.data_free import synthesis as synthesis_module
from upcycle.distillation.data_free.inversion import (
    Normalise,
    Statistics,
    bn_loss,
    crop_flip,
    decision_adversarial,
    only_inputs,
    resized_crop,
)
from upcycle.distillation.data_free.making import Making
from upcycle.distillation.data_free.synthesis import Synthesis
from upcycle.distillation.fastdfkd import FastDFKD

CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alone(x: Tensor) -> Tensor:
    """The gather of a single process."""
    return x


def digits(n: int = 64) -> Tensor:
    """Real digits in [0, 1], (n, 1, 8, 8)."""
    return tiny_data().train.images[:n].permute(0, 3, 1, 2).float() / 255


# -- statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (4, 3, 5, 6), (4, 3, 2, 3, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_moments_are_those_of_torch(shape: tuple[int, ...], channels_last: bool) -> None:
    x = 3 + 2 * torch.randn(shape, generator=seeded(0), dtype=torch.float64)
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    axes = [0, *range(2, len(shape))]
    mean, var = inversion._Moments.apply(x)
    expected_var, expected_mean = torch.var_mean(x, axes, correction=0)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(var, expected_var, rtol=1e-12, atol=0)
    a, b = (torch.randn(3, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    (ours,) = torch.autograd.grad((a * mean + b * var).sum(), x)
    (theirs,) = torch.autograd.grad((a * expected_mean + b * expected_var).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(inversion._Moments.apply, (x,))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_moments_of_narrow_numbers_are_summed_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    x = (1 + torch.randn(64, 5, 9, 9, generator=seeded(0))).to(dtype).requires_grad_()
    mean, var = inversion._Moments.apply(x)
    assert mean.dtype == var.dtype == torch.float32
    wide = x.detach().double().requires_grad_()
    expected_var, expected_mean = torch.var_mean(wide, [0, 2, 3], correction=0)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-5, atol=0)
    (mean.sum() + var.sum()).backward()
    (expected_mean.sum() + expected_var.sum()).backward()
    assert x.grad is not None and wide.grad is not None and x.grad.dtype == dtype
    assert float((x.grad.double() - wide.grad).norm() / wide.grad.norm()) < tolerance


def one_layer(images: Tensor) -> nn.Module:
    """A BatchNorm, whose running statistics are those of ``images``, and a linear layer."""
    norm = nn.BatchNorm2d(images.shape[1])
    norm.running_var, norm.running_mean = torch.var_mean(images, (0, 2, 3), correction=0)
    return nn.Sequential(norm, nn.Flatten(), nn.Linear(images[0].numel(), 4)).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 3, 6, 5), (4, 3, 6), (4, 3)])
def test_pooled_means_and_their_gradients_are_those_of_torch_laid_out_as_the_input(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = (x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x).requires_grad_()
    wide, axes = torch.promote_types(dtype, torch.float32), tuple(range(2, x.dim()))
    expected = x.mean(axes, dtype=wide) if axes else x.to(wide)
    pooled, weight = inversion._Pooled.apply(x), torch.arange(12.0, dtype=wide).view(4, 3)
    assert torch.equal(pooled, expected)
    (found,) = torch.autograd.grad((pooled * weight).sum(), x)
    assert torch.equal(found, torch.autograd.grad((expected * weight).sum(), x)[0])
    assert found.stride() == x.stride()


def test_l_bn_is_0_for_the_statistics_of_the_teacher() -> None:
    # Sums of small whole numbers over a power of two are exact.
    images = torch.randint(8, (16, 3, 4, 4), generator=seeded(0)).float()
    teacher = frozen(one_layer(images), images, input_grad=True, keep_bn=True, precision="32-true")
    for x, matches in ((images, True), (images.flip(0, 2, 3), True), (images + 1, False), (2 * images, False)):
        x = x.clone().requires_grad_()
        with Statistics(teacher, alone) as statistics:
            teacher(x)
            loss = bn_loss(statistics.read(), statistics.running())
        loss.backward()
        assert (float(loss.detach()) == 0) is matches
        assert x.grad is not None and x.grad.isfinite().all()


def test_l_bn_is_the_sum_of_norms_over_layers() -> None:
    batch = [(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])), (torch.tensor([1.0]), torch.tensor([3.0]))]
    running = [(torch.zeros(2), torch.tensor([1.0, 3.0])), (torch.tensor([-1.0]), torch.tensor([2.0]))]
    assert float(bn_loss(batch, running)) == 5 + 2 + 2 + 1  # of squares it would be 25 + 4 + 4 + 1


def test_statistics_and_their_gradients_are_those_of_autograd() -> None:
    module = seen(tiny_model("teacher", 7)).module.double()
    normed = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.rand(6, 1, 8, 8, generator=seeded(0), dtype=torch.float64)
    teacher = frozen(module, x, input_grad=True, keep_bn=True, precision="64-true")
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    with Statistics(teacher, alone) as statistics:
        teacher(ours)
        bn_loss(statistics.read(), statistics.running()).backward()
        features = statistics.features()

    inputs: list[Tensor] = []
    hooks = [m.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for m in normed]
    module.eval()(theirs)
    for hook in hooks:
        hook.remove()
    loss = torch.zeros((), dtype=torch.float64)
    for m, seen_by in zip(normed, inputs, strict=True):
        assert m.running_mean is not None and m.running_var is not None
        loss = loss + (m.running_mean.float() - seen_by.mean((0, 2, 3))).norm()
        loss = loss + (m.running_var.float() - seen_by.var((0, 2, 3), correction=0)).norm()
    loss.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(features, torch.cat([i.mean((2, 3)) for i in inputs], 1))
    assert features.shape == (6, 32)


def test_statistics_are_of_the_last_forward_and_leave_no_hook() -> None:
    model = seen(tiny_model("teacher", 7))
    x = digits(16)
    teacher = frozen(model.module, x, input_grad=True, keep_bn=True, precision="32-true")
    with Statistics(teacher, alone) as statistics:
        teacher(x)
        first = statistics.read()
        teacher(x.flip(3) * 0.5)
        second = statistics.read()
    assert not torch.equal(first[0][0], second[0][0])
    assert not any(m._forward_pre_hooks for m in teacher.modules())


def test_statistics_of_two_halves_are_those_of_the_whole() -> None:
    x = torch.randn(10, 3, 4, 4, generator=seeded(0), dtype=torch.float64)
    halves = [inversion._Moments.apply(part) for part in x.split(5)]
    module = one_layer(x.float()).double()
    teacher = frozen(module, x, input_grad=True, keep_bn=True, precision="64-true")
    shares = iter([torch.stack([mean for mean, _ in halves]), torch.stack([var for _, var in halves])])
    with Statistics(teacher, lambda _: next(shares)) as statistics:
        teacher(x[:5])
        ((mean, var),) = statistics.read()
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(var, x.var((0, 2, 3), correction=0))


# -- the adversarial term ---------------------------------------------------------------------------------------


def test_the_adversarial_term_counts_only_where_both_agree() -> None:
    z_t, z_s = (torch.randn(40, 5, generator=seeded(i), dtype=torch.float64) for i in (0, 1))
    terms = []
    for t, s in zip(z_t, z_s, strict=True):
        p, q = t.softmax(0), s.softmax(0)
        terms.append((p * (p / q).log()).sum() if t.argmax() == s.argmax() else torch.zeros((), dtype=torch.float64))
    assert 0 < sum(float(t) > 0 for t in terms) < 40
    torch.testing.assert_close(decision_adversarial(z_t, z_s), -torch.stack(terms).mean())
    assert float(decision_adversarial(z_t, z_t)) == 0
    assert float(decision_adversarial(z_t, -z_t)) == 0


def test_going_down_the_adversarial_term_drives_them_apart() -> None:
    z_t = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    z_s = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    loss = decision_adversarial(z_t, z_s)
    loss.backward()
    assert z_s.grad is not None and float(loss.detach()) < 0
    assert float(decision_adversarial(z_t, z_s.detach() - 0.01 * z_s.grad)) < float(loss.detach())


# -- views ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("c", "h", "w"), [(1, 8, 8), (3, 16, 24), (1, 28, 28), (3, 9, 17)])
def test_crop_flip_gives_shifted_and_mirrored_copies(c: int, h: int, w: int) -> None:
    n, top, left = 60, h // 8, w // 8
    x = torch.rand(n, c, h, w, generator=seeded(0)) + 1
    views = crop_flip(x, seeded(1), torch.arange(n), n)
    padded = F.pad(x, (left, left, top, top))
    found = []
    for image, view in zip(padded, views, strict=True):
        options = {(i, j, mirror): crop.flip(2) if mirror else crop
                   for i in range(2 * top + 1) for j in range(2 * left + 1) for mirror in (False, True)
                   for crop in [image[:, i : i + h, j : j + w]]}  # fmt: skip
        (which,) = [key for key, option in options.items() if torch.equal(option, view)]
        found.append(which)
    assert {i for i, _, _ in found} == set(range(2 * top + 1)) and {j for _, j, _ in found} == set(range(2 * left + 1))
    assert 15 <= sum(mirror for _, _, mirror in found) <= 45


@pytest.mark.parametrize("view", [crop_flip, resized_crop])
def test_a_share_of_the_batch_is_seen_as_in_the_whole(view: Any) -> None:
    x = torch.rand(10, 3, 16, 16, generator=seeded(0))
    whole, random, random_of_whole = view(x, seeded(1), torch.arange(10), 10), seeded(1), seeded(1)
    mine = torch.tensor([6, 7, 8, 9])
    torch.testing.assert_close(view(x[mine], random, mine, 10), whole[mine], rtol=0, atol=1e-6)
    view(x, random_of_whole, torch.arange(10), 10)
    assert torch.equal(random.get_state(), random_of_whole.get_state())  # so that the next view agrees too


@pytest.mark.parametrize("view", [crop_flip, resized_crop])
def test_views_have_gradients(view: Any) -> None:
    x = torch.rand(3, 2, 8, 8, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: view(x, seeded(1), torch.arange(3), 3), (x,))


def boxes(monkeypatch: pytest.MonkeyPatch, *rows: tuple[float, ...]) -> None:
    """Let resized_crop draw these (area, aspect, across, down, side), each from 0 to 1."""
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.tensor(rows))


def test_the_whole_box_is_the_image_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 3, 16, 12, generator=seeded(0))
    boxes(monkeypatch, (1, 0.5, 0.3, 0.8, 0.9), (1, 0.5, 0.3, 0.8, 0.1))
    same, mirrored = resized_crop(x, seeded(1), torch.arange(2), 2)
    torch.testing.assert_close(same, x[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(mirrored, x[1].flip(2), rtol=0, atol=1e-5)


def test_a_quarter_is_resized_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    row, column = torch.arange(16.0)[:, None] + 0.5, torch.arange(16.0) + 0.5
    x = torch.stack([row.expand(16, 16), column.expand(16, 16)])[None].expand(2, -1, -1, -1).contiguous()
    boxes(monkeypatch, (0, 0.5, 0, 1, 0.9), (0, 0.5, 0, 1, 0.1))  # the lower left quarter
    plain, mirrored = resized_crop(x, seeded(1), torch.arange(2), 2)
    down, across = 8 + (torch.arange(16.0) + 0.5) / 2, (torch.arange(16.0) + 0.5) / 2
    # Beyond the centres of the outermost pixels an image goes on as it ends.
    expected = torch.stack([down.clamp(0.5, 15.5)[:, None].expand(16, 16), across.clamp(0.5, 15.5).expand(16, 16)])
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(mirrored, expected.flip(2), rtol=0, atol=1e-4)


def test_boxes_stay_inside_the_image_and_vary() -> None:
    n = 200
    row, column = torch.arange(32.0)[:, None] + 0.5, torch.arange(32.0) + 0.5
    x = torch.stack([row.expand(32, 32), column.expand(32, 32)])[None].expand(n, -1, -1, -1).contiguous()
    views = resized_crop(x, seeded(1), torch.arange(n), n)
    # Away from the border the ramps give the box's height and width.
    height = (views[:, 0, 24, 16] - views[:, 0, 8, 16]) * 2 / 32
    width = (views[:, 1, 16, 24] - views[:, 1, 16, 8]) * 2 / 32
    assert 60 < int((width < 0).sum()) < 140
    area, aspect = height * width.abs(), width.abs() / height
    assert float(area.min()) > 0.24 and float(area.max()) <= 1.001 and float(area.max() - area.min()) > 0.6
    assert float(aspect.min()) > 3 / 4 - 1e-3 and float(aspect.max()) < 4 / 3 + 1e-3
    assert float(views.min()) >= 0.5 - 1e-3 and float(views.max()) <= 31.5 + 1e-3  # never beyond what there is


def test_normalising_is_what_batches_do() -> None:
    split = tiny_data().train
    images = split.batch(torch.arange(9), device=CPU).images
    torch.testing.assert_close(Normalise(split.mean, split.std)(digits(9)), images, rtol=1e-5, atol=1e-6)
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=seeded(0))
    found = Normalise((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[:, 2], (x[:, 2] - 0.3) / 0.6, rtol=1e-14, atol=1e-14)


def test_only_inputs_get_gradients_and_all_is_put_back() -> None:
    net = tiny_net().train()
    net.linear.bias.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    x = digits(4).requires_grad_()
    with pytest.raises(ZeroDivisionError), only_inputs(net):
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        net(x).sum().backward()
        raise ZeroDivisionError
    assert x.grad is not None and x.grad.any()
    assert all(p.grad is None for p in net.parameters())
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["linear.bias"]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


# -- what a teacher must have -----------------------------------------------------------------------------------


def refusal(method: type, teacher: nn.Module, classes: int = 10, side: int = 8) -> str:
    shape = (1, side, side)
    names = tuple(str(i) for i in range(classes))
    model = Model(module=teacher, input_shape=shape, mean=(0.3,), std=(0.4,), classes=names, name="big")
    made = method(teacher=model, student=tiny_model("student", 1))
    with pytest.raises(UserError) as error:
        made.require(Images.none(shape, model.classes, model.mean, model.std))
    return str(error.value)


METHODS = pytest.mark.parametrize("method", [FastDFKD, CMI])


@METHODS
def test_a_teacher_without_batchnorm_is_refused(method: type) -> None:
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 10))
    assert "big has no BatchNorm layers" in refusal(method, plain)


@METHODS
def test_a_teacher_that_keeps_no_statistics_is_refused(method: type) -> None:
    net = tiny_net()
    net.bn1, net.bn2 = (nn.BatchNorm2d(16, track_running_stats=False) for _ in range(2))
    assert "keep no running statistics (track_running_stats=False)" in refusal(method, net)


@METHODS
def test_a_teacher_whose_statistics_were_never_updated_is_refused(method: type) -> None:
    assert "were never updated" in refusal(method, tiny_net())


@METHODS
def test_other_classes_and_tiny_images_are_refused(method: type) -> None:
    net = seen(tiny_model("big", 7)).module
    assert "classes" in refusal(method, net, classes=9)
    assert "at least 8 x 8 pixels, not 6 x 6" in refusal(method, net, side=6)


@METHODS
def test_some_layers_with_statistics_are_enough(method: type) -> None:
    model = seen(tiny_model("big", 7))
    model.module.bn1.reset_running_stats()  # type: ignore[union-attr]
    data = Images.none((1, 8, 8), model.classes, model.mean, model.std)
    assert method(teacher=model, student=tiny_model("student", 1)).check(data) == []


# -- what is kept -----------------------------------------------------------------------------------------------


def synthesis(run: Run, capacity: int = 40, views: int = 0, augment: tuple[str, ...] = ()) -> Synthesis:
    teacher = seen(tiny_model("teacher", 7))
    making = Making(batch=16, capacity=capacity, views=views)
    method = FastDFKD(teacher=teacher, student=tiny_model("student", 1), making=making)
    data = Images.none((1, 8, 8), teacher.classes, teacher.mean, teacher.std).augmented(augment)
    return Synthesis(run, method, data)


def batch(seed: int = 0, n: int = 16) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 1, 8, 8, generator=seeded(seed)), torch.arange(n) % 10


def test_a_collapsed_round_is_left_out_and_said() -> None:
    made, y = synthesis(run := Run(None)), torch.arange(16) % 10
    one = torch.rand(1, 1, 8, 8, generator=seeded(0))
    alike = one.expand(16, -1, -1, -1) + 0.001 * torch.rand(16, 1, 8, 8, generator=seeded(1))
    for _ in range(2):
        made.append(alike, y)
    assert len(made.pool) == 0 and [note for note in run.notes if "alike" in note]
    made.append(*batch())  # a round that is none of them begins the count anew
    for _ in range(2):
        made.append(alike, y)
    assert len(made.pool) == 16
    with pytest.raises(UserError, match="three rounds in a row"):
        made.append(alike, y)
    assert len(made.pool) == 16


def test_images_that_are_no_numbers_stop_it() -> None:
    made = synthesis(Run(None))
    x, y = batch()
    x[3, 0, 2, 2] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        made.append(x, y)
    assert len(made.pool) == 0


@pytest.mark.parametrize("capacity", [64, 40])  # 40: the oldest make room
def test_kept_answers_are_the_teachers_to_the_same_views(capacity: int) -> None:
    run = Run(None, precision="64-true", seed=3)
    made = synthesis(run, capacity=capacity, views=3, augment=("crop", "flip"))
    for i in range(4):
        made.append(*batch(i))
    met = set()
    for epoch in run.epochs(2):
        for found in run.batches(made.pool, 8, steps=12, views=3):
            answers = made.answers(found)
            assert answers.dtype == torch.float64
            torch.testing.assert_close(answers, made.folded(found.images), rtol=1e-5, atol=1e-6)
            met.add((epoch, run.view))
    assert {view for _, view in met} == {0, 1, 2}


def test_without_views_the_teacher_answers_anew() -> None:
    run = Run(None, seed=3)
    made = synthesis(run, augment=("crop",))
    made.append(*batch())
    for _ in run.epochs(1):
        for found in run.batches(made.pool, 8):
            assert torch.equal(made.answers(found), made.folded(found.images))


def test_its_state_comes_back() -> None:
    made, again = (synthesis(Run(None), views=2) for _ in range(2))
    for i in range(3):
        made.append(*batch(i))
    made.seconds, made.curve, made.collapsed = 7.0, [(1.0, 2.0, 0.5)], 1
    again.load_state_dict(made.state_dict())
    assert again.pool.digest == made.pool.digest and again.pool.made == 48
    assert torch.equal(again._answers[:, :40], made._answers[:, :40])
    assert (again.seconds, again.curve, again.collapsed) == (7.0, [(1.0, 2.0, 0.5)], 1)


class Slow(TinyNet):
    """A student that takes an hour to train on a batch and a second to answer one, on a clock of its own."""

    now = 0.0

    def forward(self, x: Tensor) -> Tensor:
        Slow.now += 3600 if self.training else 1
        return super().forward(x)


TINY = {"making": Making(rounds=3, warmup=1, batch=16, kd_steps=5, capacity=64), "nz": 8, "ngf": 4}


@pytest.mark.parametrize(
    ("method", "steps"), [(FastDFKD, {"k": 2}), (CMI, {"g_steps": 2, "bank": 32, "n_neg": 8})], ids=["fastdfkd", "cmi"]
)
def test_the_seconds_of_synthesis_leave_the_students_training_out(
    method: type, steps: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis_module, "time", SimpleNamespace(perf_counter=lambda: Slow.now))
    made: list[Synthesis] = []
    monkeypatch.setattr(Synthesis, "finish", lambda self, student: made.append(self) or finish(self, student))
    teacher = seen(tiny_model("teacher", 7))
    data = Images.none((1, 8, 8), teacher.classes, teacher.mean, teacher.std)
    Slow.now = 0.0
    torch.manual_seed(0)
    student = Model(module=Slow(), input_shape=(1, 8, 8), mean=(0.3,), std=(0.4,), classes=teacher.classes)
    run = Run(None)
    method(teacher=teacher, student=student, recipe=Recipe(epochs=4, batch_size=16), **TINY, **steps).fit(run, data)
    # It is asked in two steps of each of the two rounds from the warm-up's end, and trained in 4 times 5.
    assert made[0].seconds == 4 and made[0].total == 4 + 20 * 3600
    assert any("48 images" in note for note in run.notes)


finish = Synthesis.finish


# -- the pool ---------------------------------------------------------------------------------------------------


def pool(capacity: int = 20, channels: int = 3, augment: tuple[str, ...] = ()) -> Pool:
    return Pool(capacity, (channels, 8, 8), (0.2,) * channels, (0.5,) * channels, augment)


def test_a_pool_keeps_pixels_rounded_to_8_bits() -> None:
    kept, x = pool(), torch.rand(6, 3, 8, 8, generator=seeded(0))
    x[0, 0, 0, :4] = torch.tensor([0.0, 1.0, -0.1, 1.2])
    places = kept.append(x.requires_grad_(), torch.arange(6))
    assert places.tolist() == kept.labels.tolist() == list(range(6)) and len(kept) == kept.made == 6
    assert kept.images.shape == (6, 8, 8, 3) and kept.images.dtype == torch.uint8 and kept.shape == (3, 8, 8)
    pixels = kept.images.permute(0, 3, 1, 2).float() / 255
    assert float((pixels - x.detach().clamp(0, 1)).abs().max()) <= 0.5 / 255 + 1e-6
    assert kept.images[0, 0, :4, 0].tolist() == [0, 255, 0, 255]


def test_a_full_pool_replaces_the_oldest() -> None:
    kept, pixels = pool(), []
    for i in range(4):
        x = torch.rand(7, 3, 8, 8, generator=seeded(i))
        places = kept.append(x, torch.full((7,), i))
        pixels.append(x.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1))
        assert len(kept) == min(7 * (i + 1), 20)
    assert places.tolist() == [1, 2, 3, 4, 5, 6, 7] and kept.made == 28
    everything = torch.cat(pixels)
    order = torch.tensor([20 + i if i < 8 else i for i in range(20)])  # what each place holds: 28 - 20 are gone
    assert torch.equal(kept.images, everything[order]) and torch.equal(kept.labels, order // 7)
    with pytest.raises(UserError, match="21 images do not go into a pool of 20"):
        kept.append(torch.rand(21, 3, 8, 8), torch.zeros(21))


@pytest.mark.parametrize("n", [0, 7, 28])
def test_the_state_of_a_pool_comes_back(n: int) -> None:
    kept, again = pool(), pool()
    for i in range(n // 7):
        kept.append(torch.rand(7, 3, 8, 8, generator=seeded(i)), torch.arange(7))
    again.append(torch.rand(9, 3, 8, 8, generator=seeded(99)), torch.arange(9))  # forgotten
    again.load_state_dict(kept.state_dict())
    assert again.digest == kept.digest and len(again) == len(kept) and again.made == kept.made
    for one in (kept, again):
        one.append(torch.rand(7, 3, 8, 8, generator=seeded(50)), torch.arange(7))
    assert again.digest == kept.digest


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", [None, (3, 0), (3, 5)])
def test_batches_of_a_pool_are_those_of_a_split(channels: int, view: tuple[int, int] | None) -> None:
    kept = pool(30, channels, ("crop", "flip"))
    kept.append(torch.rand(25, channels, 8, 8, generator=seeded(0)), torch.arange(25) % 10)
    split = ImageSplit(images=kept.images.clone(), labels=kept.labels.clone(), ids=torch.arange(25),
                       mean=kept.mean, std=kept.std, augment=kept.augment)  # fmt: skip
    index = torch.tensor([3, 24, 0, 7])
    ours, theirs = kept.batch(index, device=CPU, view=view), split.batch(index, device=CPU, view=view)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert view is None or not torch.equal(ours.images, kept.batch(index, device=CPU).images)
