#!/bin/sh
# A virtual environment with pip and setuptools: make-venv.sh PYTHON FOLDER
# Debian and Ubuntu ship Python without its venv module: with root's rights it is installed, else said.
set -eu
python=$1 folder=$2
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "grange needs Python 3.11 or newer, and '$python' is $("$python" --version 2>&1)." >&2
    echo "Name another one: make install PYTHON=/path/to/python3.12" >&2
    exit 1
}
if [ -x "$folder/bin/python" ] && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    :
else
    "$python" -c 'import ensurepip' 2>/dev/null || {
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        if [ "$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi
        $sudo apt-get update -qq && $sudo apt-get install -qq -y --no-install-recommends "python$version-venv" || {
            echo "This Python has no venv module. Install it, then try again:" >&2
            echo "    sudo apt-get install python$version-venv" >&2
            exit 1
        }
    }
    "$python" -m venv "$folder"
fi
"$folder/bin/python" -m pip install --quiet --upgrade pip "setuptools>=77"
