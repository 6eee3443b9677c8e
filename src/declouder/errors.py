"""The errors that declouder raises for input it cannot use.

Every message says what was found, what was wanted and the mend. The command prints it as one line and
exits with `exit_code`; mistakes of our own stay plain Python exceptions with a traceback.
"""

from __future__ import annotations


class DeclouderError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 2


class RasterError(DeclouderError):
    """An image or raster file cannot be read or written as asked."""


class OutputError(DeclouderError):
    """The place for a result cannot be written, or holds something already."""


class MisfitError(OutputError):
    """The format of a result cannot hold the image."""


class BusyError(OutputError):
    """Another run is writing the result at this moment."""


class OptionError(DeclouderError):
    """An option or argument has a value outside its meaning."""


class ModelError(DeclouderError):
    """A model folder or checkpoint is missing, incomplete or of another kind."""


class DataError(DeclouderError):
    """A data set is missing, incomplete or inconsistent."""


class ConfigError(DeclouderError):
    """A configuration file has an unknown field or a wrong value."""


_LONGEST_REASON = 200


def reason_of(error: BaseException) -> str:
    """Return what a library's exception says as part of one line; of much the first sentences, or words."""
    text = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
    if len(text) <= _LONGEST_REASON:
        return text
    beginning = text[:_LONGEST_REASON]
    sentences = beginning.rpartition(". ")[0]
    if sentences.count("(") > sentences.count(")"):
        sentences = sentences.rpartition("(")[0].strip() or sentences
    return sentences or f"{beginning.rpartition(' ')[0] or beginning} ..."
