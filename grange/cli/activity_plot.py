"""The curves of a campaign over time, drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grange.cli.refused import Refused

if TYPE_CHECKING:
    from grange.core.activity import Activity


def draw(found: Activity, title: str, path: str) -> None:
    """Draw what was running above, and how many had finished and failed below, into a file.

    Errors: Refused without matplotlib, for a suffix that it does not know, and where nothing can be written.
    """
    try:
        import matplotlib

        matplotlib.use("agg")  # no window, whatever the surroundings say
        from matplotlib import dates, pyplot
    except ImportError as error:
        raise Refused("pictures of campaigns need matplotlib", "pip install 'grange[plot]'") from error
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    times = list(found.times)
    above.fill_between(times, found.running, step="pre", alpha=0.4, label="calculations")
    if any(found.workflows):
        above.step(times, found.workflows, color="C1", where="pre", label="workflows under way")
    above.set_ylabel("running")
    above.set_title(title)
    ended = [well + badly for well, badly in zip(found.finished, found.failed, strict=True)]
    below.fill_between(times, found.finished, step="post", color="C2", lw=0, label="finished")
    below.fill_between(times, found.finished, ended, step="post", color="C3", lw=0, label="failed")
    below.set_ylabel("calls that have ended")
    for axes in (above, below):
        axes.margins(y=0.2)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", frameon=False, ncols=2)
    ticks = dates.AutoDateLocator()  # type: ignore[no-untyped-call]
    below.xaxis.set_major_locator(ticks)
    below.xaxis.set_major_formatter(
        dates.ConciseDateFormatter(ticks)  # type: ignore[no-untyped-call]
    )
    try:
        figure.savefig(path)
    except (ValueError, OSError) as error:
        raise Refused(
            f"{path} cannot be written: {error}", "name a .png, .svg or .pdf where you may write"
        ) from error
    finally:
        pyplot.close(figure)
