#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# DevStack plugin. In local.conf:
#
#   enable_plugin nova-enlightened <URL of this repository>
#
# It installs the package on hosts that run n-cpu and writes its configuration.

function install_nova_enlightened {
    setup_develop "$NOVA_ENLIGHTENED_DIR"
}

function configure_nova_enlightened {
    sudo install -d -o "$STACK_USER" -m 0755 "$NOVA_ENLIGHTENED_CONF_DIR"
    # QEMU's user has to pass through to the sockets of migrations.
    sudo install -d -o "$STACK_USER" -m 0711 "$NOVA_ENLIGHTENED_RUN_DIR"
    touch "$NOVA_ENLIGHTENED_CONF"

    iniset "$NOVA_ENLIGHTENED_CONF" enlightened run_directory "$NOVA_ENLIGHTENED_RUN_DIR"
    iniset "$NOVA_ENLIGHTENED_CONF" enlightened link_address "$HOST_IP"
    iniset "$NOVA_ENLIGHTENED_CONF" enlightened link_tls "$NOVA_ENLIGHTENED_LINK_TLS"
    iniset "$NOVA_ENLIGHTENED_CONF" enlightened ordering_policy "$NOVA_ENLIGHTENED_ORDERING_POLICY"

    # nova-compute starts with a copy of this file, made after this phase.
    iniset "$NOVA_CONF" libvirt live_migration_permit_post_copy True
}

function cleanup_nova_enlightened {
    sudo rm -rf "$NOVA_ENLIGHTENED_CONF_DIR" "$NOVA_ENLIGHTENED_RUN_DIR"
}

function nova_enlightened_phase {  # mode, phase
    if ! is_service_enabled n-cpu; then
        return 0
    fi
    case "$1 ${2:-}" in
        "stack install") install_nova_enlightened ;;
        "stack post-config") configure_nova_enlightened ;;
        "clean "*) cleanup_nova_enlightened ;;
    esac
}

nova_enlightened_phase "$@"
