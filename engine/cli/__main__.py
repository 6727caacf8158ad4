"""``python -m tilegrad.cli`` is the command ``tilegrad``."""

from . import main

main(prog_name="tilegrad")
