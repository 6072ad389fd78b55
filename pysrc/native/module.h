/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Capture by mosix.ko, through a file of /dev/mosix: what pages.h does by /proc and with copies.
 * Called by image/capture.py and image/maps.py where a node has the module; for the tracer only.
 */
#ifndef MOSIX_MODULE_H
#define MOSIX_MODULE_H

#include <stdint.h>

#include "mosix_uapi.h"
#include "pages.h"

/* cffi: begin */
/* As mx_send_pages.  -EPERM: nothing was sent, the module does not let us (not dumpable). */
int64_t mx_module_send(int device, int pid, int fd, const struct mx_range *ranges, long count);

/* Fills order's arrays with mappings of a process, and says in order->next how to go on.  0 or -errno. */
int mx_module_vmas(int device, struct mosix_vmas *order);

/* Which pages of the ranges hold data, in order, merged; with `dirty`, only those written since
 * /proc/PID/clear_refs was.  How many runs (at most max), and *at becomes the first range that is not done,
 * whose `start` and `size` are what is left of it; or -errno (-ENOTSUP: as of mx_page_scan). */
long mx_module_pages(int device, int pid, struct mx_range *ranges, long count, long *at, int dirty,
		     struct mx_range *out, long max);
/* cffi: end */

#endif
