"""The app, and what all commands share: parameter types, exit codes, JSON output."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.help import DefaultFormatter, HelpPanel, InlineText
from rich.console import Console, ConsoleOptions
from rich.text import Text

from ..console import as_json
from .flags import Typed

INTERRUPTED = 130
"""Exit code after Ctrl-C. Shells use the same code."""
RESUME_ME = 75
"""Exit code after SIGTERM (EX_TEMPFAIL: try again). Clusters send SIGTERM before they stop a job."""


class JoinedLines(DefaultFormatter):
    """Wraps paragraphs of help to the terminal's width. By itself, Cyclopts keeps the line breaks of docstrings."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a table of flags or commands."""
        for entry in panel.entries:
            _join_lines(entry.description)
        super().__call__(console, options, panel)

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Print the description of a command."""
        _join_lines(description)
        super().render_description(console, options, description)


def _join_lines(text: Any) -> None:
    if isinstance(text, InlineText):
        paragraphs = str(text.primary_renderable).split("\n\n")
        text.primary_renderable = Text("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))


def _shown(default: Any) -> str | None:
    """The default to show in help. None: show nothing. Flags with several values state it in their text."""
    return None if isinstance(default, bool | tuple | None) else str(default)


app = App(
    name="shvit",
    help="Real-time vision models for the hardware you have. Start with: shvit demo",
    help_format="plaintext",
    help_formatter=JoinedLines(),
    version_flags=["--version"],
    default_parameter=Parameter(negative=(), show_default=_shown),
)

Json = Annotated[bool, Parameter("--json", help="Print one JSON document to stdout, and all other output to stderr.")]
Flags = Annotated[Typed, Parameter(parse=False)]
"""The flags that the user typed. `call` passes them to each command that has a parameter of this type."""
NONE_TYPED = Typed()


def console_for(as_json: bool) -> Console:
    """The console for text: stdout, or stderr if stdout is reserved for JSON."""
    return Console(stderr=as_json)


def finish(wanted: bool, document: Any) -> Any:
    """Print the JSON document of a command if --json was given. Returns the document."""
    if wanted:
        sys.stdout.write(as_json(document, sys.stdout.encoding) + "\n")
    return document


def call(arguments: Sequence[str]) -> Any:
    """Run a command line, given without the program's name. Returns what the command returns."""
    verb, bound, unparsed = app.parse_args(arguments, exit_on_error=False, print_error=False)
    typed = {name: Typed.of(arguments) for name, kind in unparsed.items() if kind is Typed}
    return verb(*bound.args, **bound.kwargs, **typed)
