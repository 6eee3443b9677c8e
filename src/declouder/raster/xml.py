"""XML from strangers: small, without entities, or refused."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from declouder.errors import RasterError


def parsed_xml(path: Path, *, most_bytes: int, mend: str) -> ElementTree.Element:
    """Return the root of an XML file.

    Args:
        path: the file.
        most_bytes: a larger one is refused.
        mend: what a user can do about a file that is refused.

    Raises:
        RasterError: if it is too large, no XML in UTF-8, or declares anything: entities could grow without end or
            read other files.
    """
    try:
        if path.stat().st_size > most_bytes:
            raise RasterError(f"{path} is of over {most_bytes >> 20} MiB; {mend}")
        # Another encoding could hide a declaration from us, and not from the parser.
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RasterError(f"{path} cannot be read as text ({error}); {mend}") from None
    if "<!" in text.replace("<!--", ""):
        raise RasterError(f"{path} declares entities, which it has no use for; {mend}")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise RasterError(f"{path} is no XML ({error}); {mend}") from None
