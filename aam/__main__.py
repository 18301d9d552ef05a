"""``python -m aam`` is ``aam``."""

from aam.cli.main import main

main()
