// SPDX-License-Identifier: GPL-2.0
#include "decide.h"

#include <math.h>
#include <string.h>

/* A process that does not fit is placed there only if it fits nowhere. */
#define NO_ROOM 1e4f
/* Among equally fast nodes the emptier one. */
#define TIE 1e-4f
#define LN2 0.693147f
/* Nodes at a time: arrays that stay in the first cache, loops that become vector code. */
#define BLOCK 256

/* The CPU's own vectors where they are wider than everybody's */
#define VECTORISED \
	__attribute__((optimize("O3", "no-trapping-math", "no-math-errno"), target_clones("avx2", "default")))

static inline float delay(float running, float cores, float pace)
{
	float crowd = running / cores;

	return (crowd > 1 ? crowd : 1) * pace;
}

/* Keeps out[0..*used) sorted, smallest value first. */
static void keep(struct mx_choice *out, int *used, int count, struct mx_choice choice)
{
	int at = *used < count ? (*used)++ : count - 1;

	for (; at > 0 && choice.value < out[at - 1].value; at--)
		out[at] = out[at - 1];
	out[at] = choice;
}

/* What must be undercut to be kept */
static inline float worst(const struct mx_choice *out, int used, int count)
{
	return used < count ? INFINITY : out[count - 1].value;
}

static inline float call_time(const struct mx_nodes *nodes, long i, const struct mx_rules *rules)
{
	return nodes->call_s ? nodes->call_s[i] : rules->call_s;
}

/*
 * out = factor * 2^x to four digits, in loops that become vector code.  Differences of it are
 * used: it is one function, so going there and back costs exactly nothing.
 */
VECTORISED
static void powers_of_two(const float *x, float factor, float *out, int size)
{
	int32_t bits[BLOCK];
	float scale[BLOCK], whole;

	for (int j = 0; j < size; j++) {
		float in = x[j] < -100 ? -100 : x[j];

		in = in > 30 ? 30 : in;
		/* rounds down, since the sum is positive */
		bits[j] = (int32_t)(in + 128) - 128;
		whole = (float)bits[j];
		in -= whole;
		out[j] = factor * (1 + in * (0.695502f + in * (0.226073f + in * 0.078425f)));
		bits[j] = (bits[j] + 127) << 23;
	}
	memcpy(scale, bits, sizeof(scale[0]) * size);
	for (int j = 0; j < size; j++)
		out[j] *= scale[j];
}

/* Cost of the memory of a node with so much free */
static float memory_cost(const struct mx_rules *rules, float free_mb, float steep)
{
	float x = -free_mb * steep, cost;

	powers_of_two(&x, rules->memory, &cost, 1);
	return cost;
}

/* What a process pays for being away, for a CPU second */
static inline float abroad(const struct mx_nodes *nodes, long i, const struct mx_process *process,
			   const struct mx_rules *rules)
{
	return i == process->home ? 0 : process->calls * call_time(nodes, i, rules) + process->transfer_s;
}

static inline void add_calls(const struct mx_nodes *nodes, long start, int size, const struct mx_process *process,
			     const struct mx_rules *rules, float factor, float *value)
{
	float calls = process->calls * factor, transfer = process->transfer_s * factor;
	long home = process->home - start;

	if (nodes->call_s)
		for (int j = 0; j < size; j++)
			value[j] += calls * nodes->call_s[start + j] + transfer;
	else
		for (int j = 0; j < size; j++)
			value[j] += calls * rules->call_s + transfer;
	if (home >= 0 && home < size)
		value[home] -= calls * call_time(nodes, process->home, rules) + transfer;
}

VECTORISED
int mx_place(const struct mx_nodes *nodes, const struct mx_process *process, const struct mx_rules *rules,
	     struct mx_choice *out, int count)
{
	float value[BLOCK], price[BLOCK], need = process->need_mb;
	int used = 0;

