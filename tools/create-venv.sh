#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Make an empty virtual environment at $1 with the first Python on PATH that is 3.11 or later.
# $PYTHON, where set, is the only candidate.
set -euo pipefail

candidates=(python3 python3.13 python3.12 python3.11 /usr/bin/python3)
if [[ -n ${PYTHON:-} ]]; then
    candidates=("$PYTHON")
fi
for python in "${candidates[@]}"; do
    if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
    then
        exec "$python" -m venv --clear "$1"
    fi
done
echo "No Python 3.11 or later with the venv module among: ${candidates[*]}" >&2
exit 1
