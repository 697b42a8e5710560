"""Rules for a network for some of its classes, and for one network made of several."""

from __future__ import annotations

from upcycle.verbs.advice.situation import Fit, Rule, Situation


def _mda(have: Situation) -> Fit | str:
    if have.architecture == "transformer":
        return "it follows the channels of convolutions, and a transformer has next to none."
    if have.goal == "better":
        return "it cuts a part out of a network and makes none better."
    if have.goal == "part":
        reason = "the channels that chosen classes need are cut out as a smaller network of its own, without training."
        return Fit(0, reason, "--classes CLASS1,CLASS2")
    reason = (
        "it shrinks a network without training by leaving out channels that no class needs much; kd makes better small "
        "networks, and takes a training. For a network of some classes only, ask for --goal part."
    )
    return Fit(35, reason, "--beta 0.3")


def _mdaassembly(have: Situation) -> Fit | str:
    if have.goal != "join":
        return "it joins several networks of different classes; ask for --goal join."
    if have.architecture == "transformer":
        return "it joins convolutional networks channel by channel."
    reason = (
        "networks with one sequence of layers and different classes become one with all classes, without training "
        "(--tune adds a short one); what mda cut out of two networks of one architecture fits together."
    )
    return Fit(0, reason)


def _dery(have: Situation) -> Fit | str:
    if have.goal == "better":
        return "it looks for the best network within a budget; ask for --goal smaller or join."
    reason = (
        "if you have several trained networks: blocks of them are stitched together within a budget of parameters and "
        "multiply-adds, and the new layers between them are trained."
    )
    return Fit(5 if have.goal == "join" else 28, reason, "--params 0.5M --flops 60M")


RULES: dict[str, Rule] = {"mda": _mda, "mdaassembly": _mdaassembly, "dery": _dery}
