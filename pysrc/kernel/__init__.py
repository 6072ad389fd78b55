"""The kernel tier, as user space sees it: mosix.ko's device and the eBPF program that decides."""
