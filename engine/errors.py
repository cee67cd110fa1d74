"""The error that a tool prints as one line."""


class UserError(Exception):
    """Something the user can mend: the message names the thing, the place and the remedy."""
