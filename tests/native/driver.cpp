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

  int32_t form() const { return group > 0 ? OWL_INT4 : OWL_INT8; }

  std::vector<float> run(owl_pool *pool, int32_t path) const {
    const Buffer packed(owl_quantized_bytes(form(), n, k, group));
    owl_quantized_pack(pool, form(), q.data(), scale.data(), n, k, group, packed.data);
    std::vector<float> y(static_cast<size_t>(rows * n), -1.0f);
    owl_linear_task task = {};
    task.x = x.data();
    task.weight = packed.data;
    task.y = y.data();
    task.rows = rows;
    task.n = n;
    task.k = k;
    task.group = group;
    task.type = OWL_F32;
    task.form = form();
    task.path = path;
    const Buffer work(owl_linear_workspace(&task));
    owl_linear(pool, &task, work.data);
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

int32_t path_count() {
  int32_t count = 1;
  for (const char *at = owl_linear_paths(); *at != '\0'; ++at) count += *at == ',';
  return count;
}

void all_paths(uint64_t *hash) {
  const int32_t count = path_count();
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

// A layer with all there can be around it, on memory of exactly the sizes that are promised.
struct Layer {
  int64_t rows, n, k, rank, size;  // size of a number
  Case quantized;
  Buffer x, weight, norm, bias, residual, lora_a, lora_b, lora_scale, owner, packed, narrow;

  Layer(int64_t rows_, int64_t n_, int64_t k_, int64_t rank_, int32_t type)
      : rows(rows_), n(n_), k(k_), rank(rank_), size(type == OWL_F32 ? 4 : 2), quantized(0, n, k, 32),
        x(rows * k * size), weight(n * k * size), norm(k * size), bias(n * size), residual(rows * n * size),
        lora_a(3 * rank * k * size), lora_b(3 * n * rank * size), lora_scale(3 * rank * 4), owner(rows * 4),
        packed(owl_quantized_bytes(OWL_INT4, n, k, 32)), narrow(owl_quantized_bytes(OWL_INT4_NARROW, n, k, 32)) {
    Random random;
    const auto fill = [&](const Buffer &buffer, int64_t count, int64_t bytes) {
      for (int64_t i = 0; i < count; ++i) {
        const float value = (static_cast<float>(random.next() % 2001) - 1000.0f) / 777.0f;
        uint8_t wide[4];  // the upper half of an fp32 is a bf16
        std::memcpy(wide, &value, 4);
        std::memcpy(buffer.data + i * bytes, wide + (4 - bytes), static_cast<size_t>(bytes));
      }
    };
    fill(x, rows * k, size);
    fill(weight, n * k, size);
    fill(norm, k, size);
    fill(bias, n, size);
    fill(residual, rows * n, size);
    fill(lora_a, 3 * rank * k, size);
    fill(lora_b, 3 * n * rank, size);
    fill(lora_scale, 3 * rank, 4);
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t adapter = row % 7 < 3 ? 1 : static_cast<int32_t>(random.next() % 4) - 1;
      std::memcpy(owner.data + 4 * row, &adapter, 4);
    }
    for (size_t i = 0; i < quantized.scale.size(); i += 2) quantized.scale[i] &= 0x80u;  // to fit a byte
    const uint8_t *q = quantized.q.data(), *scale = quantized.scale.data();
    owl_quantized_pack(nullptr, OWL_INT4, q, scale, n, k, 32, packed.data);
    owl_quantized_pack(nullptr, OWL_INT4_NARROW, q, scale, n, k, 32, narrow.data);
  }

  // Rows first, ... of the results, in y.
  void run(owl_pool *pool, int64_t first, int64_t count, int32_t type, int32_t form, int32_t activation,
           int32_t path, uint8_t *y) const {
    const int64_t results = activation == OWL_SWIGLU ? n / 2 : n;
    owl_linear_task task = {};
    task.x = x.data + first * k * size;
    task.weight = form == OWL_DENSE ? weight.data : form == OWL_INT4 ? packed.data : narrow.data;
    task.norm = norm.data;
    task.bias = bias.data;
    task.residual = residual.data + first * results * size;
    task.lora_a = lora_a.data;
    task.lora_b = lora_b.data;
    task.lora_scale = reinterpret_cast<const float *>(lora_scale.data);
    task.owner = reinterpret_cast<const int32_t *>(owner.data) + first;
    task.y = y;
    task.rows = count;
    task.n = n;
    task.k = k;
    task.group = form == OWL_DENSE ? 0 : 32;
    task.rank = rank;
    task.type = type;
    task.form = form;
    task.activation = activation;
    task.path = path;
    task.eps = 1e-5f;
    const Buffer work(owl_linear_workspace(&task));
    owl_linear(pool, &task, work.data);
  }
};

void rows_alone_and_together() {
  owl_pool *pool = owl_pool_create(3);
  for (const int32_t type : {OWL_F32, OWL_BF16}) {
    for (const int64_t k : {1, 33, 1100}) {
      for (const int64_t n : {2, 34}) {
        const Layer layer(51, n, k, 5, type);
        for (int32_t path = 0; path < path_count(); ++path) {
          for (const int32_t form : {OWL_DENSE, OWL_INT4}) {
            for (const int32_t activation : {OWL_NONE, OWL_SWIGLU, OWL_QUICK_GELU}) {
              const int64_t bytes = (activation == OWL_SWIGLU ? n / 2 : n) * layer.size;
              const Buffer together(layer.rows * bytes), alone(bytes);
              layer.run(pool, 0, layer.rows, type, form, activation, path, together.data);
              if (form == OWL_INT4) {
                const Buffer other(layer.rows * bytes);
                layer.run(pool, 0, layer.rows, type, OWL_INT4_NARROW, activation, path, other.data);
                const size_t size = static_cast<size_t>(layer.rows * bytes);
                expect(std::memcmp(other.data, together.data, size) == 0, "narrow");
              }
              for (int64_t row = 0; row < layer.rows; ++row) {
                layer.run(nullptr, row, 1, type, form, activation, path, alone.data);
                const uint8_t *same = together.data + row * bytes;
                expect(std::memcmp(same, alone.data, static_cast<size_t>(bytes)) == 0, "row");
              }
            }
          }
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
  rows_alone_and_together();
  items_once();
  shared_pool();
  forked();
  for (int i = 0; i < 20; ++i) owl_pool_destroy(owl_pool_create(i));
  std::printf("%016llx %s\n", static_cast<unsigned long long>(hash), owl_linear_paths());
  return failures == 0 ? 0 : 1;
}
