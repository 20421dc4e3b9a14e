"""One way to tell a user what is wrong with a request and how to put it right."""


class UsageError(ValueError):
    """A request that cannot be met: which argument, its value, why, and the remedy.

    The scripts catch this one exception and print it without a traceback, so a slip of
    the user looks different from a defect of the program.
    """

    def __init__(self, argument: str, value: object, reason: str, remedy: str):
        super().__init__(f"{argument} = {value}: {reason}. {remedy}.")
