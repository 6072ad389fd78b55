// SPDX-License-Identifier: GPL-2.0
/*
 * mosix.ko: parks the system calls that an eBPF program wants redirected, and hands them to user
 * space through /dev/mosix.  docs/kernel.md says why it exists and how it is used.
 */
#include <linux/miscdevice.h>
#include <linux/module.h>

#include "mosix.h"

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "mosix",
	.fops = &mosix_fops,
	.mode = 0600,
};

static int __init mosix_init(void)
{
	int error = mosix_proc_init();

	if (error)
		return error;
	error = misc_register(&device);
	if (error)
		mosix_proc_exit();
	return error;
}

static void __exit mosix_exit(void)
{
	misc_deregister(&device);
	mosix_hooks_exit();
	mosix_proc_exit();
}

module_init(mosix_init);
module_exit(mosix_exit);
MODULE_DESCRIPTION("Redirection of system calls for migrated processes");
MODULE_LICENSE("GPL");
MODULE_VERSION(MOSIX_VERSION);
