"""Networks taken apart and put together: the list of methods is ``METHODS``."""

from upcycle.assembly.dery import DeRy
from upcycle.assembly.mda import MDA
from upcycle.assembly.mdaassembly import MDAAssembly
from upcycle.assembly.nes import NES
from upcycle.assembly.swap import Swap
from upcycle.core.method import Method

METHODS: tuple[type[Method], ...] = (MDA, MDAAssembly, DeRy, NES, Swap)
