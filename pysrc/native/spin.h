/* SPDX-License-Identifier: GPL-2.0 */
/* A fixed amount of work, by which the speed of a processor is measured. */
#ifndef MOSIX_SPIN_H
#define MOSIX_SPIN_H

#include <stdint.h>

/* cffi: begin */

/* CPU time of this thread, in nanoseconds, for `rounds` of work that nothing can leave out. */
uint64_t mx_spin(uint64_t rounds);

/* cffi: end */

#endif
