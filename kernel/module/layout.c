// SPDX-License-Identifier: GPL-2.0
/*
 * What a process has mapped, and which of its pages hold data: found by one walk of its mappings and
 * page tables, where /proc would have text made of it.  Only for its tracer, as all about its memory.
 * What is found is gathered here and handed over when the memory is let go of: the caller's own could be
 * the same.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/huge_mm.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/pkeys.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/swapops.h>
#include <linux/uaccess.h>

#include "mosix.h"

#define BATCH 1024 /* runs, or mappings, found at once */
#define NAMES (64 << 10)

/* ---- mappings ---- */

/* The kernel's flag for each bit of mosix_vma.flags. */
static const unsigned long known_flags[] = {
	[MOSIX_VMA_RD] = VM_READ,	  [MOSIX_VMA_WR] = VM_WRITE,	    [MOSIX_VMA_EX] = VM_EXEC,
	[MOSIX_VMA_SH] = VM_SHARED,	  [MOSIX_VMA_MR] = VM_MAYREAD,	    [MOSIX_VMA_MW] = VM_MAYWRITE,
	[MOSIX_VMA_ME] = VM_MAYEXEC,	  [MOSIX_VMA_MS] = VM_MAYSHARE,	    [MOSIX_VMA_GD] = VM_GROWSDOWN,
	[MOSIX_VMA_PF] = VM_PFNMAP,	  [MOSIX_VMA_LO] = VM_LOCKED,	    [MOSIX_VMA_IO] = VM_IO,
	[MOSIX_VMA_SR] = VM_SEQ_READ,	  [MOSIX_VMA_RR] = VM_RAND_READ,    [MOSIX_VMA_DC] = VM_DONTCOPY,
	[MOSIX_VMA_DE] = VM_DONTEXPAND,	  [MOSIX_VMA_LF] = VM_LOCKONFAULT,  [MOSIX_VMA_AC] = VM_ACCOUNT,
	[MOSIX_VMA_NR] = VM_NORESERVE,	  [MOSIX_VMA_HT] = VM_HUGETLB,	    [MOSIX_VMA_SF] = VM_SYNC,
	[MOSIX_VMA_WF] = VM_WIPEONFORK,	  [MOSIX_VMA_DD] = VM_DONTDUMP,	    [MOSIX_VMA_SD] = VM_SOFTDIRTY,
	[MOSIX_VMA_MM] = VM_MIXEDMAP,	  [MOSIX_VMA_HG] = VM_HUGEPAGE,	    [MOSIX_VMA_NH] = VM_NOHUGEPAGE,
	[MOSIX_VMA_MG] = VM_MERGEABLE,	  [MOSIX_VMA_UM] = VM_UFFD_MISSING, [MOSIX_VMA_UW] = VM_UFFD_WP,
	[MOSIX_VMA_UI] = VM_UFFD_MINOR,
#ifdef VM_SHADOW_STACK
	[MOSIX_VMA_SS] = VM_SHADOW_STACK,
#endif
#ifdef VM_SEALED
	[MOSIX_VMA_SL] = VM_SEALED,
#endif
#ifdef VM_DROPPABLE
	[MOSIX_VMA_DP] = VM_DROPPABLE,
#endif
};

static u64 flags_of(const struct vm_area_struct *vma)
{
	u64 flags = 0;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(known_flags); i++) {
		if (known_flags[i] && (vma->vm_flags & known_flags[i]) == known_flags[i])
			flags |= 1ULL << i;
	}
	return flags;
}

#ifndef HAVE_VMA_IS_INITIAL
static bool vma_is_initial_heap(const struct vm_area_struct *vma)
{
	return vma->vm_start <= vma->vm_mm->brk && vma->vm_end >= vma->vm_mm->start_brk;
}

static bool vma_is_initial_stack(const struct vm_area_struct *vma)
{
	return vma->vm_start <= vma->vm_mm->start_stack && vma->vm_end >= vma->vm_mm->start_stack;
}
#endif

/* As /proc/PID/maps names it: a path, or what is put in brackets there, or nothing. */
static const char *name_of(struct vm_area_struct *vma, char *buffer, int size)
{
	const char *name = NULL;

	if (vma->vm_file) {
#ifdef HAVE_FILE_USER_PATH
		name = d_path(file_user_path(vma->vm_file), buffer, size);
#else
		name = file_path(vma->vm_file, buffer, size);
#endif
		return IS_ERR(name) ? "?" : name;
	}
	if (vma->vm_ops && vma->vm_ops->name)
		name = vma->vm_ops->name(vma);
	if (name)
		return name;
	if (vma_is_initial_heap(vma))
		return "[heap]";
	if (vma_is_initial_stack(vma))
		return "[stack]";
#ifdef CONFIG_ANON_VMA_NAME
	if (vma->anon_name) {
		scnprintf(buffer, size, "[anon:%s]", vma->anon_name->name);
		return buffer;
	}
#endif
	return "";
}

