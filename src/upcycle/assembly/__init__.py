"""Networks taken apart and put together: the list of methods is ``METHODS``."""

from upcycle.assembly.dery import DeRy
from upcycle.assembly.mda import MDA
from upcycle.assembly.mdaassembly import MDAAssembly
from upcycle.assembly.nes import NES

METHODS = (MDA, MDAAssembly, DeRy, NES)

__all__ = ["MDA", "METHODS", "NES", "DeRy", "MDAAssembly"]
