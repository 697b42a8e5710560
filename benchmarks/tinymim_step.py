"""A training step of TinyMIM beside the parts that it consists of, and the floor that multiply-adds set.

ViT 96x4 to ViT 48x3 on CIFAR-10, 64 tokens, batches of 128. Relations are made once a batch, for all heads and both
kinds in one product, and the teacher stops at its block; beside that stands the teacher to its end, and relations head
by head. Each figure is the minimum of many rounds, in which all take turns, on one thread, in float32. Run from the
repository's root: ``python -m benchmarks.tinymim_step``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import alternate, record
from upcycle.core.attention import Heads
from upcycle.core.frozen import frozen
from upcycle.core.models import Model, copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import load
from upcycle.distillation.tinymim import TinyMIM, jittered, reached, relation_loss, relations
from upcycle.measure.cost import count
from upcycle.measure.machine import matmul_rate

B, ROUNDS = 128, 40
GATE = 1.25
"""Over the sum of its parts, what a step may take."""
CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1000, batch_size=B, optimizer="adamw", lr=1e-3, weight_decay=0.05, decayed="matrices")


def head_by_head(s: Heads, t: Heads) -> Tensor:
    """The loss by a product for each head and kind, as one would write it down."""
    kinds = []
    for left, right in (("q", "k"), ("v", "v")):
        each = []
        for m in range(s.q.shape[1]):
            R_s, R_t = ((getattr(x, left)[:, m] @ getattr(x, right)[:, m].mT * x.scale).log_softmax(-1) for x in (s, t))
            each.append(F.kl_div(R_s, R_t, reduction="none", log_target=True).sum(-1).mean())
        kinds.append(torch.stack(each).mean())
    return torch.stack(kinds).sum()


def main() -> None:
    """Time all, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    teacher = resolve("zoo:cifar10_vit")
    data = load("cifar10").augmented(("crop", "flip")).normalised(teacher.mean, teacher.std)
    torch.manual_seed(0)
    student = resolve("zoo:vit_small", pretrained=False, num_classes=10, input_shape=data.shape)
    made = TinyMIM(teacher=teacher, student=student, recipe=RECIPE)
    blocks, index = made.blocks(data), torch.arange(B)
    run = Run(None, quiet=True, precision="32-true", teacher_precision="32-true")
    x = data.train.batch(index, device=CPU, view=(0, 0)).images
    fixed = frozen(teacher.module, x, keep_modules=True, precision="32-true")

    def own() -> tuple[Model, torch.optim.Optimizer]:
        model = Model(module=copy_of(student.module), input_shape=data.shape, mean=teacher.mean, std=teacher.std)
        trained = reached(model.module, blocks.student, model.example())
        run.setup(model.module)
        return model, RECIPE.make(trained)

    def steps() -> Callable[[], Any]:
        mine = Run(None, quiet=True, precision="32-true", teacher_precision="32-true")
        network, optimizer = mine.setup(
            copy_of(student.module), lambda m: RECIPE.make(reached(m, blocks.student, student.example()))
        )

        def each():  # type: ignore[no-untyped-def]
            for _ in mine.epochs(RECIPE.epochs):
                network.train()
                for batch in mine.batches(data.train, RECIPE):
                    seen = jittered(batch, data, (mine.seed, mine.view))
                    with torch.no_grad():
                        t = relations(blocks.teacher.read(fixed, batch.images, blocks.heads))
                    s = relations(blocks.student.read(network, seen, blocks.heads))
                    mine.step(relation_loss(s, t), optimizer, RECIPE)
                    yield

        return partial(next, each())

    model, optimizer = own()
    net = model.module.train()
    batch = data.train.batch(index, device=CPU, view=(0, 0))
    with torch.no_grad():
        t_heads = blocks.teacher.read(fixed, x, blocks.heads)
        s_heads = Heads(*(part.clone() for part in blocks.student.read(net, x, blocks.heads)))
    gradient = [torch.randn_like(part) for part in s_heads]

    def forward_and_backward() -> None:
        torch.autograd.backward(list(blocks.student.read(net, x, blocks.heads)), gradient)

    def compared(loss: Callable[[Heads, Heads], Tensor]) -> None:
        leaves = Heads(*(part.detach().requires_grad_() for part in s_heads))
        loss(leaves, t_heads).backward()

    def at_once(s: Heads, t: Heads) -> Tensor:
        with torch.no_grad():
            scores = relations(t)
        return relation_loss(relations(s), scores)

    def to_its_block() -> None:
        with torch.no_grad():
            blocks.teacher.read(fixed, x, blocks.heads)

    forward_and_backward()  # so that the optimiser has gradients
    arms: dict[str, Callable[[], Any]] = {
        "a step": steps(),
        "part: batch": lambda: data.train.batch(index, device=CPU, view=(0, 0)),
        "part: colours": lambda: jittered(batch, data, (0, 0)),
        "part: teacher to its block": to_its_block,
        "part: student forward and backward": forward_and_backward,
        "part: relations and their gradient": partial(compared, at_once),
        "part: optimiser": optimizer.step,
        "teacher to its end": lambda: fixed(x),
        "relations head by head": partial(compared, head_by_head),
    }
    times = {name: min(seconds) for name, seconds in alternate(arms, rounds).items()}
    total = sum(seconds for name, seconds in times.items() if name.startswith("part"))
    share = (blocks.block - 1 + 0.5) / blocks.depth  # about: of the block itself projections alone
    macs = share * count(teacher.module, data.shape).macs + 3 * count(student.module, data.shape).macs
    floor = 2 * macs * B / matmul_rate(torch.float32)
    ratio = times["a step"] / total
    times["its multiply-adds at the rate of matrix products"] = floor
    figures = {
        "milliseconds": {name: round(1e3 * seconds, 2) for name, seconds in times.items()},
        "a step over the sum of its parts": round(ratio, 3),
        "gate held": ratio <= GATE,
        "teacher to its block over to its end": round(
            times["part: teacher to its block"] / times["teacher to its end"], 3
        ),
        "relations at once over head by head": round(
            times["part: relations and their gradient"] / times["relations head by head"], 3
        ),
    }
    file = record("tinymim_step", figures, batch=B, tokens=64, teacher="96x4", student="48x3", rounds=rounds, threads=1)
    print(figures, file)
    if ratio > GATE:
        raise SystemExit(f"a step takes {ratio:.2f} times the sum of its parts, and {GATE} is allowed")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
