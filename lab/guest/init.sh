#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
#
# First program of a lab guest. The root volume is one read-only file that every guest of
# every host shares, so that a live migration has no disk to copy: writes go to RAM. With
# lab.disk=rw it is the guest's own, and written. What changes often (programs, agent, units)
# comes with this initial RAM disk, in /lab/files.
# shellcheck shell=dash disable=SC2086,SC2154,SC1091,SC2187,SC2013,SC2046
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
if grep -q lab.probe /proc/cmdline; then # lab/acceleration.py
    echo "lab: a guest runs here" > /dev/console
    reboot -f
fi
for module in $(cat /lab/modules); do
    insmod "/lab/$module" || echo "lab: $module did not load"
done

value() { # of lab.$1 on the kernel's command line
    tr ' ' '\n' < /proc/cmdline | sed -n "s/^lab\.$1=//p"
}

# Nova gives every server the same command line: what is a server's own then comes from its
# firmware (the UUID) and its card (the address ends like the MAC; see lab/openstack/places.py).
name=$(value name)
name=${name:-$(cut -c1-15 /sys/class/dmi/id/product_uuid)}
address=$(value address)
if [ -z "$address" ]; then
    set -- $(tr : ' ' < /sys/class/net/eth0/address)
    address=10.78.$((128 + 0x$5 % 128)).$((0x$6))/16
fi

ip link set lo up
ip addr add "$address" dev eth0
ip link set eth0 up

mkdir -p /lower /writes /newroot
if [ "$(value disk)" = rw ]; then # a disk of its own: an appliance's
    mount -t ext4 -o rw,noatime /dev/vda /newroot || exec sh
else
    mount -t ext4 -o ro,noload /dev/vda /lower || exec sh
    mount -t tmpfs -o size=25% writes /writes
    mkdir -p /writes/upper /writes/work
    mount -t overlay -o lowerdir=/lower,upperdir=/writes/upper,workdir=/writes/work root /newroot
fi
cp -a /lab/files/. /newroot/
echo "$name" > /newroot/etc/hostname
tr ' ' '\n' < /proc/cmdline | sed -n 's/^lab\.\([a-z]*\)=/LAB_\1=/p' > /newroot/etc/lab.env
echo "LAB_name=$name" >> /newroot/etc/lab.env
umount /proc /sys
mount --move /dev /newroot/dev
exec switch_root /newroot /sbin/init
