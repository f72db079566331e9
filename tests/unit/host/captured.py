# SPDX-License-Identifier: Apache-2.0
"""Text and values as real hosts gave them: Linux 6.18, libvirt 9.0 with QEMU 7.2."""

from typing import Any, Final

STAT: Final = """\
cpu  1277429 5499 147264 964885 3683 0 16268 2327 0 0
cpu0 668628 3043 74846 453122 934 0 7802 1157 0 0
cpu1 608801 2455 72417 511762 2749 0 8466 1170 0 0
intr 96143223 0 0 0 0 0 0 0 0 0
ctxt 151273943
btime 1795327911
"""
MEMINFO: Final = """\
MemTotal:       24684092 kB
MemFree:        22155144 kB
MemAvailable:   22912612 kB
Buffers:           17944 kB
Cached:           739768 kB
SwapCached:            0 kB
HugePages_Total:       0
"""
VMSTAT: Final = "nr_free_pages 5790432\npswpin 12\npswpout 3400\npgmajfault 22779\n"
PRESSURE_CPU: Final = """\
some avg10=10.34 avg60=5.42 avg300=2.48 total=3775156676
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""
PRESSURE_MEMORY: Final = """\
some avg10=0.00 avg60=0.12 avg300=0.02 total=1500000
full avg10=0.00 avg60=0.10 avg300=0.01 total=1200000
"""
SCHEDSTAT: Final = "684377829 1421583438 16006\n"
SWAPS_NONE: Final = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
SWAPS_IN_USE: Final = (
    f"{SWAPS_NONE}/dev/vda2                               partition\t8388604\t\t524288\t\t-2\n"
)
SWAPS_UNUSED: Final = (
    f"{SWAPS_NONE}/dev/vda2                               partition\t8388604\t\t0\t\t-2\n"
)
STATUS: Final = "Name:\tqemu-system-x86\nVmRSS:\t  590252 kB\nVmSwap:\t    2048 kB\nThreads:\t4\n"
CGROUP_V1: Final = """\
9:name=systemd:/
8:pids:/
3:cpuset:/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/vcpu0
1:cpu,cpuacct:/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/vcpu0
0::/
"""
CGROUP_V2: Final = "0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/vcpu0\n"
CPU_STAT_V1: Final = "nr_periods 120\nnr_throttled 7\nthrottled_time 2500000000\n"
CPU_STAT_V2: Final = """\
usage_usec 15239083049
user_usec 13483640600
system_usec 1755442448
nr_periods 120
nr_throttled 7
throttled_usec 2500000
"""
IP_ADDRESS: Final = (
    '[{},{},{"ifindex":4,"ifname":"eth1","flags":["BROADCAST","UP"],"mtu":1500,'
    '"operstate":"UP","addr_info":[{"family":"inet","local":"192.0.2.7","prefixlen":24}]}]'
)
CAPABILITIES: Final = """\
<capabilities><host><uuid>1</uuid>
<secmodel><model>apparmor</model><doi>0</doi></secmodel>
<secmodel><model>dac</model><doi>0</doi>
<baselabel type='kvm'>+64055:+108</baselabel><baselabel type='qemu'>+64055:+108</baselabel>
</secmodel></host></capabilities>"""
DOMAIN_STATISTICS: Final[dict[str, Any]] = {
    "cpu.time": 10770000000,
    "cpu.user": 8600000000,
    "cpu.system": 2170000000,
    "balloon.current": 786432,
    "balloon.maximum": 786432,
    "balloon.unused": 695892,
    "balloon.rss": 574360,
    "vcpu.current": 1,
    "vcpu.maximum": 1,
    "vcpu.0.state": 1,
    "vcpu.0.time": 8350000000,
    "vcpu.0.wait": 0,
    "vcpu.0.delay": 669063323,
}
