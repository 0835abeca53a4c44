"""The command line of every program: whole option names, numbers in their ranges, and one sentence for a mistake.

A range is an interval in mathematics' notation: "[0, 1)" holds 0 and not 1. It stands in the metadata of a dataclass's field, or in
`add_argument`, as `within`.
"""

import argparse
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from transformers import HfArgumentParser

from .files import is_full_disk
from .models.credentials import mask_credentials


def is_within(value: float, interval: str) -> bool:
    """Whether a number lies in an interval such as "[0, 1)". Infinite numbers and NaN lie in none."""
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below and math.isfinite(value)


def in_words(kind: type, interval: str) -> str:
    """Say which numbers are expected: "a whole number of at least 1"."""
    noun = "a whole number" if kind is int else "a number"
    low, high = (end.strip() for end in interval[1:-1].split(","))
    if high != "inf":
        return f"{noun} in {interval}"
    return noun if low == "-inf" else f"{noun} of at least {low}" if interval[0] == "[" else f"{noun} above {low}"


def check_ranges(arguments: Any, inherited: Mapping[str, str] | None = None) -> None:
    """Raise ValueError if a number of a dataclass is outside the range in its field's metadata.

    Args:
        inherited: ranges of fields of a base class, by name.
    """
    for item in fields(arguments):
        interval = (inherited or {}).get(item.name) or item.metadata.get("within")
        value = getattr(arguments, item.name)
        for number in value if isinstance(value, list) else [value]:
            if interval and isinstance(number, int | float) and not is_within(number, interval):
                words = in_words(type(number), interval)
                raise ValueError(f"Got {item.name}={number}, expected {words}: change it (--help explains it).")


def json_object(name: str, text: str) -> dict[str, Any]:
    """Return the dict that a JSON text holds. Raises ValueError on other text; `name` is the option's."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        value = error
    if not isinstance(value, dict):
        raise ValueError(f"Got {name}={text!r}, expected a JSON object such as '{{\"num_frames\": 16}}': correct it.")
    return value


def number(kind: type, interval: str) -> Callable[[str], float]:
    """Return the `type` of an argument whose number, an int or a float, lies in a range."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not is_within(value, interval):
            raise argparse.ArgumentTypeError(f"Got {text}, expected {in_words(kind, interval)}: change it.")
        return value

    parse.interval = interval  # type: ignore[attr-defined]
    return parse


class CommandLine(HfArgumentParser):
    """A parser of dataclasses, of arguments of its own, or of both. Options have their whole names; numbers are in their ranges."""

    def __init__(self, dataclass_types: Any = (), **kwargs: Any):
        if not dataclass_types:
            kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def add_argument(self, *names: str, within: str | None = None, **options: Any) -> argparse.Action:
        """Add an argument; `within` is the range of its number."""
        if options.get("type") in (int, float):
            options["type"] = number(options["type"], within or "(-inf, inf)")
        return super().add_argument(*names, **options)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse; an unknown option ends the program with the name that is nearest to it."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = next((word for word in unknown if word.startswith("-")), unknown[0])
            near = difflib.get_close_matches(name.split("=")[0], self._option_string_actions, n=1)
            self.error(
                f"Got {name}, expected an option of this program: {f'write {near[0]}' if near else '--help lists them'}."
            )
        return parsed, []

    def parse_dataclasses(self, args: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Return an instance of each dataclass. Its own ValueError ends the program like any other mistake."""
        try:
            return self.parse_args_into_dataclasses(args, look_for_args_file=False)
        except ValueError as error:
            self.error(sentence_of(error) or str(error))

    def error(self, message: str) -> NoReturn:
        """End the program with a sentence and exit code 2."""
        message = re.sub(r"^argument ([^/:]*)[^:]*: Got ", r"Got \1 ", message)
        if not message.startswith("Got "):
            message = (
                f"Got a command that cannot be run ({message}), expected its options as --help lists them: correct it."
            )
        self.exit(2, f"error: {message}\n")


def sentence_of(error: BaseException) -> str | None:
    """Return the sentence "Got ..., expected ...: ..." of an error that is meant for the user; None for any other error."""
    found = re.search(r"(?:^|\s)(Got .*\bexpected .*)", str(error), re.DOTALL)
    if found is None and is_full_disk(error):
        return f"Got a full disk ({error}), expected room to write: free some space and start the same command again."
    return found.group(1).strip() if found else None


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a program. A mistake of its user ends it with one sentence and a code above 0 in place of a traceback."""
    try:
        code = main()
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        sys.exit(f"error: {mask_credentials(sentence)}")
    sys.exit(code)
