"""Docstrings as Python has them: some are put together at import, and a reader of the source sees only a part."""

import importlib
import inspect
import re
from typing import Any

import griffe

# Code after a line of two colons is code by its indentation alone.
COLONS = re.compile(r"^ *::\n\n|:(?=:\n\n)", re.MULTILINE)


class AtImport(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None or not (obj.is_function or obj.is_class or obj.is_module):
            return
        text = obj.docstring.value
        # A decorator may have added to it.
        if (obj.is_function or obj.is_class) and obj.decorators and obj.parent is obj.module:
            described = getattr(importlib.import_module(obj.module.path), obj.name)
            text = inspect.getdoc(described) or text
        obj.docstring.value = COLONS.sub("", text)
