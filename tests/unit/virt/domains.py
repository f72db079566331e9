# SPDX-License-Identifier: Apache-2.0
"""A captured domain, as a manifest has it, and one that Nova made for a server of it."""

MACHINE = "pc-i440fx-2.11"
MEMORY_KIB = 2048 * 1024

CAPTURED = f"""\
<domain type="qemu">
  <memory unit="KiB">{MEMORY_KIB}</memory>
  <currentMemory unit="KiB">{MEMORY_KIB}</currentMemory>
  <vcpu>2</vcpu>
  <os><type arch="x86_64" machine="{MACHINE}">hvm</type><boot dev="hd"/></os>
  <features><acpi/><apic/><vmcoreinfo state="on"/></features>
  <cpu mode="custom" match="exact" check="full">
    <model fallback="forbid">qemu64</model><feature policy="require" name="x2apic"/>
  </cpu>
  <clock offset="utc"/>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" cache="none" queues="2"/>
      <target dev="vda" bus="virtio"/>
      <address type="pci" domain="0x0000" bus="0x00" slot="0x04" function="0x0"/>
    </disk>
    <controller type="usb" index="0" model="piix3-uhci">
      <address type="pci" domain="0x0000" bus="0x00" slot="0x01" function="0x2"/>
    </controller>
    <controller type="pci" index="0" model="pci-root"/>
    <controller type="virtio-serial" index="0">
      <address type="pci" domain="0x0000" bus="0x00" slot="0x05" function="0x0"/>
    </controller>
    <interface type="ethernet">
      <model type="virtio"/>
      <address type="pci" domain="0x0000" bus="0x00" slot="0x03" function="0x0"/>
    </interface>
    <serial type="pty"><target type="isa-serial" port="0"/></serial>
    <channel type="unix">
      <target type="virtio" name="org.openstack.enlightened.0"/>
      <address type="virtio-serial" controller="0" bus="0" port="1"/>
    </channel>
    <input type="mouse" bus="ps2"/>
    <memballoon model="virtio">
      <stats period="10"/>
      <address type="pci" domain="0x0000" bus="0x00" slot="0x06" function="0x0"/>
    </memballoon>
    <rng model="virtio">
      <backend model="random">/dev/urandom</backend>
      <address type="pci" domain="0x0000" bus="0x00" slot="0x07" function="0x0"/>
    </rng>
  </devices>
</domain>
"""

OWN = f"""\
<domain type="qemu">
  <uuid>6b0a3c52-67a0-4f0c-9a54-8b4a7b6c1d11</uuid>
  <name>instance-00000007</name>
  <memory>{MEMORY_KIB}</memory>
  <vcpu cpuset="2-3">2</vcpu>
  <metadata><nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1"/></metadata>
  <sysinfo type="smbios"><system><entry name="uuid">6b0a3c52</entry></system></sysinfo>
  <os><type machine="pc">hvm</type><boot dev="hd"/><smbios mode="sysinfo"/></os>
  <cputune><shares>2048</shares></cputune>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" type="qcow2" cache="writeback"/>
      <source file="/var/lib/nova/instances/6b0a3c52/disk"/>
      <target bus="virtio" dev="vda"/>
    </disk>
    <interface type="bridge">
      <mac address="fa:16:3e:aa:bb:cc"/>
      <model type="e1000"/>
      <source bridge="br-int"/>
      <target dev="tap1"/>
      <mtu size="1450"/>
    </interface>
    <serial type="pty"><log file="/var/lib/nova/instances/6b0a3c52/console.log"/></serial>
    <graphics type="vnc" port="-1" listen="127.0.0.1"/>
    <channel type="unix">
      <source mode="bind"/><target type="virtio" name="org.openstack.enlightened.0"/>
    </channel>
    <rng model="virtio"><backend model="random">/dev/hwrng</backend></rng>
    <memballoon model="virtio"/>
  </devices>
</domain>
"""
