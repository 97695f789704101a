#!/bin/sh
# The programs that the tests and examples run for real: xtb and Graphviz, from Debian's or Ubuntu's packages.
set -eu
missing=
command -v xtb >/dev/null 2>&1 || missing="$missing xtb"
command -v dot >/dev/null 2>&1 || missing="$missing graphviz"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi
# shellcheck disable=SC2086
$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -qq -y --no-install-recommends $missing >/dev/null || {
    echo "The tests need these programs:$missing. Install them, then try again:" >&2
    echo "    sudo apt-get install$missing" >&2
    exit 1
}
