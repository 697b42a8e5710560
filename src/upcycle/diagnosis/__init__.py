"""Networks looked into, and repaired: the list of methods is ``METHODS``."""

from upcycle.core.method import Method
from upcycle.diagnosis.model_doctor import ModelDoctor

METHODS: tuple[type[Method], ...] = (ModelDoctor,)
