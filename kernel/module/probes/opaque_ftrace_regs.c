// SPDX-License-Identifier: GPL-2.0
/* Whether what lies in struct ftrace_regs is asked for by arch_ftrace_regs(). */
#include <linux/ftrace.h>

struct pt_regs *probe(struct ftrace_regs *fregs);
struct pt_regs *probe(struct ftrace_regs *fregs)
{
	return &arch_ftrace_regs(fregs)->regs;
}
