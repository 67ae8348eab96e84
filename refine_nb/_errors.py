"The sentence that names the nearest right name. The notebook `90_parameters` shows it."
import difflib
from collections.abc import Iterable


def unknown_name(
    kind: str,             # what is being named: "parameter", "preset", …
    name: object,          # the name that does not exist
    known: Iterable[str],  # those that do
) -> str:
    "A sentence that names the nearest right name, and all of them"
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, 1, 0.5)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"no {kind} {name!r}{meant} (there is {', '.join(known) or 'none'})"
