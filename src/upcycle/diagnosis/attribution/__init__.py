"""Heat maps of the pixels that made a network say a class: :func:`explain`, by any of :data:`EXPLAINERS`."""

from upcycle.diagnosis.attribution.maps import EXPLAINERS, Attribution, explain

__all__ = ["EXPLAINERS", "Attribution", "explain"]
