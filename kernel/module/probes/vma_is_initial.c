// SPDX-License-Identifier: GPL-2.0
/* Whether the kernel itself offers to tell heap and stack. */
#include <linux/mm.h>

bool probe(struct vm_area_struct *vma);
bool probe(struct vm_area_struct *vma)
{
	return vma_is_initial_heap(vma) || vma_is_initial_stack(vma);
}
