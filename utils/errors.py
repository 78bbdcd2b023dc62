"""The one exception for trouble that the user can do something about."""


class CourseError(RuntimeError):
    """Something on this machine stands in the way; the message says what, and what to do about it."""
