#!/bin/busybox sh
# The first program of the guest: it reaches the root disk and hands over to what is on it.
busybox=/bin/busybox
$busybox mount -t devtmpfs dev /dev
$busybox mount -t proc proc /proc
while read -r module; do
    $busybox insmod "/modules/$module"
done </modules/order
$busybox mount -t ext4 /dev/vda /new || exit 1
init=/sbin/vm-init
$busybox grep -qw vm.systemd /proc/cmdline && init=/sbin/init
$busybox mount --move /dev /new/dev
$busybox umount /proc
exec $busybox switch_root /new $init
