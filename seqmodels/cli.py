"""What command lines share: argument parsing, and user errors as one line with exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from seqmodels.config import load, override, unknown_argument
from seqmodels.errors import UserError

PLATFORMS = ("cpu", "gpu", "tpu")
USER_ERRNOS = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT}


def command(main: Callable[[list[str]], None]) -> Callable[..., int]:
    """Make `main` an entry point that returns its exit code.

    0 after success; 2 after a mistake of the user's, told in one line on stderr; 130 after an interrupt. Anything
    else is a bug and keeps its traceback.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            main(list(sys.argv[1:] if argv is None else argv))
        except UserError as error:
            return _fail(str(error))
        except BrokenPipeError:  # the reader, such as head, has seen enough
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.errno not in USER_ERRNOS:
                raise
            return _fail(f"{error.filename or 'file system'}: {error.strerror}; free space or choose another --run-dir")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        return 0

    return run


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return 2


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    @property
    def flags(self) -> list[str]:
        """All long flags."""
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UserError(unknown_argument(unknown[0], self.flags))
        return parsed


def add_platform(parser: argparse.ArgumentParser) -> None:
    """Declare ``--platform``; `use_platform` acts on it."""
    parser.add_argument("--platform", choices=PLATFORMS, help="where to run; by default the best that is there")


def use_platform(platform: str | None) -> None:
    """Run on `platform`; call before anything touches a device."""
    import jax

    if platform is None:
        return
    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
    try:
        jax.devices()
    except RuntimeError as error:
        reason = str(error).split(". ")[0]
        raise UserError(f"--platform {platform} is not available here ({reason}); leave it out or use cpu") from None


def load_config(args: argparse.Namespace) -> Any:
    """The experiment of ``--config``."""
    if args.config is None:
        raise UserError("--config is missing; give an experiment file, such as --config configs/quickstart.py")
    return load(args.config)


def parse_experiment(
    parser: Parser, argv: list[str], find: Callable[[argparse.Namespace], Any] = load_config
) -> tuple[argparse.Namespace, Any]:
    """The command's own options, and the experiment that `find` gets from them with all other arguments as overrides.

    ``--help`` lists every field of that experiment too.
    """
    parser.add_argument("--config", metavar="FILE", help="experiment file, such as configs/quickstart.py")
    asked = [word for word in argv if word in ("-h", "--help")]
    args, rest = parser.parse_known_args([word for word in argv if word not in asked])
    if asked:
        parser.print_help()
        print("\nEvery field of the experiment is an option too; with --config FILE they are listed here.\n")
        if args.config is None:
            raise SystemExit(0)
    return args, override(find(args), rest + asked, prog=parser.prog)
