"""Black boxes: what answers with classes and probabilities and shows nothing else.

:class:`Predictor` is the protocol. A network (:mod:`~upcycle.predictors.local`), an ONNX file
(:mod:`~upcycle.predictors.onnx_file`) and an HTTP endpoint (:mod:`~upcycle.predictors.http`) implement it, and
:func:`predictor` makes any of them from a reference.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from upcycle.core.addresses import check_url
from upcycle.core.errors import unknown
from upcycle.core.models import Model
from upcycle.core.references import check_reference, resolve
from upcycle.predictors.answers import Answers, Predictor

__all__ = ["Answers", "Predictor", "check_predictor", "predictor"]


def predictor(reference: str | Path | Model, *, trust: tuple[str, ...] = (), **options: Any) -> Predictor:
    """A black box from a reference.

    Args:
        reference: the address of an endpoint (``http://`` or ``https://``), the path of a file that ends in
            ``.onnx``, or anything that :func:`upcycle.core.references.resolve` takes.
        trust: Python packages that a saved model may be rebuilt from.
        options: of :class:`~upcycle.predictors.http.Http`, :class:`~upcycle.predictors.onnx_file.OnnxFile` or
            :class:`~upcycle.predictors.local.Local`, whichever it is.

    Raises:
        UserError: a reference that names nothing, an option that this kind of predictor does not have, or what
            the predictor itself finds wrong.
    """
    if _is_address(reference):
        from upcycle.predictors.http import Http

        _check_options(Http, options)
        return Http(str(reference), **options)
    if _is_onnx(reference):
        from upcycle.predictors.onnx_file import OnnxFile

        _check_options(OnnxFile, options)
        return OnnxFile(str(reference), **options)
    from upcycle.predictors.local import Local

    _check_options(Local, options)
    return Local(resolve(reference, trust=trust), **options)


def check_predictor(reference: str) -> None:
    """Raise UserError at once for a reference that cannot be a predictor; nothing is built, read or fetched."""
    if _is_address(reference):
        check_url(reference)
    elif _is_onnx(reference):
        from upcycle.predictors.onnx_file import check_file

        check_file(Path(reference))
    else:
        check_reference(reference)


def _is_address(reference: object) -> bool:
    return isinstance(reference, str) and reference.lower().startswith(("http://", "https://"))


def _is_onnx(reference: object) -> bool:
    return isinstance(reference, str | Path) and str(reference).endswith(".onnx")


def _check_options(kind: type, options: dict[str, Any]) -> None:
    known = list(inspect.signature(kind).parameters)[1:]  # the first one is what it is made of
    for name in options:
        if name not in known:
            raise unknown(f"option of {kind.__name__}", name, known)
