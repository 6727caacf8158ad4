"""The command ``tilegrad``: train, predict, info, tune."""

from __future__ import annotations

import sys
from typing import Any

import click

from .. import __version__
from .errors import INTERRUPTED, one_line
from .info import info
from .predict import predict
from .train import train
from .tune import tune


class Main(click.Group):
    """A group whose errors are one line on stderr: exit code 2 for what the user can mend, 130 for Ctrl-C."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command and leave with its exit code."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "tilegrad"
            code = _complain(f"{error.format_message()} ('{command} --help' lists what there is)")
        except click.Abort:
            code = _complain("interrupted", INTERRUPTED)
        except click.ClickException as error:
            code = _complain(error.format_message(), error.exit_code)
        except OSError as error:  # a disk that is full, a folder that is not ours
            code = _complain(str(error))
        sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int = 2) -> int:
    click.echo(f"tilegrad: {one_line(message)}", err=True)
    return code


@click.group(
    "tilegrad",
    cls=Main,
    no_args_is_help=False,  # a missing command is an error like any other
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="tilegrad")
def main() -> None:
    """Train small classifiers with tilegrad, use them, and see what this machine can run."""


main.add_command(train)
main.add_command(predict)
main.add_command(info)
main.add_command(tune)