static void describe(struct mosix_vma *to, const struct vm_area_struct *vma)
{
	*to = (struct mosix_vma){
		.start = vma->vm_start,
		.end = vma->vm_end,
		.flags = flags_of(vma),
		.key = vma_pkey((struct vm_area_struct *)vma),
	};
	if (vma->vm_file) {
#ifdef HAVE_FILE_USER_PATH
		const struct inode *inode = file_user_inode(vma->vm_file);
#else
		const struct inode *inode = file_inode(vma->vm_file);
#endif

		to->offset = (u64)vma->vm_pgoff << PAGE_SHIFT;
		to->inode = inode->i_ino;
		to->major = MAJOR(inode->i_sb->s_dev);
		to->minor = MINOR(inode->i_sb->s_dev);
	}
}

/* As many as fit, from order->next on, where it says in the end how to go on. */
static int list(struct mm_struct *mm, struct mosix_vmas *order, struct mosix_vma *vmas, char *names, char *path)
{
	u32 count = 0, used = 0;
	u64 at = order->next;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	for (;;) {
		struct vm_area_struct *vma = find_vma(mm, at);
		const char *name;
		size_t size;

		at = 0;
		if (!vma)
			break;
		name = name_of(vma, path, PATH_MAX);
		size = strlen(name) + 1;
		at = vma->vm_start;
		if (count == order->count || used + size > order->names_size)
			break;
		describe(&vmas[count], vma);
		vmas[count++].name = used;
		memcpy(names + used, name, size);
		used += size;
		at = vma->vm_end;
	}
	mmap_read_unlock(mm);
	if (at && !count)
		return -ENOSPC; /* there is no room for one */
	order->next = at;
	order->count = count;
	order->names_size = used;
	return 0;
}

int mosix_layout_mappings(struct mosix_vmas *order)
{
	struct mosix_vma *vmas;
	char *names, *path;
	struct mm_struct *mm;
	int error = -ENOMEM;

	if (order->zero)
		return -EINVAL;
	order->count = min_t(u32, order->count, BATCH);
	order->names_size = min_t(u32, order->names_size, NAMES);
	vmas = kvmalloc_array(order->count, sizeof(*vmas), GFP_KERNEL_ACCOUNT);
	names = kvmalloc(order->names_size, GFP_KERNEL_ACCOUNT);
	path = kmalloc(PATH_MAX, GFP_KERNEL_ACCOUNT);
	if (!vmas || !names || !path)
		goto out;
	mm = mosix_memory_of(order->pid);
	error = PTR_ERR_OR_ZERO(mm);
	if (error)
		goto out;
	error = list(mm, order, vmas, names, path);
	mmput(mm);
	if (error)
		goto out;
	if (copy_to_user(u64_to_user_ptr(order->vmas), vmas, order->count * sizeof(*vmas)) ||
	    copy_to_user(u64_to_user_ptr(order->names), names, order->names_size))
		error = -EFAULT;
out:
	kfree(path);
	kvfree(names);
	kvfree(vmas);
	return error;
}

/* ---- pages ---- */

struct search {
	struct mm_struct *mm;
	struct vm_area_struct *vma;
	struct mosix_run *runs;
	u32 count;
	u32 room;
	bool dirty; /* only what was written since /proc/PID/clear_refs was */
};

/* False: there is no room. */
static bool add(struct search *search, u64 start, u64 size)
{
	struct mosix_run *last = search->count ? &search->runs[search->count - 1] : NULL;

	if (last && last->start + last->size == start) {
		last->size += size;
		return true;
	}
	if (search->count == search->room)
		return false;
	search->runs[search->count++] = (struct mosix_run){ start, size };
	return true;
}

static bool all_dirty(const struct search *search)
{
	return search->vma->vm_flags & VM_SOFTDIRTY;
}

/* A page has data when it is there and not the zero page, or in swap. */
static bool pte_holds(const struct search *search, pte_t pte)
{
	if (pte_none(pte) || (pte_present(pte) && is_zero_pfn(pte_pfn(pte))))
		return false;
	if (!search->dirty || all_dirty(search))
		return true;
	return pte_present(pte) ? pte_soft_dirty(pte) : pte_swp_soft_dirty(pte);
}

static bool pmd_holds(const struct search *search, pmd_t pmd)
{
	/* In anonymous memory only the huge zero page is none that its owner has written. */
	if (pmd_present(pmd) && vma_is_anonymous(search->vma) && !PageAnon(pmd_page(pmd)))
		return false;
	if (!search->dirty || all_dirty(search))
		return true;
	return pmd_present(pmd) ? pmd_soft_dirty(pmd) : pmd_swp_soft_dirty(pmd);
}

static int is_guard(pte_t pte)
{
#ifdef PTE_MARKER_GUARD
	return is_swap_pte(pte) && is_guard_swp_entry(pte_to_swp_entry(pte));
#else
	return 0;
#endif
}

