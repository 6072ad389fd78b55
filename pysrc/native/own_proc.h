/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Files of /proc/PID that describe the body, which is not where the process's
 * files are opened: the redirector knows them by the path, the agent by what an
 * open has led to.  One text, because the agent cannot have pointers in its data.
 */
#ifndef MOSIX_OWN_PROC_H
#define MOSIX_OWN_PROC_H

static const char mx_own_proc[] = "maps\0smaps\0smaps_rollup\0stat\0status\0statm\0mem\0pagemap\0auxv\0numa_maps\0"
				  "map_files\0clear_refs\0syscall\0stack\0wchan\0sched\0schedstat\0timers\0"
				  "timerslack_ns\0coredump_filter\0personality\0ksm_stat\0ksm_merging_pages\0"
				  "seccomp_cache\0";

/* Is `name`, `size` bytes long, one of them? */
static inline int mx_is_own_proc(const char *name, unsigned long size)
{
	const char *p = mx_own_proc;

	while (*p) {
		unsigned long i = 0;

		while (i < size && p[i] == name[i] && p[i])
			i++;
		if (i == size && !p[i])
			return 1;
		while (*p)
			p++;
		p++;
	}
	return 0;
}

#endif
