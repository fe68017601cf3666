// The threads that every operation shares. Items of work are handed out one by one, so a thread that another
// process keeps from running delays its own item alone.
#pragma once

#include "owl_cpu.h"

constexpr int64_t kFewValues = 1 << 15;  // less work than this is done sooner than other threads wake up

using PoolTask = void (*)(const void *context, int64_t item);

// task(context, item) for every item in [0, items), at most 2^31 of them, in any order and on any thread;
// returns when all are done.
void pool_run(owl_pool *pool, int64_t items, PoolTask task, const void *context);

template <typename Function>
inline void parallel(owl_pool *pool, int64_t items, const Function &function) {
  const PoolTask task = [](const void *context, int64_t item) {
    (*static_cast<const Function *>(context))(item);
  };
  pool_run(pool, items, task, &function);
}
