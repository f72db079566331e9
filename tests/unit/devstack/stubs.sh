#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What DevStack brings, as it does it (functions-common, inc/ini-config, lib/keystone,
# lib/rpc_backend). What would touch the system only says so.

function define_plugin { :; }
function echo_summary { :; }
function die { echo "${*:2}" >&2; exit 1; }
function is_service_enabled {
    local service
    for service in "$@"; do [[ ",$ENABLED_SERVICES," == *",$service,"* ]] && return 0; done
    return 1
}
function enable_service {
    if [[ ",$DISABLED_SERVICES," != *",$1,"* ]] && ! is_service_enabled "$1"; then
        ENABLED_SERVICES+=",$1"
    fi
}
function setup_develop { echo "setup_develop $1"; }
function run_process {
    if is_service_enabled "$1"; then echo "run $1: $2 (group '${3:-}', user '${4:-}')"; fi
}
function stop_process { if is_service_enabled "$1"; then echo "stop $1"; fi; }
function iniset_multiline {
    local file=$1 section=$2 option=$3 value before=""
    shift 3
    touch "$file"
    grep -qxF "[$section]" "$file" || printf '[%s]\n' "$section" >> "$file"
    sed -i "/^\[$section\]/,/^\[/ { /^$option = /d }" "$file"
    for value in "$@"; do before="$value"$'\n'"$before"; done
    while IFS= read -r value; do
        sed -i "/^\[$section\]/a $option = $value" "$file"
    done <<< "${before%$'\n'}"
}
function iniset { iniset_multiline "$1" "$2" "$3" "$4"; }
function iniget { if [[ -e $1 ]]; then sed -n "/^\[$2\]/,/^\[/ s/^$3 = //p" "$1"; fi; }
function iniget_multiline { iniget "$@" | tr '\n' ' '; }
function get_transport_url { echo "rabbit://stackrabbit:secret@192.0.2.10:5672/$1"; }
function iniset_rpc_backend { iniset "$2" "$3" transport_url "$(get_transport_url "$4")"; }
function configure_keystoneauth {
    iniset "$1" "$3" auth_type password
    iniset "$1" "$3" interface public
    iniset "$1" "$3" username "$2"
}
function hostname { echo compute1; }
function sysctl { echo "sysctl $*"; }
function sudo { "$@"; }