	for (long start = 0; start < nodes->n; start += BLOCK) {
		int size = nodes->n - start < BLOCK ? nodes->n - start : BLOCK;
		const float *running = nodes->running + start, *cores = nodes->cores + start;
		const float *pace = nodes->pace + start, *free_mb = nodes->free_mb + start;
		const float *steep = nodes->steep + start;
		float least = INFINITY, bound;

		for (int j = 0; j < size; j++)
			value[j] = -free_mb[j] * steep[j];
		/* the derivative: nobody is displaced yet */
		powers_of_two(value, rules->memory * need * LN2, price, size);
		for (int j = 0; j < size; j++) {
			float crowd = (running[j] + 1) / cores[j];
			float with = (crowd > 1 ? crowd : 1) * pace[j];
			float full = need > free_mb[j] ? NO_ROOM * (1 + running[j]) : 0;

			value[j] = with + TIE * crowd * pace[j] + price[j] * steep[j] + full;
		}
		if (rules->social != 0)
			for (int j = 0; j < size; j++)
				value[j] += rules->social * running[j] *
					    (delay(running[j] + 1, cores[j], pace[j]) -
					     delay(running[j], cores[j], pace[j]));
		if (process->calls != 0 || process->transfer_s != 0)
			add_calls(nodes, start, size, process, rules, 1, value);
		if (nodes->usable)
			for (int j = 0; j < size; j++)
				value[j] = nodes->usable[start + j] ? value[j] : INFINITY;
		for (int j = 0; j < size; j++)
			least = value[j] < least ? value[j] : least;
		bound = worst(out, used, count);
		for (int j = 0; least < bound && j < size; j++)
			if (value[j] < bound) {
				keep(out, &used, count, (struct mx_choice){ (int32_t)(start + j), 0, value[j] });
				bound = worst(out, used, count);
			}
	}
	return used;
}

VECTORISED
int mx_moves(const struct mx_nodes *nodes, int32_t here, float slow, const struct mx_process *processes,
	     int process_count, const struct mx_rules *rules, struct mx_choice *out, int count)
{
	float k = nodes->running[here], cores = nodes->cores[here], pace = nodes->pace[here];
	float now = delay(k, cores, pace) * slow, without = delay(k - 1, cores, pace);
	float relief = now + (k - 1) * (now - without);
	float cost[BLOCK], own[BLOCK], gain[BLOCK], memory[BLOCK], full[BLOCK];
	float here_steep = nodes->steep[here], here_free = nodes->free_mb[here];
	float here_memory = memory_cost(rules, here_free, here_steep);
	int32_t who[BLOCK];
	int used = 0;

	for (long start = 0; start < nodes->n; start += BLOCK) {
		int size = nodes->n - start < BLOCK ? nodes->n - start : BLOCK;
		const float *running = nodes->running + start, *free_mb = nodes->free_mb + start;
		const float *steep = nodes->steep + start;

		for (int j = 0; j < size; j++)
			own[j] = -free_mb[j] * steep[j];
		powers_of_two(own, rules->memory, memory, size);
		for (int j = 0; j < size; j++) {
			float c = nodes->cores[start + j], s = nodes->pace[start + j];
			float there = delay(running[j] + 1, c, s);

			cost[j] = there + running[j] * (there - delay(running[j], c, s));
			gain[j] = 0;
			who[j] = -1;
		}
		if (nodes->usable)
			for (int j = 0; j < size; j++)
				cost[j] = nodes->usable[start + j] ? cost[j] : INFINITY;
		if (here >= start && here < start + size)
			cost[here - start] = INFINITY;
		for (int p = 0; p < process_count; p++) {
			const struct mx_process *one = &processes[p];
			float age = one->age_s > rules->least_age_s ? one->age_s : rules->least_age_s;
			float need = one->need_mb, fixed = rules->move_factor * one->move_s + age * rules->margin * now;
			float without_it = memory_cost(rules, here_free + need, here_steep);
			float stay = relief + here_memory - without_it + abroad(nodes, here, one, rules);

			for (int j = 0; j < size; j++)
				own[j] = (need - free_mb[j]) * steep[j];
			powers_of_two(own, rules->memory, full, size);
			for (int j = 0; j < size; j++)
				own[j] = stay - cost[j] + memory[j] - full[j];
			if (one->calls != 0 || one->transfer_s != 0)
				add_calls(nodes, start, size, one, rules, -1, own);
			for (int j = 0; j < size; j++)
				own[j] = need > free_mb[j] ? 0 : age * own[j] - fixed;
			for (int j = 0; j < size; j++)
				who[j] = own[j] > gain[j] ? p : who[j];
			for (int j = 0; j < size; j++)
				gain[j] = own[j] > gain[j] ? own[j] : gain[j];
		}
		for (int j = 0; j < size; j++)
			if (who[j] >= 0 && -gain[j] < worst(out, used, count))
				keep(out, &used, count, (struct mx_choice){ (int32_t)(start + j), who[j], -gain[j] });
	}
	for (int at = 0; at < used; at++)
		out[at].value = -out[at].value;
	return used;
}
