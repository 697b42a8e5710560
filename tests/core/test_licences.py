"""Licences that follow from those of the parents."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upcycle.core.licences import TERMS, Licence, licence_of

SHAREABLE = [name for name, terms in TERMS.items() if not terms.no_derivatives]
ids = st.sampled_from([*TERMS, "unknown", "WTFPL"])


def of(*licences: str) -> Licence:
    return licence_of([(licence, f"parent {licence}") for licence in licences])


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        (["MIT"], "MIT"),
        (["CC0-1.0", "MIT"], "MIT"),
        (["MIT", "BSD-3-Clause", "BSD-2-Clause"], "BSD-3-Clause"),
        (["MIT", "Apache-2.0", "CC-BY-4.0"], "Apache-2.0"),
        (["apache-2.0", "gpl-3.0"], "GPL-3.0-only"),
        (["GPL-2.0", "Apache-2.0"], "incompatible"),
        (["GPL-2.0-or-later", "Apache-2.0"], "GPL-3.0-or-later"),
        (["GPL-2.0", "GPL-3.0"], "incompatible"),
        (["GPL-2.0", "CC-BY-4.0"], "GPL-2.0-only"),
        (["GPL-2.0", "MPL-2.0"], "GPL-2.0-only"),
        (["GPL-2.0", "MPL-2.0", "Apache-2.0"], "incompatible"),
        (["LGPL-3.0", "GPL-3.0"], "GPL-3.0-only"),
        (["AGPL-3.0", "GPL-3.0-or-later"], "AGPL-3.0-only"),
        (["MPL-2.0", "MIT"], "MPL-2.0"),
        (["CC-BY-4.0", "CC-BY-SA-4.0"], "CC-BY-SA-4.0"),
        (["CC-BY-SA-4.0", "GPL-3.0"], "GPL-3.0-only"),
        (["CC-BY-SA-4.0", "GPL-2.0"], "incompatible"),
        (["CC-BY-SA-4.0", "CC-BY-NC-SA-4.0"], "incompatible"),
        (["CC-BY-SA-4.0", "CC-BY-NC-4.0"], "incompatible"),
        (["CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"], "CC-BY-NC-SA-4.0"),
        (["CC-BY-NC-4.0", "GPL-3.0"], "incompatible"),
        (["CC-BY-NC-4.0", "MIT"], "CC-BY-NC-4.0"),
        (["CC-BY-ND-4.0"], "incompatible"),
        (["creativeml-openrail-m", "MIT"], "OpenRAIL-M"),
        (["openrail", "CC-BY-NC-4.0"], "other"),
        (["openrail", "GPL-3.0"], "incompatible"),
        (["llama3.1", "Apache-2.0"], "LicenseRef-Llama-Community"),
        (["other", "MIT"], "other"),
        (["unknown"], "unknown"),
        (["unknown", "MIT"], "unknown"),
        (["", "MIT"], "unknown"),
        (["WTFPL", "MIT"], "unknown"),
        (["unknown", "GPL-2.0", "Apache-2.0"], "incompatible"),  # no answer could mend that
        ([], "unknown"),
    ],
)
def test_the_licence_of_a_child(parents: list[str], expected: str) -> None:
    assert of(*parents).id == expected


def test_the_reason_names_who_is_unknown_and_who_conflicts() -> None:
    unknown = licence_of([("MIT", "teacher a"), ("unknown", "teacher b")])
    assert "teacher b" in unknown.why and "teacher a" not in unknown.why
    assert unknown.obligations[0] == "Ask for the licence of teacher b before you share this model."
    assert "'WTFPL' of teacher c" in licence_of([("WTFPL", "teacher c")]).why
    conflict = licence_of([("MIT", "a"), ("GPL-2.0", "teacher b"), ("Apache-2.0", "initial weights c")])
    assert "Apache-2.0 (initial weights c) and GPL-2.0-only (teacher b)" in conflict.why and "MIT" not in conflict.why
    assert "CC-BY-ND-4.0 (teacher d) does not allow" in licence_of([("CC-BY-ND-4.0", "teacher d")]).why


def test_obligations_of_all_parents_stay() -> None:
    both = licence_of([("MIT", "a"), ("CC-BY-NC-SA-4.0", "b"), ("CC0-1.0", "c")])
    assert both.obligations == (
        "Do not use it commercially (CC-BY-NC-SA-4.0 of b).",
        "Share it only under CC-BY-NC-SA-4.0, as CC-BY-NC-SA-4.0 of b asks.",
        "Name b as a source and keep its notices (CC-BY-NC-SA-4.0).",
        "Name a as a source and keep its notices (MIT).",
    )


@given(st.lists(ids, max_size=5), st.randoms())
def test_order_and_repetition_do_not_matter(licences: list[str], random) -> None:
    shuffled = [*licences, *licences[:1]]
    random.shuffle(shuffled)
    assert of(*shuffled) == of(*licences)


@given(st.lists(ids, min_size=1, max_size=5), ids)
def test_another_parent_never_makes_the_licence_freer(licences: list[str], more: str) -> None:
    before, after = of(*licences), of(*licences, more)
    if before.id in TERMS:
        assert after.id not in TERMS or after.id in TERMS[before.id].child
    else:
        assert after.id in ("incompatible", before.id)
    kept = {duty for duty in before.obligations if not duty.startswith("Share it only")}
    assert kept <= set(after.obligations)


def test_the_table_is_an_order_in_which_one_licence_is_its_own_child() -> None:
    for name in SHAREABLE:
        assert of(name).id == name and of(name, name).id == name
        assert TERMS[name].child <= set(TERMS)
    for a, b in itertools.combinations(SHAREABLE, 2):
        chosen = of(a, b).id
        assert chosen == "incompatible" or chosen in TERMS[a].child & TERMS[b].child


def test_where_no_licence_will_do_two_parents_are_to_blame() -> None:
    for three in itertools.combinations(SHAREABLE, 3):
        if of(*three).id == "incompatible":
            assert any(of(*pair).id == "incompatible" for pair in itertools.combinations(three, 2)), three


def test_joining_step_by_step_differs_from_joining_all_only_where_mpl_forgets_apache() -> None:
    """Why lineage asks the ancestors and not the identifier of a mixture: MPL-2.0 alone may become GPL-2."""
    differ = set()
    for a, b, c in itertools.product(SHAREABLE, repeat=3):
        pair = of(a, b).id
        if (pair if pair == "incompatible" else of(pair, c).id) != of(a, b, c).id:
            differ.add((frozenset((a, b)), c))
    mixture = frozenset(("MPL-2.0", "Apache-2.0"))
    assert differ == {(mixture, "GPL-2.0-only"), (mixture, "GPL-2.0-or-later")}
