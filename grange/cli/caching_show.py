"""`grange caching show`."""

from __future__ import annotations

import click

from grange.cli.opened import set_up_home
from grange.cli.table import print_fields


@click.command("show")
@click.argument("names", metavar="[PROCESS_TYPE|NAME]...", nargs=-1)
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Show what profile.toml says of caching, and what follows for processes.

    A class or function that says `caching = False` is excepted, unless it is enabled by name; so is what a
    script calls with cache=False. Blocks of a script (gr.enable_caching, gr.disable_caching) come before.

    \b
    Examples:
      grange caching show
      grange caching show my_package.jobs.Energy
    """
    from grange.core.caching import Caching, caching_of
    from grange.core.profile_file import read_profile_file

    path = set_up_home(ctx) / "profile.toml"
    rules = read_profile_file(path).caching
    if not names:
        print_fields(
            [
                ("default", "enabled" if rules.default else "disabled"),
                ("enabled", ", ".join(rules.enabled) or "nothing by name"),
                ("disabled", ", ".join(rules.disabled) or "nothing by name"),
                ("written in", f"{path}, table [caching]"),
            ]
        )
    for name in names:
        shared = caching_of(rules, name, name.rpartition(".")[2]) is Caching.SHARED
        click.echo(f"{name}: {'answered by equal ones' if shared else 'always computed'}")
