"""RELIANT: whether a student of persons decides less by their age than plain distillation makes it, at no cost."""

from __future__ import annotations

from typing import Any

from upcycle.claims import Check, Claim, Headline, Measured, gain, mean
from upcycle.claims.graphs import fresh_for, trained_on
from upcycle.claims.settings import train
from upcycle.core.evaluate import predict_logits
from upcycle.core.recipe import Recipe
from upcycle.data.graph_sources import load_graphs
from upcycle.distillation import RELIANT
from upcycle.distillation.reliant import fairness

ARMS: dict[str, dict[str, Any]] = {
    "KD": {"alpha": 0.0, "proxy": 0},
    "RELIANT": {"alpha": 100.0},
    "no proxy": {"alpha": 100.0, "proxy": 0},
    "RELIANT, α = 10": {"alpha": 10.0},
    "no proxy, α = 10": {"alpha": 10.0, "proxy": 0},
}
"""The students, by what they are called."""


def measure(seed: int, quick: bool) -> dict[str, float]:
    """A teacher and its students on one split of the graph."""
    data = load_graphs("credit", split=seed)
    epochs = 2 if quick else 150
    recipe = Recipe(epochs=epochs, batch_size=0, optimizer="adam", lr=0.01, schedule="constant")
    teacher = trained_on("zoo:gcn_3_64", data, seed, recipe, balanced=True)
    networks = {"teacher": teacher.module}
    for name, options in ARMS.items():
        method = RELIANT(
            teacher=teacher,
            student=fresh_for("zoo:gcn_2_16", data, seed),
            sensitive="Age",
            balanced=True,
            recipe=recipe,
            **options,
        )
        networks[name] = train(method, data, seed)  # type: ignore[arg-type]
    figures: dict[str, float] = {}
    s, y = data.test.columns["Age"].long()[data.test.ids], data.test.labels
    for name, network in networks.items():
        decided = predict_logits(network, data.test).argmax(1)
        found = fairness(decided, s, y)
        figures |= {
            f"{name}, alike (%)": 100 - 100 * found["Δ_SP"],
            f"{name}, accuracy (%)": 100 * float((decided == y).double().mean()),
            f"{name}, Δ_SP (points)": 100 * found["Δ_SP"],
            f"{name}, Δ_EO (points)": 100 * found["Δ_EO"],
            f"{name}, rate of class 1, Age 0 (%)": 100 * found["rate of 0"],
            f"{name}, rate of class 1, Age 1 (%)": 100 * found["rate of 1"],
        }
    return figures


def halved(measured: Measured) -> float:
    """By how many points RELIANT's mean Δ_SP is below half of plain distillation's."""
    return 0.5 * mean(measured, "KD, Δ_SP (points)") - mean(measured, "RELIANT, Δ_SP (points)")


CLAIM = Claim(
    method="reliant",
    sentence="A student of a graph's nodes decides less by a sensitive attribute than a plainly distilled one, at next "
    "to no cost in accuracy.",
    published="Credit, GraphAKD with a GCN: teacher 77.39 / 13.32 / 10.40, RELIANT 77.81 / 2.59 / 2.43 (accuracy, "
    "Δ_SP, Δ_EO in %; one seed, official README, which has no plain student).",
    setting="Credit, 30,000 persons, joined where they resemble each other most, half of them tested on; s = Age, y = "
    "no default next month; GCN-3-64 to GCN-2-16, 150 epochs over the whole graph, classes weighed alike, T = 1; "
    "α = 100.",
    data=("credit",),
    measure=measure,
    headline=Headline(
        product="RELIANT, alike (%)",
        baseline="KD, alike (%)",
        says="100 - Δ_SP of RELIANT over that of plain distillation, same teacher, student and updates",
    ),
    checks=(
        Check(text="its mean Δ_SP is at most half of plain distillation's", value=halved, bound=0.0),
        Check(
            text="it loses at most 1 point of accuracy",
            value=gain("RELIANT, accuracy (%)", "KD, accuracy (%)"),
            bound=-1.0,
        ),
    ),
)
