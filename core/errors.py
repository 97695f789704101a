"""What can go wrong with provenance and the engine.

GrangeError
├── InputInvalid          an input was refused; names port, value, and what was expected (fix the input)
│   ├── InputMissing      a required input was not given (fix the input)
│   └── ComputerDisabled  grange may not connect to it (enable it, or take another)
├── LinkInvalid           a link would break the rules of links (fix the input)
├── NodeImmutable         a stored node was to be changed (give up)
├── NameExists            a name is taken (fix the input)
├── NotFound              no such node, campaign, group … (fix the input)
├── InUse                 what others need was to be deleted (give up, or delete those first)
├── ProfileInvalid        profile.toml or GRANGE_HOME cannot be used (fix the input)
├── DatabaseUnavailable   PostgreSQL could not be started or reached (mend, then again)
├── DatabaseOutdated      the tables are of another version (migrate)
├── ProfileLocked         somebody maintains the profile (wait, or unlock)
├── DaemonException       the daemon cannot do what it was asked (see its log)
│   ├── DaemonNotRunningException  there is none (start it)
│   └── DaemonTimeoutException     it takes longer than it may (wait, see its log)
├── CampaignBusy          another process runs this campaign (wait)
├── RepositoryBusy        another process prunes or repacks, or writers leave no gap (wait)
└── TransitionInvalid     an event that the state of a process does not allow (a bug)
"""

from __future__ import annotations


class GrangeError(Exception):
    """Something grange was asked to do cannot be done."""


class InputInvalid(GrangeError):
    """An input was refused before anything was stored."""

    def __init__(self, port: str, value: object, expected: str) -> None:
        self.port = port
        self.value = value
        self.expected = expected
        super().__init__(f"{port}: expected {expected}, got {_shown(value)} ({type(value).__name__})")


def _shown(value: object) -> str:
    """A value as a message can show it: short, whatever its own repr does."""
    try:
        shown = repr(value)
    except Exception as error:  # a foreign __repr__, or an integer too long for Python to write out
        return f"something that cannot be shown ({type(error).__name__})"
    return shown if len(shown) <= 80 else shown[:77] + "..."


class InputMissing(InputInvalid):
    """A required input was not given."""

    def __init__(self, port: str, expected: str) -> None:
        self.port = port
        self.value = None
        self.expected = expected
        GrangeError.__init__(self, f"{port}: expected {expected}, got nothing: it is required")


class ComputerDisabled(InputInvalid):
    """A computer was to be used that somebody has disabled."""

    def __init__(self, label: str) -> None:
        self.port = "computer"
        self.value = label
        self.expected = "one that is enabled"
        GrangeError.__init__(self, f"the computer {label} is disabled: grange computer enable {label}")


class LinkInvalid(GrangeError):
    """A link would break the rules of links; nothing was stored."""


class NodeImmutable(GrangeError):
    """Stored nodes are immutable, label, description and extras excepted."""


class NameExists(GrangeError):
    """The name is taken."""


class NotFound(GrangeError):
    """There is nothing of that name or id."""


class InUse(GrangeError):
    """Something that others need cannot be deleted."""


class ProfileInvalid(GrangeError):
    """The profile cannot be used."""


class DatabaseUnavailable(GrangeError):
    """PostgreSQL could not be started or reached."""


class DatabaseOutdated(GrangeError):
    """The tables are of another version of grange."""


class ProfileLocked(GrangeError):
    """Somebody maintains the profile: nobody may work."""


class DaemonException(GrangeError):
    """The daemon cannot be started, or cannot do what it was asked."""


class DaemonNotRunningException(DaemonException):
    """There is no daemon for this profile on this host."""


class DaemonTimeoutException(DaemonException):
    """The daemon has not done in time what it was asked; it may do it yet."""


class CampaignBusy(GrangeError):
    """The campaign is being run by another process."""


class RepositoryBusy(GrangeError):
    """The repository cannot be pruned or repacked now, because of what others do; what was done is done."""


class TransitionInvalid(GrangeError):
    """The state of a process does not allow that event."""
