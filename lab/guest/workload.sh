#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Starts what lab.workload on the kernel's command line names. Commas in lab.args separate words.
# shellcheck disable=SC2086,SC2154,SC1091
. /etc/lab.env
words=$(echo "$LAB_args" | tr ',' ' ')
to="--name $LAB_name --collector $LAB_collector --port $LAB_port"
if [ -n "$LAB_fragment" ]; then # free memory as fragmented as a long-lived guest's
    mkfifo /run/fragmented
    /usr/lib/lab/fragment --memory "$LAB_fragment" > /run/fragmented &
    read -r _ < /run/fragmented
fi
case $LAB_workload in
    scattered | heap | contiguous)
        exec /usr/lib/lab/hotpages $to --layout "$LAB_workload" $words ;;
    checksum)
        exec /usr/lib/lab/checksum $to $words ;;
    redis)
        echo 1 > /proc/sys/vm/overcommit_memory
        exec redis-server --bind 0.0.0.0 --protected-mode no --save '' --appendonly no \
            --daemonize no --enable-debug-command yes --dir /tmp --logfile /dev/console --tcp-backlog 64 $words ;;
    session)
        exec /usr/lib/lab/session $to $words ;;
    web)
        [ -e /var/lib/webapp ] || python3 /usr/lib/lab/webapp.py prepare
        python3 /usr/lib/lab/webapp.py serve &
        exec nginx -c /usr/lib/lab/nginx.conf ;;
    idle)
        exec /usr/lib/lab/heartbeat $to ;;
    *)
        echo "lab: unknown workload $LAB_workload" > /dev/console; exit 1 ;;
esac
