"""What the headline of a claim decides, and that records and code say the same."""

import json
import math
from pathlib import Path

import pytest

from upcycle.claims import Check, Claim, Headline, all_claims
from upcycle.claims.verdicts import interval
from upcycle.core.errors import UserError
from upcycle.verbs.prove import Proof, prove

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
GAIN = Headline(product="ours", baseline="theirs", says="ours over theirs")
LOSS = Headline(product="ours", baseline="theirs", says="ours beside theirs", allowed=0.5, reason="noise")


def arms(differences: list[float], base: float = 50.0) -> dict[str, list[float]]:
    return {"ours": [base + d for d in differences], "theirs": [base] * len(differences)}


def test_the_interval_is_students() -> None:
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
    assert interval([1.0]) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("headline", "differences", "word"),
    [
        (GAIN, [1.0, 1.1, 0.9, 1.0, 1.2], "works"),
        (GAIN, [1.0, -1.0, 0.5, -0.4, 0.1], "no difference shown"),
        (GAIN, [-1.0, -1.1, -0.9, -1.0, -1.2], "harms"),
        (GAIN, [3.0, -1.0, 2.0], "too few seeds to tell"),
        (GAIN, [5.0], "too few seeds to tell"),
        (GAIN, [1.0, 1.1, 0.9], "works"),
        (GAIN, [], "not measured"),
        (LOSS, [-0.1, 0.0, 0.1, -0.2, 0.1], "costs nothing"),
        (LOSS, [-1.0, -1.1, -0.9, -1.0, -1.2], "harms"),
        (LOSS, [-0.6, 0.3, -0.4, 0.2, -0.7], "loss not excluded"),
    ],
)
def test_the_interval_decides(headline: Headline, differences: list[float], word: str) -> None:
    found = headline.verdict(arms(differences))
    assert found.word == word and found.seeds == len(differences)
    assert found.good == (word in ("works", "costs nothing"))


def test_a_margin_is_what_a_gain_exceeds_and_seeds_are_paired() -> None:
    far = Headline(product="ours", baseline="theirs", says="", margin=2.0, reason="it costs twice the time")
    assert (
        far.verdict(arms([1.0, 1.1, 0.9])).word == "too few seeds to tell" and far.verdict(arms([3.0, 3.1, 2.9])).good
    )
    drift = {"ours": [10.0, 50.0, 90.0, 91.0], "theirs": [9.0, 49.0, 89.1]}  # the mean wanders, the difference does not
    assert GAIN.differences(drift) == pytest.approx([1.0, 1.0, 0.9]) and GAIN.verdict(drift).good
    mean = Headline(product=("ours", "theirs"), baseline=50.0, says="")
    assert mean.differences(arms([1.0, 2.0])) == [0.5, 1.0]


def test_an_exact_statement_holds_in_every_seed() -> None:
    measured = {"error": [0.0, 0.0, 1.0]}
    mean = Check(text="", value=lambda m: -sum(m["error"]) / len(m["error"]), bound=-0.5)
    every = Check(text="", value=mean.value, bound=-0.5, exact=True)
    assert mean.holds(measured) and not every.holds(measured)


# -- records ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", all_claims())
def test_a_record_says_what_the_code_says(name: str) -> None:
    """Sentence, setting, verdicts and conditions of a committed record follow from the code and its own figures."""
    file = RESULTS / f"prove_{name}.json"
    if not file.is_file():
        pytest.skip("not measured yet, and shown so")
    claim, record = all_claims()[name], json.loads(file.read_text())
    if record["setting"] != claim.setting:
        pytest.skip("measured in an earlier setting, and shown as not measured yet")
    made = json.loads(json.dumps(Proof(claim=claim, measured=record["measured"], seeds=record["seeds"]).record()))
    assert made == record
    assert all(len(values) <= len(record["seeds"]) for values in record["measured"].values())
    assert all(
        h is None or (h.margin == 0 and h.allowed is None) or h.reason for h in (claim.headline, *claim.covers.values())
    )


# -- proving ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Claim:
    """A claim that is measured at once, and fails at the third seed when it is told to."""

    def measure(seed: int, quick: bool) -> dict[str, float]:
        if seed == 2 and quick:
            raise KeyboardInterrupt
        return {"ours": 51.0 + seed, "theirs": 50.0 + seed + 0.1 * (seed % 2)}

    claim = Claim(method="kd", sentence="s", published="p", setting="x", data=(), measure=measure, headline=GAIN)
    monkeypatch.setattr("upcycle.verbs.prove.find", lambda name: claim)
    return claim


def test_proving_goes_on_where_it_ended(small: Claim, tmp_path: Path) -> None:
    out = tmp_path / "kd.json"
    with pytest.raises(KeyboardInterrupt):
        prove("kd", seeds=5, quick=True, out=out, say=print)
    assert len(json.loads(out.read_text())["seeds"]) == 2
    proof = prove("kd", seeds=5, out=out, resume=True, say=print)
    whole = prove("kd", seeds=5, say=print)
    assert proof.measured == whole.measured and [s["seed"] for s in proof.seeds] == [0, 1, 2, 3, 4]
    assert proof.holds and proof.sentence().startswith("kd: works, +0.96 points (95 % interval +0.89 to")
    assert "5 seeds), ours over theirs." in proof.text()


def test_a_record_of_another_setting_is_no_beginning(small: Claim, tmp_path: Path) -> None:
    out = tmp_path / "kd.json"
    prove("kd", seeds=1, out=out, say=print)
    out.write_text(out.read_text().replace('"setting": "x"', '"setting": "y"'))
    with pytest.raises(UserError, match="of this one in another setting; give another --out"):
        prove("kd", seeds=2, out=out, resume=True, say=print)
    out.write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        prove("kd", seeds=2, out=out, resume=True, say=print)
