#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# DevStack plugin. In local.conf:
#
#   enable_plugin nova-enlightened <URL of this repository>
#
# Compute hosts get the driver and an agent, nova-scheduler its filter and weigher, and the host of
# nova-api a remediator. What can be set is in the file "settings".

# DevStack's other projects are installed like this too, so all are in one environment: Nova's API
# finds the extra specs, its scheduler the filter.
function install_nova_enlightened {
    if is_service_enabled n-cpu && [[ "$VIRT_DRIVER" != "libvirt" ]]; then
        die $LINENO "nova-enlightened needs VIRT_DRIVER=libvirt, not $VIRT_DRIVER"
    fi
    setup_develop "$NOVA_ENLIGHTENED_DIR"
}

# The bus that compute hosts report on: their cell's, where cells have their own.
function _nova_enlightened_vhost {
    if [[ "$CELLSV2_SETUP" == "superconductor" ]]; then
        echo "nova_cell$NOVA_CPU_CELL"
    fi
}

# The name of this host's compute service, which its certificate carries.
function _nova_enlightened_host {
    local name
    name=$(iniget "$NOVA_CONF" DEFAULT host)
    echo "${name:-$(hostname)}"
}

# One file for all services of this project on this host, made anew like Nova's.
function configure_nova_enlightened {
    sudo install -d -o "$STACK_USER" -m 0755 "$NOVA_ENLIGHTENED_CONF_DIR"
    rm -f "$NOVA_ENLIGHTENED_CONF"
    install -m 0640 /dev/null "$NOVA_ENLIGHTENED_CONF"

    iniset "$NOVA_ENLIGHTENED_CONF" DEFAULT debug "$ENABLE_DEBUG_LOG_LEVEL"
    iniset_rpc_backend nova "$NOVA_ENLIGHTENED_CONF" DEFAULT "$(_nova_enlightened_vhost)"

    if is_service_enabled n-cpu; then
        configure_nova_enlightened_compute
    fi
    if is_service_enabled n-sch && [[ "$NOVA_ENLIGHTENED_SCHEDULING" == "True" ]]; then
        configure_nova_enlightened_scheduler
    fi
    if is_service_enabled nova-enlightened-remediator; then
        configure_nova_enlightened_remediator
    fi
}

function configure_nova_enlightened_compute {
    local conf=$NOVA_ENLIGHTENED_CONF host
    host=$(_nova_enlightened_host)

    iniset "$conf" enlightened default_policy "$NOVA_ENLIGHTENED_DEFAULT_POLICY"
    iniset "$conf" enlightened ordering_policy "$NOVA_ENLIGHTENED_ORDERING_POLICY"
    iniset "$conf" enlightened run_directory "$NOVA_ENLIGHTENED_RUN_DIR"
    iniset "$conf" enlightened link_address "$NOVA_ENLIGHTENED_LINK_ADDRESS"
    iniset "$conf" enlightened link_tls "$NOVA_ENLIGHTENED_LINK_TLS"
    iniset "$conf" enlightened_agent host "$host"
    if [[ -n "$NOVA_ENLIGHTENED_STORES" ]]; then
        iniset "$conf" enlightened_streaming stores "$NOVA_ENLIGHTENED_STORES"
        iniset "$conf" enlightened_streaming cache_directory "$NOVA_ENLIGHTENED_STATE_DIR/chunks"
        iniset "$conf" enlightened_streaming cache_limit "$NOVA_ENLIGHTENED_CACHE_LIMIT"
    fi
    if [[ "$NOVA_ENLIGHTENED_LINK_TLS" != "off" ]]; then
        make_nova_enlightened_certificates "$host"
        iniset "$conf" enlightened link_tls_ca "$NOVA_ENLIGHTENED_TLS_DIR/ca.pem"
        iniset "$conf" enlightened link_tls_certificate "$NOVA_ENLIGHTENED_TLS_DIR/$host.pem"
        iniset "$conf" enlightened link_tls_key "$NOVA_ENLIGHTENED_TLS_DIR/$host.key"
    fi

    # nova-compute starts with a copy of Nova's file, made after this phase.
    iniset "$NOVA_CONF" DEFAULT compute_driver enlightened.EnlightenedLibvirtDriver
    iniset "$NOVA_CONF" libvirt live_migration_permit_post_copy True

    replace_nova_enlightened_compute
    configure_nova_enlightened_system
}

function make_nova_enlightened_certificates {  # host
    sudo install -d -o "$STACK_USER" -m 0755 "$NOVA_ENLIGHTENED_TLS_DIR"
    if [[ -e "$NOVA_ENLIGHTENED_TLS_DIR/ca.pem" && ! -e "$NOVA_ENLIGHTENED_TLS_DIR/ca.key" ]]; then
        return 0
    fi
    "$PYTHON" "$NOVA_ENLIGHTENED_DIR/lab/ca.py" \
        "$NOVA_ENLIGHTENED_TLS_DIR" "$1" "$NOVA_ENLIGHTENED_LINK_ADDRESS"
}

# Nova loads drivers from its own package only, and is installed as editable: the service n-cpu runs
# our command, which takes the same arguments. DevStack reads units anew before it starts it.
function replace_nova_enlightened_compute {
    local command=$NOVA_BIN_DIR/nova-enlightened-compute
    sudo install -d -m 0755 "$SYSTEMD_DIR/devstack@n-cpu.service.d"
    sudo tee "$SYSTEMD_DIR/devstack@n-cpu.service.d/nova-enlightened.conf" > /dev/null <<UNIT
[Service]
ExecStart=
ExecStart=$command --config-file $NOVA_CPU_CONF --config-file $NOVA_ENLIGHTENED_CONF
UNIT
}

