"""What the commands tell the user when something is wrong, in one line and without a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended


class UserError(click.ClickException):
    """Something that the user can mend."""

    exit_code = 2


class Interrupted(click.ClickException):
    """Ctrl-C, with what is left and how to go on."""

    exit_code = INTERRUPTED


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """These exceptions are the user's to mend in this block: their message becomes the one line."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from error


def one_line(message: str) -> str:
    """The message without line breaks."""
    return " ".join(message.split())
