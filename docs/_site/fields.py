"""Show the fields that a docstring lists, `name: meaning`, as a list."""

import re
from typing import Any

import griffe

# One or more names, a colon, and the meaning; further lines are indented.
_FIELD = re.compile(r"^[a-z_][\w.`]*(?:, [a-z_][\w.`]*)*: ")


class Fields(griffe.Extension):
    """Rewrites docstrings when they are read."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = as_list(obj.docstring.value)


def as_list(text: str) -> str:
    """Put `- ` before every line that begins a field."""
    lines, in_list = [], False
    for line in text.split("\n"):
        if _FIELD.match(line):
            name, _, meaning = line.partition(": ")
            if not in_list and lines and lines[-1]:
                lines.append("")
            line, in_list = f"- `{name}`: {meaning}", True
        elif in_list and not line.startswith(" "):
            in_list = False
            if line:
                lines.append("")
        lines.append(line)
    return "\n".join(lines)
