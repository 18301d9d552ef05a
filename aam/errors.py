"""The one exception that means "the user's input is wrong", so that commands can print it as one line."""

__all__ = ["DataError"]


class DataError(ValueError):
    """Bad input: the message names the file, the offending value and the way out.

    Commands print it without a traceback and exit with code 1. Anything else that is raised is a bug.
    """
