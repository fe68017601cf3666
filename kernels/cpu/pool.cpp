// One run is an epoch. Its number and the next item share one word, `ticket`: whoever raises the item by
// compare-and-swap has proved that the run whose task it read is still on. Between two runs, while the task is
// changed, the word belongs to an epoch without items. A thread that comes late has touched nothing, and nobody
// ever waits for a thread that holds no item.
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Microseconds = std::chrono::microseconds;
constexpr Microseconds kIdleSpin{20};    // a worker without work; then others may have the core
constexpr Microseconds kIdleSleep{150};  // then it sleeps: waking takes about 50 us
constexpr Microseconds kWaitSpin{50};    // the caller, for the last items, about as long as one takes
constexpr Microseconds kWaitSleep{50};   // asleep it leaves its core to a worker that another process keeps out

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Whether ready() came true while spinning and yielding.
template <typename Ready>
bool watch(const Ready &ready, Microseconds spin, Microseconds sleep) {
  for (int turn = 0; turn < 64; ++turn) {
    if (ready()) return true;
    pause();
  }
  const Clock::time_point start = Clock::now();
  for (;;) {
    for (int turn = 0; turn < 32; ++turn) {
      if (ready()) return true;
      pause();
    }
    const Clock::duration waited = Clock::now() - start;
    if (waited > sleep) return false;
    if (waited > spin) sched_yield();
  }
}

constexpr uint32_t kNoItem = 0xffffffffu;  // beyond all items

inline uint64_t ticket_of(uint32_t epoch, uint32_t item) { return static_cast<uint64_t>(epoch) << 32 | item; }
inline uint32_t epoch_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }

}  // namespace

struct owl_pool {
  alignas(64) std::atomic<uint64_t> ticket{0};  // epoch, next item
  std::atomic<PoolTask> task{nullptr};
  std::atomic<const void *> context{nullptr};
  std::atomic<int64_t> items{0};
  std::atomic<bool> stop{false};
  alignas(64) std::atomic<int64_t> finished{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> taken{false};
  std::mutex mutex;
  std::condition_variable work_came, work_done;
  std::vector<std::thread> workers;
  const pid_t owner = getpid();

  bool has_news(uint32_t seen) const { return stop.load() || epoch_of(ticket.load()) != seen; }

  void take_items(uint32_t epoch) {
    for (;;) {
      uint64_t current = ticket.load();
      const PoolTask run = task.load();
      const void *with = context.load();
      const int64_t count = items.load();
      const int64_t item = static_cast<uint32_t>(current);
      if (epoch_of(current) != epoch || item >= count) return;
      if (!ticket.compare_exchange_strong(current, current + 1)) continue;
      run(with, item);
      if (finished.fetch_add(1) + 1 == count && caller_sleeps.load()) {
        const std::lock_guard<std::mutex> lock(mutex);
        work_done.notify_one();
      }
    }
  }

  void work() {
    for (uint32_t seen = 0;;) {
      if (!watch([&] { return has_news(seen); }, kIdleSpin, kIdleSleep)) {
        std::unique_lock<std::mutex> lock(mutex);
        sleepers.fetch_add(1);
        work_came.wait(lock, [&] { return has_news(seen); });
        sleepers.fetch_sub(1);
      }
      if (stop.load()) return;
      seen = epoch_of(ticket.load());
      take_items(seen);
    }
  }

  void run(int64_t count, PoolTask new_task, const void *new_context) {
    const uint32_t between = epoch_of(ticket.load()) + 1, epoch = between + 1;
    ticket.store(ticket_of(between, kNoItem));
    finished.store(0);
    task.store(new_task);
    context.store(new_context);
    items.store(count);
    ticket.store(ticket_of(epoch, 0));
    if (sleepers.load() > 0) {
      const std::lock_guard<std::mutex> lock(mutex);
      work_came.notify_all();
    }
    take_items(epoch);
    const auto done = [&] { return finished.load() == count; };
    if (!watch(done, kWaitSpin, kWaitSleep)) {
      std::unique_lock<std::mutex> lock(mutex);
      caller_sleeps.store(true);
      work_done.wait(lock, done);
      caller_sleeps.store(false);
    }
  }

  void end() {
    stop.store(true);
    {
      const std::lock_guard<std::mutex> lock(mutex);
      work_came.notify_all();
    }
    for (std::thread &worker : workers) worker.join();
  }
};

void pool_run(owl_pool *pool, int64_t items, PoolTask task, const void *context) {
  const bool alone = pool == nullptr || items <= 1 || pool->workers.empty() || pool->owner != getpid();
  if (alone || pool->taken.exchange(true)) {
    for (int64_t item = 0; item < items; ++item) task(context, item);
    return;
  }
  pool->run(items, task, context);
  pool->taken.store(false);
}

OWL_API owl_pool *owl_pool_create(int32_t threads) {
  owl_pool *pool = new (std::nothrow) owl_pool;
  if (pool == nullptr) return nullptr;
  sigset_t all, before;  // signals belong to the program's own threads
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (int32_t i = 1; i < threads; ++i) pool->workers.emplace_back([pool] { pool->work(); });
  } catch (const std::exception &) {
    pool->end();
    delete pool;
    pool = nullptr;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return pool;
}

OWL_API int32_t owl_pool_threads(const owl_pool *pool) {
  return static_cast<int32_t>(pool->workers.size()) + 1;
}

OWL_API void owl_pool_destroy(owl_pool *pool) {
  if (pool->owner != getpid()) return;  // its threads live in the parent: nothing here can be joined
  pool->end();
  delete pool;
}
