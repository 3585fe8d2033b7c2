"""The docstrings' "Example:" sections as examples: griffe knows them as "Examples:" only."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Rename the section while the package is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
