"""Networks looked into, and repaired: the list of methods is ``METHODS``."""

from upcycle.diagnosis.model_doctor import ModelDoctor

METHODS = (ModelDoctor,)

__all__ = ["METHODS", "ModelDoctor"]
