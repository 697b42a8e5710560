"""The fixtures of the tests of assembly, whose components are what is assembled here."""

from tests.assembly.conftest import digits, halves, teacher  # noqa: F401
