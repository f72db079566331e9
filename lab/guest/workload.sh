#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Starts what lab.workload on the kernel's command line names. Commas in lab.args separate words.
# shellcheck disable=SC2086,SC2154,SC1091
. /etc/lab.env
words=$(echo "$LAB_args" | tr ',' ' ')
to="--name $LAB_name --collector $LAB_collector --port $LAB_port"
case $LAB_workload in
    scattered | heap | contiguous)
        exec /usr/lib/lab/hotpages $to --layout "$LAB_workload" $words ;;
    checksum)
        exec /usr/lib/lab/checksum $to $words ;;
    redis)
        echo 1 > /proc/sys/vm/overcommit_memory
        exec redis-server --bind 0.0.0.0 --protected-mode no --save '' --appendonly no \
            --daemonize no --enable-debug-command yes --dir /tmp --logfile /dev/console --tcp-backlog 64 $words ;;
    idle)
        exec /usr/lib/lab/heartbeat $to ;;
    *)
        echo "lab: unknown workload $LAB_workload" > /dev/console; exit 1 ;;
esac
