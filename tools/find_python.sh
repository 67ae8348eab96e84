#!/bin/sh
# Print a Python that can make the environment: $PYTHON if given, else the first of the names below that is 3.11 or newer
# and has venv and pip. The version the constraints were tested with comes first.
able() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
if [ -n "$PYTHON" ]; then
  able "$PYTHON" && { echo "$PYTHON"; exit 0; }
  echo "PYTHON=$PYTHON is not a Python 3.11 or newer with venv and pip" >&2; exit 1
fi
for name in python3.11 python3.12 python3.13 python3 python; do able "$name" && { echo "$name"; exit 0; }; done
echo "no Python 3.11 or newer with venv and pip found; install one (on Debian: python3 and python3-venv), or name it: make PYTHON=/path/to/python3 …" >&2
exit 1
