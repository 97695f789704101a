#!/bin/sh
# The programs that the tests and examples run for real: xtb and Graphviz, from Debian's or Ubuntu's packages.
set -eu
missing=
command -v xtb >/dev/null 2>&1 || missing="$missing xtb"
command -v dot >/dev/null 2>&1 || missing="$missing graphviz"
[ -n "$missing" ] || exit 0
# Root, or a user whose sudo asks for no password (as continuous integration has).
if [ "$(id -u)" = 0 ]; then sudo=
elif sudo -n true 2>/dev/null; then sudo="sudo"
else sudo=none; fi
if [ "$sudo" != none ] && command -v apt-get >/dev/null; then
    echo "Installing$missing ..."
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    # shellcheck disable=SC2086
    if { $sudo apt-get update -qq &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing; } >"$log" 2>&1
    then exit 0; fi
    cat "$log" >&2
fi
echo "The tests need these programs:$missing. As root:" >&2
echo "    apt-get install$missing" >&2
exit 1
