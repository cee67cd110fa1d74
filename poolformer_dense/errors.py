"""The error that a tool prints as one line."""


class UserError(Exception):
    """Something the user can fix: the message names the thing, the place and the remedy."""


class RankError(UserError):
    """A UserError of one process alone: of a run of several, that process prints it."""
