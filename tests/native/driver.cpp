// libowl_cpu in a program of its own, for sanitizers and emulators: buffers of exactly the sizes that are
// promised, every instruction set of the machine, pools of several sizes used and closed from several threads.
// Prints a number made of all results, which is the same on every machine; ends with 1 where bits differ.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "../../kernels/cpu/owl_cpu.h"
#include "../../kernels/cpu/pool.h"

namespace {

struct Random {
  uint64_t state = 1;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
};

// At a multiple of 64, and with nothing behind it.
struct Buffer {
  uint8_t *data;
  explicit Buffer(int64_t bytes) {
    void *made = nullptr;
    if (posix_memalign(&made, 64, static_cast<size_t>(bytes > 0 ? bytes : 1)) != 0) std::abort();
    data = static_cast<uint8_t *>(made);
    std::memset(data, 255, static_cast<size_t>(bytes));
  }
  Buffer(const Buffer &) = delete;
  ~Buffer() { std::free(data); }
};

struct Case {
  int64_t rows, n, k, group;
  std::vector<uint8_t> q, scale;
  std::vector<float> x;

  Case(int64_t rows_, int64_t n_, int64_t k_, int64_t group_) : rows(rows_), n(n_), k(k_), group(group_) {
    Random random;
    const int64_t width = group > 0 ? (k + group - 1) / group : 1;
    q.resize(static_cast<size_t>(n * (group > 0 ? (k + 1) / 2 : k)));
    for (uint8_t &value : q) value = static_cast<uint8_t>(random.next());
    for (int64_t i = 0; i < n * width; ++i) {
      const float full = static_cast<float>(random.next() % 1000) / 1000.0f;
      const uint16_t half = static_cast<uint16_t>(0x3000 + random.next() % 0x0fff);
      const uint8_t *from = group > 0 ? reinterpret_cast<const uint8_t *>(&half)
                                      : reinterpret_cast<const uint8_t *>(&full);
      scale.insert(scale.end(), from, from + (group > 0 ? sizeof half : sizeof full));
    }
    x.resize(static_cast<size_t>(rows * k));
    for (float &value : x) value = (static_cast<float>(random.next() % 20001) - 10000.0f) / 777.0f;
  }

  std::vector<float> run(owl_pool *pool, int32_t path) const {
    const Buffer packed(owl_quantized_bytes(n, k, group)), work(owl_quantized_workspace(rows, k, group));
    owl_quantized_pack(pool, q.data(), scale.data(), n, k, group, packed.data);
    std::vector<float> y(static_cast<size_t>(rows * n), -1.0f);
    owl_quantized_linear_f32(pool, packed.data, x.data(), y.data(), rows, n, k, group, work.data, path);
    return y;
  }
};

uint64_t hash_of(uint64_t hash, const std::vector<float> &values) {
  for (const float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    hash = (hash ^ bits) * 1099511628211u;
  }
  return hash;
}

bool same(const std::vector<float> &a, const std::vector<float> &b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), 4 * a.size()) == 0);
}

int failures = 0;

void expect(bool fine, const char *what) {
  if (fine) return;
  ++failures;
  std::fprintf(stderr, "differs: %s\n", what);
}

void all_paths(uint64_t *hash) {
  int32_t count = 1;
  for (const char *at = owl_quantized_paths(); *at != '\0'; ++at) count += *at == ',';
  owl_pool *pool = owl_pool_create(3);
  for (const int64_t group : {0, 2, 6, 32, 128, 300}) {
    for (const int64_t k : {1, 31, 128, 331}) {
      for (const int64_t n : {1, 16, 117}) {
        for (const int64_t rows : {0, 1, 2, 7, 13, 26}) {
          const Case one(rows, n, k, group);
          const std::vector<float> expected = one.run(nullptr, count - 1);
          *hash = hash_of(*hash, expected);
          for (int32_t path = 0; path < count; ++path) expect(same(one.run(pool, path), expected), "path");
        }
      }
    }
  }
  owl_pool_destroy(pool);
}

// Short runs of changing length, close behind each other: every item once, none of another run.
void items_once() {
  constexpr int kMost = 64;
  std::atomic<int> taken[kMost];
  owl_pool *pool = owl_pool_create(4);
  for (int turn = 0; turn < 20000; ++turn) {
    const int count = 2 + turn * 7 % (kMost - 2);
    for (std::atomic<int> &one : taken) one.store(0);
    parallel(pool, count, [&](int64_t item) { taken[item].fetch_add(1); });
    for (int item = 0; item < kMost; ++item) expect(taken[item].load() == (item < count), "items");
  }
  owl_pool_destroy(pool);
}

void shared_pool() {
  const Case one(13, 300, 257, 64);
  const std::vector<float> expected = one.run(nullptr, 0);
  owl_pool *pool = owl_pool_create(4);
  std::vector<std::thread> users;
  for (int i = 0; i < 3; ++i) {
    users.emplace_back([&] {
      for (int turn = 0; turn < 50; ++turn) {
        if (!same(one.run(pool, 0), expected)) std::abort();
        if (turn % 20 == 19) usleep(2000);  // long enough to fall asleep
      }
    });
  }
  for (std::thread &user : users) user.join();
  owl_pool_destroy(pool);
}

void forked() {
  const Case one(13, 300, 257, 64);
  owl_pool *pool = owl_pool_create(4);
  const std::vector<float> expected = one.run(pool, 0);
  const pid_t child = fork();
  if (child == 0) {
    const bool fine = same(one.run(pool, 0), expected);
    owl_pool_destroy(pool);
    _exit(fine ? 0 : 1);
  }
  int status = 1;
  expect(waitpid(child, &status, 0) == child && status == 0, "child");
  expect(same(one.run(pool, 0), expected), "parent");
  owl_pool_destroy(pool);
}

}  // namespace

int main() {
  uint64_t hash = 14695981039346656037u;
  all_paths(&hash);
  items_once();
  shared_pool();
  forked();
  for (int i = 0; i < 20; ++i) owl_pool_destroy(owl_pool_create(i));
  std::printf("%016llx %s\n", static_cast<unsigned long long>(hash), owl_quantized_paths());
  return failures == 0 ? 0 : 1;
}
