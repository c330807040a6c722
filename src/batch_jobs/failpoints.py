"""Named places at which a test may make the process die, stop or fail; elsewhere they do nothing.

Nothing but code can arm them: no setting or variable of the environment, so no deployment can.
"""

from __future__ import annotations

from collections.abc import Callable

_act: Callable[[str], None] | None = None


def failpoint(name: str) -> None:
    """Tell the armed action, if there is one, that this place was reached."""
    if _act is not None:
        _act(name)


def arm(act: Callable[[str], None] | None) -> None:
    """Call `act` with the name of every place reached from now on; None disarms."""
    global _act  # noqa: PLW0603 - one for the process, as the process is what dies
    _act = act
