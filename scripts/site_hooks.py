"""For mkdocs: the cross-reference roles of the docstrings, ``:class:`~a.b.C```, shown as the name they refer to."""

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):<code>(?:~(?:\w+\.)*)?(\w+(?:\.\w+)*)</code>")


def on_page_content(html: str, **context: Any) -> str:
    """mkdocs calls this with the body of each page."""
    return ROLE.sub(r"<code>\1</code>", html)
