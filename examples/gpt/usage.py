"""One way to tell a user what is wrong with a request and how to put it right."""

import argparse


class UsageError(ValueError):
    """A request that cannot be met: which argument, its value, why, and the remedy.

    The scripts catch this one exception and print it without a traceback, so a slip of
    the user looks different from a defect of the program.
    """

    def __init__(self, argument: str, value: object, reason: str, remedy: str):
        super().__init__(f"{argument} = {value}: {reason}. {remedy}.")


def positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive; give 1 or more")
    return number


def changes(stored: dict, asked: dict) -> str:
    """How two configurations differ, for a message; empty if they do not."""
    return "; ".join(
        f"{key} was {stored.get(key)} and is now {asked.get(key)}"
        for key in sorted(stored.keys() | asked.keys())
        if stored.get(key) != asked.get(key)
    )