function _nova_enlightened_apparmor_rule {
    echo "$NOVA_ENLIGHTENED_RUN_DIR/*.sock rw,"
}

# QEMU waits for pages, and makes its socket in the run directory, which the agent makes.
function configure_nova_enlightened_system {
    local rule
    rule=$(_nova_enlightened_apparmor_rule)
    if [[ -n "$NOVA_ENLIGHTENED_SYSCTL" ]]; then
        echo "vm.unprivileged_userfaultfd = 1" | sudo tee "$NOVA_ENLIGHTENED_SYSCTL" > /dev/null
        # Kernels without it allow it to everybody.
        sudo sysctl --quiet --ignore --load="$NOVA_ENLIGHTENED_SYSCTL"
    fi
    if [[ -n "$NOVA_ENLIGHTENED_APPARMOR" && -d "${NOVA_ENLIGHTENED_APPARMOR%/*}" ]] \
        && ! sudo grep -qsxF "$rule" "$NOVA_ENLIGHTENED_APPARMOR"; then
        echo "$rule" | sudo tee -a "$NOVA_ENLIGHTENED_APPARMOR" > /dev/null
    fi
}

# Adds to what Nova's file and other plugins have there.
function configure_nova_enlightened_scheduler {
    local package=nova_enlightened.scheduler filters available weighers urls="" cell
    filters=$(iniget "$NOVA_CONF" filter_scheduler enabled_filters)
    if [[ ",$filters," != *,ContentionFilter,* ]]; then
        iniset "$NOVA_CONF" filter_scheduler enabled_filters \
            "${filters:-$NOVA_FILTERS},ContentionFilter"
    fi
    available=$(iniget_multiline "$NOVA_CONF" filter_scheduler available_filters)
    if [[ "$available" != *"$package"* ]]; then
        # One word each.
        # shellcheck disable=SC2086
        iniset_multiline "$NOVA_CONF" filter_scheduler available_filters \
            ${available:-nova.scheduler.filters.all_filters} "$package.filters.ContentionFilter"
    fi
    weighers=$(iniget "$NOVA_CONF" filter_scheduler weight_classes)
    if [[ "$weighers" != *"$package"* ]]; then
        iniset "$NOVA_CONF" filter_scheduler weight_classes \
            "${weighers:-nova.scheduler.weights.all_weighers},$package.weights.ContentionWeigher"
    fi
    if [[ "$CELLSV2_SETUP" == "superconductor" ]]; then
        for cell in $(seq 1 "$NOVA_NUM_CELLS"); do
            urls+=" $(get_transport_url "nova_cell$cell")"
        done
        # shellcheck disable=SC2086
        iniset_multiline "$NOVA_CONF" enlightened_scheduler transport_url $urls
    fi
}

function configure_nova_enlightened_remediator {
    local conf=$NOVA_ENLIGHTENED_CONF group=enlightened_remediation
    sudo install -d -o "$STACK_USER" -m 0750 "$NOVA_ENLIGHTENED_STATE_DIR"
    configure_keystoneauth "$conf" nova "$group"
    iniset "$conf" "$group" cafile "$SSL_BUNDLE_FILE"
    iniset "$conf" "$group" region_name "$REGION_NAME"
    iniset "$conf" "$group" mode "$NOVA_ENLIGHTENED_MODE"
    iniset "$conf" "$group" state_path "$NOVA_ENLIGHTENED_STATE_DIR"
}

# run_process starts what is enabled on this host only; its units have KillMode=process, so relays
# survive their agent.
function start_nova_enlightened {
    # Nova's file of this host has the group [placement].
    run_process nova-enlightened-agent \
        "$NOVA_BIN_DIR/nova-enlightened-agent --config-file $NOVA_CPU_CONF --config-file $NOVA_ENLIGHTENED_CONF" \
        "" root
    run_process nova-enlightened-remediator \
        "$NOVA_BIN_DIR/nova-enlightened-remediator --config-file $NOVA_ENLIGHTENED_CONF"
}

# A stack that is made without this plugin afterwards starts nova-compute itself again.
function stop_nova_enlightened {
    stop_process nova-enlightened-remediator
    stop_process nova-enlightened-agent
    sudo rm -rf "$SYSTEMD_DIR/devstack@n-cpu.service.d/nova-enlightened.conf"
}

function cleanup_nova_enlightened {
    stop_nova_enlightened
    if [[ -n "$NOVA_ENLIGHTENED_SYSCTL" ]]; then
        sudo rm -f "$NOVA_ENLIGHTENED_SYSCTL"
    fi
    if [[ -n "$NOVA_ENLIGHTENED_APPARMOR" && -e "$NOVA_ENLIGHTENED_APPARMOR" ]]; then
        sudo sed -i "\|^$(_nova_enlightened_apparmor_rule | sed 's/[*.]/\\&/g')\$|d" \
            "$NOVA_ENLIGHTENED_APPARMOR"
    fi
    sudo rm -rf "$NOVA_ENLIGHTENED_CONF_DIR" "$NOVA_ENLIGHTENED_RUN_DIR" \
        "$NOVA_ENLIGHTENED_STATE_DIR"
}

function nova_enlightened_phase {  # mode, phase
    if ! is_service_enabled n-cpu n-sch n-api; then
        return 0
    fi
    case "$1 ${2:-}" in
        "stack install")
            echo_summary "Installing nova-enlightened"
            install_nova_enlightened
            ;;
        "stack post-config")
            echo_summary "Configuring nova-enlightened"
            configure_nova_enlightened
            ;;
        "stack extra")
            echo_summary "Starting nova-enlightened"
            start_nova_enlightened
            ;;
        "unstack "*) stop_nova_enlightened ;;
        "clean "*) cleanup_nova_enlightened ;;
    esac
}

nova_enlightened_phase "$@"
