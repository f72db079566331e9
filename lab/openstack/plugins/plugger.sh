#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Puts every tap that appears in this host on the bridge $1: what an L2 agent would do.
# A tap that has a master says so in its line; setting the same one again tells nobody.
ip -o monitor link |
    sed -un '/ master /d; s/^[0-9]*: \(tap[^:@]*\)[:@].*/\1/p' |
    while read -r tap; do
        ip link set "$tap" master "$1" up || true
    done
