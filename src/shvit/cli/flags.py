"""The flags that a user typed. Flags without effect raise an error."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from ..errors import InputError
from ..train.recipe import OLD_NAMES


@dataclass(frozen=True)
class Typed:
    """Typed flags, without their leading dashes. Empty if a command is called from Python."""

    flags: frozenset[str] = frozenset()

    @classmethod
    def of(cls, arguments: Iterable[str]) -> "Typed":
        """The flags of a command line, with old names replaced. `--top-k 5`, `--top-k=5` and `--top_k 5` are equal."""
        before = takewhile(lambda argument: argument != "--", arguments)
        typed = (argument[2:].partition("=")[0] for argument in before if argument.startswith("--"))
        names = (name.replace("-", "_") for name in typed)
        return cls(frozenset(OLD_NAMES.get(name, name).replace("_", "-") for name in names))

    def refuse(self, *flags: str, because: str) -> None:
        """Raise InputError if one of these flags was typed, even with its default value.

        `because` ends the sentence "--flag has no effect ...", for example "without --train DATA".
        """
        if idle := [f"--{flag}" for flag in flags if flag in self.flags]:
            verb, them = ("has", "it") if len(idle) == 1 else ("have", "them")
            raise InputError(f"{' and '.join(idle)} {verb} no effect {because}: leave {them} out")