/* From *at on, up to `end`, all in the page table of `pmdp`.  Stops where there is no room. */
static int look_at_ptes(struct search *search, pmd_t *pmdp, u64 *at, u64 end)
{
	pmd_t pmd = READ_ONCE(*pmdp);
	spinlock_t *lock;
	int error = 0;
	pte_t *pte;

	if (pmd_none(pmd)) {
		*at = end;
		return 0;
	}
	if (pmd_bad(pmd))
		return -EOPNOTSUPP;
	lock = pte_lockptr(search->mm, &pmd);
	spin_lock(lock);
	if (!pmd_same(pmd, READ_ONCE(*pmdp))) {
		spin_unlock(lock);
		return -EAGAIN;
	}
	for (pte = pte_offset_kernel(pmdp, *at); *at < end; pte++, *at += PAGE_SIZE) {
		pte_t entry = READ_ONCE(*pte);

		if (is_guard(entry)) {
			error = -EOPNOTSUPP;
			break;
		}
		if (pte_holds(search, entry) && !add(search, *at, PAGE_SIZE))
			break;
	}
	spin_unlock(lock);
	return error;
}

/* The same of a huge page, or of a page table: -EAGAIN, it has become the other meanwhile. */
static int look_at_pmd(struct search *search, pmd_t *pmdp, u64 *at, u64 end)
{
	spinlock_t *lock;
	bool huge;
	int error;

	lock = pmd_lock(search->mm, pmdp);
	huge = !pmd_none(*pmdp) && (!pmd_present(*pmdp) || pmd_leaf(*pmdp));
	if (huge && (!pmd_holds(search, *pmdp) || add(search, *at, end - *at)))
		*at = end;
	spin_unlock(lock);
	if (huge)
		return 0;
	/* A page table that is taken away meanwhile stays until nobody can be looking at it. */
	rcu_read_lock();
	error = look_at_ptes(search, pmdp, at, end);
	rcu_read_unlock();
	return error;
}

/* The entry for `at`; NULL: there is nothing up to *end, which otherwise is made the end of what it is for. */
static pmd_t *find_pmd(struct mm_struct *mm, u64 at, u64 *end)
{
	pgd_t *pgd = pgd_offset(mm, at);
	p4d_t *p4d;
	pud_t *pud;

	*end = min_t(u64, *end, pgd_addr_end(at, *end));
	if (pgd_none(*pgd))
		return NULL;
	if (pgd_bad(*pgd))
		return ERR_PTR(-EOPNOTSUPP);
	p4d = p4d_offset(pgd, at);
	*end = p4d_addr_end(at, *end);
	if (p4d_none(*p4d))
		return NULL;
	if (p4d_bad(*p4d))
		return ERR_PTR(-EOPNOTSUPP);
	pud = pud_offset(p4d, at);
	*end = pud_addr_end(at, *end);
	if (pud_none(*pud))
		return NULL;
	if (pud_bad(*pud)) /* of a gigabyte */
		return ERR_PTR(-EOPNOTSUPP);
	*end = pmd_addr_end(at, *end);
	return pmd_offset(pud, at);
}

/* *at is moved to where it stopped: at `end`, or where there was no room. */
static int look_at_mapping(struct search *search, u64 *at, u64 end)
{
	if (search->vma->vm_flags & (VM_HUGETLB | VM_PFNMAP))
		return -EOPNOTSUPP;
	while (*at < end) {
		u64 next = end;
		pmd_t *pmd = find_pmd(search->mm, *at, &next);
		int error = PTR_ERR_OR_ZERO(pmd);

		if (!pmd)
			*at = next;
		else if (!error)
			error = look_at_pmd(search, pmd, at, next);
		if (error == -EAGAIN)
			continue;
		if (error || *at < next)
			return error;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static int look(struct search *search, u64 *at, u64 end)
{
	int error = 0;

	if (mmap_read_lock_killable(search->mm))
		return -EINTR;
	while (*at < end && !error) {
		u64 stop;

		search->vma = find_vma(search->mm, *at);
		if (!search->vma || search->vma->vm_start >= end) {
			*at = end;
			break;
		}
		*at = max_t(u64, *at, search->vma->vm_start);
		stop = min_t(u64, end, search->vma->vm_end);
		error = look_at_mapping(search, at, stop);
		if (*at < stop)
			break;
	}
	mmap_read_unlock(search->mm);
	return error;
}

int mosix_layout_pages(struct mosix_find_pages *order)
{
	struct search search = {
		.room = min_t(u32, order->count, BATCH),
		.dirty = order->flags & MOSIX_PAGES_DIRTY,
	};
	int error;

	if (order->zero || order->flags & ~MOSIX_PAGES_DIRTY || !order->count)
		return -EINVAL;
	if ((order->start | order->end) & ~PAGE_MASK || order->start > order->end || order->end > TASK_SIZE_MAX)
		return -EINVAL;
	search.runs = kvmalloc_array(search.room, sizeof(*search.runs), GFP_KERNEL_ACCOUNT);
	if (!search.runs)
		return -ENOMEM;
	search.mm = mosix_memory_of(order->pid);
	error = PTR_ERR_OR_ZERO(search.mm);
	if (!error) {
		error = look(&search, &order->start, order->end);
		mmput(search.mm);
	}
	order->count = search.count;
	if (!error && copy_to_user(u64_to_user_ptr(order->runs), search.runs, search.count * sizeof(*search.runs)))
		error = -EFAULT;
	kvfree(search.runs);
	return error;
}
