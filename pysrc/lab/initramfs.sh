#!/bin/busybox sh
# First program of a virtual machine of the lab (see mosix.lab.vm): loads the modules that a root
# needs, mounts the host's root read-only over 9p with a memory-backed layer above it, mounts the
# directory shared with the host at /run/lab, and hands over to the program boot in there.
# Words of the kernel's command line: lab.probe (say that a guest runs here, and end),
# lab.address=A/24 (eth0), lab.control=A/24 (eth1).
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
die() {
	echo "lab: $1" >/dev/console
	echo o >/proc/sysrq-trigger
	while :; do $B sleep 1; done
}
for word in $($B cat /proc/cmdline); do
	case $word in
	lab.probe)
		echo "lab: a guest runs" >/dev/console
		echo o >/proc/sysrq-trigger
		$B sleep 60
		;;
	lab.address=*) address=${word#*=} ;;
	lab.control=*) control=${word#*=} ;;
	esac
done
for module in /mod/*.ko; do
	$B insmod "$module" || die "cannot load $module"
done
p9="trans=virtio,version=9p2000.L,msize=524288"
$B mount -t 9p -o "$p9,ro,cache=loose" root /ro || die "cannot mount the host's root"
$B mount -t tmpfs -o mode=755 memory /up
$B mkdir /up/upper /up/work
$B mount -t overlay overlay -o lowerdir=/ro,upperdir=/up/upper,workdir=/up/work /new ||
	die "cannot mount the overlay"
for kind in proc sys dev; do
	$B mount --move /$kind /new/$kind
done
$B ln -s /proc/self/fd /new/dev/fd
for number in 0:stdin 1:stdout 2:stderr; do
	$B ln -s "/proc/self/fd/${number%:*}" "/new/dev/${number#*:}"
done
$B mkdir -p /new/dev/pts /new/dev/shm /new/dev/mqueue
$B mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /new/dev/pts
$B mount -t mqueue mqueue /new/dev/mqueue
for directory in dev/shm tmp var/tmp node; do
	$B mkdir -p /new/$directory
	$B mount -t tmpfs -o mode=1777,nosuid,nodev memory /new/$directory
done
$B mount -t tmpfs -o mode=755,nosuid,nodev memory /new/run
$B mkdir -p /new/run/lab /new/run/lock
$B mount -t 9p -o "$p9,access=any" lab /new/run/lab || die "cannot mount the shared directory"
$B mount -t debugfs debugfs /new/sys/kernel/debug
$B mount -t tracefs tracefs /new/sys/kernel/tracing
$B mount -t bpf bpf /new/sys/fs/bpf
$B mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
release=$($B uname -r)
modules=/ro$($B cat /new/run/lab/modules)
$B mkdir -p "/new/lib/modules/$release"
$B mount --bind "$modules" "/new/lib/modules/$release"
# What the machine must see although it lies where its own directories hide the host's.
for path in $($B cat /new/run/lab/shown); do
	$B mkdir -p "/new$path"
	$B mount --bind "/ro$path" "/new$path"
done
$B ip link set lo up
device() { # NAME ADDRESS
	$B ip addr add "$2" dev "$1"
	$B ip link set "$1" up
}
[ -z "$address" ] || device eth0 "$address"
[ -z "$control" ] || device eth1 "$control"
exec $B switch_root /new /bin/sh /run/lab/boot
