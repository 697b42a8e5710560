"""TWP: whether a graph network keeps old classes of nodes that training on forgets, and beside what penalties keep."""

from __future__ import annotations

from typing import Any

import torch

from upcycle.claims import Check, Claim, Headline, Measured, gain, mean
from upcycle.claims.graphs import fresh_for
from upcycle.claims.settings import train_and_left
from upcycle.continual import SI, TWP, Finetune, Joint, LwF
from upcycle.core.recipe import Recipe
from upcycle.data.graph_sources import load_graphs
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream


def recipe(epochs: int) -> Recipe:
    """All nodes of a task at once, as the authors' code has it for graphs of one set of nodes."""
    return Recipe(epochs=epochs, batch_size=0, optimizer="adam", lr=0.005, weight_decay=5e-4, schedule="constant")


def drawn(seed: int) -> Stream:
    """Six of Cora's seven classes, two at a time, in an order that the seed draws like the nodes to train on."""
    data = load_graphs("cora", split=seed + 1)
    order = torch.randperm(len(data.classes), generator=torch.Generator().manual_seed(seed))[:6]
    return stream(data.only(tuple(data.classes[i] for i in order.tolist())), tasks="3", scenario="task")


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Each arm from the same weights on the same stream: what is left of all tasks, and what was lost of the first."""
    data = drawn(seed)
    own: dict[str, Any] = {
        "student": fresh_for("zoo:gat", data.base, seed),  # type: ignore[arg-type]
        "recipe": recipe(2 if quick else 200),
    }
    arms = {
        "TWP": TWP(**own),
        "EWC form": TWP(**own, lambda_t=0.0),
        "fine-tuning": Finetune(**own),
        "SI": SI(**own),
        "LwF": LwF(**own),
        "joint": Joint(**own),
    }
    found = {}
    for name, method in arms.items():
        scores = train_and_left(method, data, seed)[1]["scores"]  # type: ignore[arg-type]
        summary = scores.summary()
        found[f"{name} (%)"] = 100 * summary["average accuracy"]
        if len(scores.matrix) > 1:  # the paper's forgetting: right after the task less after the last one
            found[f"{name}, forgetting (points)"] = -100 * summary["backward transfer"]
    return found


def halved(measured: Measured) -> float:
    """Give half of what fine-tuning forgets, less what TWP forgets."""
    mine, plain = (mean(measured, f"{name}, forgetting (points)") for name in ("TWP", "fine-tuning"))
    return plain / 2 - mine


CLAIM = Claim(
    method="twp",
    sentence="A graph network that learns new classes of nodes and may keep nothing of the old ones forgets less where "
    "weights are held that old answers and the attention to neighbours depend on.",
    published="GAT, told the task, accuracy / forgetting: Corafull 89.0 / 3.3 against 51.6 / 46.1 (fine-tuning) and "
    "86.9 / 6.4 (EWC); Amazon Computers 97.3 / 0.6 against 86.5 / 12.3 and 94.5 / 4.6 (authors' README).",
    setting="Cora, 6 of its 7 classes in 3 tasks of 2, task-incremental; the seed draws classes, order and nodes (40 a "
    "class to train on, on average). GAT of 8 heads of 8, 200 epochs a task, all nodes at once, Adam at 0.005; "
    "λ_l = λ_t = 10,000. The EWC form is λ_t = 0. SI and LwF stand at their default strengths and decide nothing. "
    "Fine-tuning is plain training, whose Adam begins anew in each task. That TWP is better than its EWC form "
    "the authors show on Amazon Computers, of which no copy was at hand: it stays unshown.",
    data=("cora",),
    measure=measure,
    headline=Headline(
        product="TWP (%)",
        baseline="fine-tuning (%)",
        says="weights held by loss and attention over training on, same network and updates",
    ),
    checks=(
        Check(text="TWP beats fine-tuning by 5 points", value=gain("TWP (%)", "fine-tuning (%)"), bound=5.0),
        Check(text="TWP forgets at most half of what fine-tuning forgets", value=halved, bound=0.0),
        Check(
            text="TWP is not below its EWC form by more than 1 point", value=gain("TWP (%)", "EWC form (%)"), bound=-1.0
        ),
    ),
)
