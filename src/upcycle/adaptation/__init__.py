"""Networks made to serve a new task or a new domain: the list of methods is ``METHODS``."""

from upcycle.core.method import Method

METHODS: tuple[type[Method], ...] = ()

__all__ = ["METHODS"]
