"""``python -m aam.cli`` is ``aam``."""

from aam.cli.main import main

main()
