#!/bin/sh
# The virtual environment with grange in it: make-venv.sh PYTHON FOLDER
# Debian and Ubuntu ship Python without its venv module: with root's rights it is installed, else said.
set -eu
python=$1 folder=$2
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# What a program prints is shown only when it fails.
quietly() {
    "$@" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
}

command -v "$python" >/dev/null || {
    echo "There is no program '$python'. Install Python 3.11 or newer, or name it: make install PYTHON=/path/to/python3" >&2
    exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "grange needs Python 3.11 or newer, and '$python' is $("$python" --version 2>&1)." >&2
    echo "Name another one: make install PYTHON=/path/to/python3.12" >&2
    exit 1
}
# An environment whose Python is gone, or that was begun and not finished, is made anew.
if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || {
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            echo "Installing $package ..."
            quietly apt-get update -qq
            quietly env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package"
        else
            echo "This Python cannot make virtual environments: its module venv is packaged apart. As root:" >&2
            echo "    apt-get install $package" >&2
            echo "or name a Python that has it: make install PYTHON=/path/to/python3" >&2
            exit 1
        fi
    }
    "$python" -m venv --clear "$folder"
fi
echo "Installing what grange needs into $folder (a minute or so) ..."
quietly "$folder/bin/python" -m pip install --quiet --upgrade pip "setuptools>=77"
quietly "$folder/bin/python" -m pip install --quiet --no-deps -r requirements.lock
quietly "$folder/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp deploy/checkout_finder.py "$packages/_grange_checkout_finder.py"
echo "import _grange_checkout_finder" >"$packages/grange_checkout.pth"
"$folder/bin/python" -c "import grange.core, grange.farm, grange.repository"
