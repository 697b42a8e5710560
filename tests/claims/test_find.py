"""Claims are found by the names of their files."""

import dataclasses
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from upcycle import claims
from upcycle.claims import all_claims, find
from upcycle.core.errors import UserError
from upcycle.core.method import Method
from upcycle.verbs.methods import all_methods


def test_a_claim_is_named_like_its_file() -> None:
    found = all_claims()
    folder = Path(claims.__file__).parent
    with_claim = {file.stem for file in folder.glob("*.py") if "\nCLAIM = " in file.read_text(encoding="utf-8")}
    assert set(found) == with_claim
    assert all(claim.method == name for name, claim in found.items())


def test_every_method_has_one_claim() -> None:
    found = all_claims()
    covered = [name for claim in found.values() for name in claim.covers]
    assert len(set(covered)) == len(covered) and not set(covered) & set(found)
    names = {method.card.name for method in all_methods()}
    settings = {"attribution", "esam", "snapmix", "longtail", "longtailcifar10", "emo", "shunted"}
    settings |= {"coord", "metaformer", "pnp", "tisode", "ode"}
    assert names | settings == {*found, *covered}
    assert all(find(name).method == name or name in find(name).covers for name in names)
    assert find("er") is find("derpp") is found["derpp"]


def test_an_own_claim_is_found_without_the_others() -> None:
    code = "import sys; from upcycle.claims import find; find('vam'); assert 'upcycle.claims.meat' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["settings", "digitz", "", "../kd"])
def test_what_is_no_claim_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"There is no claim '{name}'"):
        find(name)


def test_baselines_of_claims_have_the_networks_that_they_name() -> None:
    """A role without a field would end in a traceback when the method is checked."""
    for file in Path(claims.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"upcycle.claims.{file.stem}")
        for kind in vars(module).values():
            if inspect.isclass(kind) and issubclass(kind, Method) and kind.__module__ == module.__name__:
                named = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
                assert set(kind.roles) <= named, kind
