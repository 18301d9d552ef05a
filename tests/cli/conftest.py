"""The fixtures of the end-to-end tests: commands that print need runs to print."""

from tests.end_to_end.conftest import pretrained, study, trained

__all__ = ["pretrained", "study", "trained"]
