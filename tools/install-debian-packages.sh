#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Install the Debian packages of the named profiles (see bindep.txt), if any is missing.
#
#   tools/install-debian-packages.sh build lab
#
# Touches nothing, not even the package lists, when everything is there. Uses the package
# sources this machine already has, as root or through sudo.
set -euo pipefail

top=$(dirname "$(dirname "$(realpath "$0")")")

packages_of() {  # profile...
    local wanted=" $* " name profile
    while read -r name profile _; do
        case $name in "" | \#*) continue ;; esac
        profile=${profile#[}
        profile=${profile%]}
        if [[ $wanted == *" $profile "* ]]; then
            echo "$name"
        fi
    done < "$top/bindep.txt"
}

is_installed() {
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

if [[ $# -eq 0 ]]; then
    echo "usage: $0 PROFILE..." >&2
    exit 2
fi

missing=()
for package in $(packages_of "$@"); do
    is_installed "$package" || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
    exit 0
fi

as_root=()
if [[ $EUID -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
        echo "These Debian packages are missing and need root to install: ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
if ! command -v apt-get >/dev/null; then
    echo "Not a Debian system; install the equivalents of: ${missing[*]}" >&2
    exit 1
fi

# Packages start their services when they are installed, unless this file says no.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

echo "Installing Debian packages: ${missing[*]}"
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "${missing[@]}"
