"""What to do about an error: one line for each kind of which the message does not say it.

Imported when there is an error, because the errors of the farm and the repository come with all of them.
"""

from __future__ import annotations

from grange.core import errors as core
from grange.farm import errors as farm
from grange.repository import errors as repository

_ADVICE: tuple[tuple[type[Exception], str], ...] = (
    (
        core.NotFound,
        "`grange process list`, `grange node list`, `grange campaign list` and `grange computer list` show "
        "what there is",
    ),
    (
        core.DatabaseUnavailable,
        "`grange status` shows where the database is; its log is postgres/server.log there",
    ),
    (core.ProfileLocked, "wait until that is over, or `grange profile unlock`"),
    (core.DaemonNotRunningException, "`grange daemon start` starts it"),
    (core.DaemonException, "`grange daemon status` and `grange daemon logs` show how it stands"),
    (core.CampaignBusy, "wait until it has ended; `grange campaign show` tells how far it is"),
    (
        repository.BlobQuarantined,
        "`grange repository heal --from BACKUP` brings it back, or compute it again with cache=False",
    ),
    (repository.BlobMissing, "the store may be incomplete: `grange repository scrub` tells what is gone"),
    (repository.BlobCorrupt, "`grange repository scrub` tells what else is damaged; a backup may have it"),
    (repository.StoreFull, "make room in the store, then do it again"),
    (repository.StoreReadOnly, "let this user write to the store, then do it again"),
    (repository.StoreUnavailable, "try again in a moment"),
    (farm.ExecutorUnavailable, "try again in a moment"),
    (farm.ComputerPaused, "`grange computer test` says what is wrong, `grange computer resume` tries again"),
    (
        farm.HostKeyRefused,
        "compare its fingerprint with what the cluster's pages say, then connect once by `ssh`, which asks",
    ),
    (farm.TransportFailed, "`grange computer test` goes through it step by step"),
    (OSError, "see that the path exists and that you may read or write it"),
)


def is_ours(error: Exception) -> bool:
    """Whether an error is one that a person can do something about, not a bug."""
    if isinstance(error, ModuleNotFoundError):
        return error.name in ("pandas", "pyarrow", "dask", "ase", "matplotlib")
    return isinstance(error, core.GrangeError | farm.FarmError | repository.RepositoryError | OSError)


def advice_on(error: Exception) -> str | None:
    """What to do about an error, or None where its message says so itself."""
    own = getattr(error, "advice", None)
    if isinstance(own, str):
        return own
    if isinstance(error, ModuleNotFoundError):
        return f"pip install {error.name}"
    said = str(error)
    return next((line for kind, line in _ADVICE if isinstance(error, kind) and line not in said), None)
