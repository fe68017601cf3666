// libowl_cpu in a program of its own, for sanitizers and emulators: buffers of exactly the sizes that are
// promised, every instruction set of the machine, pools of several sizes used and closed from several threads.
// Prints a number made of all results, which is the same on every machine; ends with 1 where bits differ.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
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

int32_t paths_in(const char *names) {
  int32_t count = 1;
  for (; *names != '\0'; ++names) count += *names == ',';
  return count;
}

void all_paths(uint64_t *hash) {
  const int32_t count = paths_in(owl_linear_paths());
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
        for (int32_t path = 0; path < paths_in(owl_linear_paths()); ++path) {
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

// A prompt of one sequence, in a cache of exactly its blocks: whole, and its last row as a decode step.
struct Prompt {
  static constexpr int64_t kBlock = 8;
  int64_t length, kv_heads, group, width, type, cache_type, blocks;
  std::vector<int32_t> table, bounds, lengths;
  std::vector<int64_t> slots, positions;
  Buffer qkv, cos, sin, key, value, key_scale, value_scale, turned, out;

  static int64_t bytes(int64_t type) { return type == 0 ? 4 : type == 1 ? 2 : 1; }

  Prompt(int64_t length_, int64_t kv_heads_, int64_t group_, int64_t width_, int64_t type_, int64_t cache_type_)
      : length(length_), kv_heads(kv_heads_), group(group_), width(width_), type(type_), cache_type(cache_type_),
        blocks((length + kBlock - 1) / kBlock), bounds{0, static_cast<int32_t>(length)},
        lengths{static_cast<int32_t>(length)}, qkv(length * row() * bytes(type)),
        cos(length * width / 2 * bytes(type)), sin(length * width / 2 * bytes(type)),
        key(places() * width * bytes(cache_type)), value(places() * width * bytes(cache_type)),
        key_scale(places() * 4), value_scale(places() * 4), turned(result_bytes()), out(result_bytes()) {
    Random random;
    for (Buffer *one : {&qkv, &cos, &sin}) {
      const int64_t count = one == &qkv ? length * row() : length * width / 2;
      for (int64_t i = 0; i < count; ++i) put(one, i, (static_cast<float>(random.next() % 2001) - 1000.0f) / 500.0f);
    }
    for (int64_t b = 0; b < blocks; ++b) table.push_back(static_cast<int32_t>(blocks - 1 - b));
    for (int64_t i = 0; i < length; ++i) {
      positions.push_back(i);
      slots.push_back(table[static_cast<size_t>(i / kBlock)] * kBlock + i % kBlock);
    }
  }

  int64_t row() const { return (group + 2) * kv_heads * width; }
  int64_t places() const { return blocks * kBlock * kv_heads; }
  int64_t result_bytes() const { return length * group * kv_heads * width * bytes(type); }

  void put(Buffer *to, int64_t i, float value_) const {
    uint32_t bits;
    std::memcpy(&bits, &value_, sizeof bits);
    const uint16_t half = static_cast<uint16_t>(bits >> 16);
    if (type == 0) std::memcpy(to->data + 4 * i, &bits, 4);
    else std::memcpy(to->data + 2 * i, &half, 2);
  }

  owl_attention_task task(int64_t first) const {
    owl_attention_task all = {};
    const int64_t heads = group * kv_heads, from = first * row();
    all.type = type, all.rows = length - first, all.sequences = 1, all.heads = heads, all.kv_heads = kv_heads;
    all.width = width;
    all.query = qkv.data + from * bytes(type);
    all.key = qkv.data + (from + heads * width) * bytes(type);
    all.value = qkv.data + (from + (heads + kv_heads) * width) * bytes(type);
    all.query_row = all.key_row = all.value_row = row();
    all.query_head = all.key_head = all.value_head = width;
    all.out = turned.data;
    all.bounds = bounds.data();
    all.cos = cos.data, all.sin = sin.data, all.angles = length, all.positions = positions.data() + first;
    all.cache_type = cache_type, all.key_cache = key.data, all.value_cache = value.data;
    if (cache_type == 2) {
      all.key_scale = reinterpret_cast<float *>(key_scale.data);
      all.value_scale = reinterpret_cast<float *>(value_scale.data);
    }
    all.block_size = kBlock, all.slots = slots.data() + first, all.tables = table.data();
    const bool by_heads = length % 2 == 0;
    all.cache_row = by_heads ? 1 : kv_heads, all.cache_head = by_heads ? kBlock : 1;
    all.lengths = lengths.data();
    return all;
  }

  std::vector<float> values() const {
    std::vector<float> all;
    for (int64_t i = 0; i < result_bytes() / bytes(type); ++i) {
      uint32_t bits = 0;
      std::memcpy(reinterpret_cast<uint8_t *>(&bits) + (type == 1 ? 2 : 0), out.data + i * bytes(type),
                  static_cast<size_t>(bytes(type)));
      float value_;
      std::memcpy(&value_, &bits, sizeof value_);
      all.push_back(value_);
    }
    return all;
  }

  bool run(owl_pool *pool, int32_t path) {
    owl_attention_task whole = task(0);
    owl_rotary_append(pool, &whole, path);
    whole.query = turned.data;
    whole.query_row = group * kv_heads * width;
    whole.out = out.data;
    owl_paged_attention(pool, &whole, path);
    owl_attention_task last = task(length - 1);
    const Buffer again(group * kv_heads * width * bytes(type));
    last.out = again.data;
    owl_decode_attention(pool, &last, path);
    const size_t size = static_cast<size_t>(group * kv_heads * width * bytes(type));
    return std::memcmp(again.data, out.data + result_bytes() - static_cast<int64_t>(size), size) == 0;
  }
};

bool close(const std::vector<float> &a, const std::vector<float> &b, float most) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::fabs(a[i] - b[i]) <= most * (1.0f + std::fabs(b[i])))) return false;
  }
  return true;
}

// Paths differ by rounding alone.
void attention() {
  owl_pool *pool = owl_pool_create(3);
  const int32_t count = paths_in(owl_vector_paths());
  for (const int64_t width : {2, 26, 64, 80, 256}) {
    for (const int64_t length : {1, 7, 65, 130}) {
      for (const int64_t group : {1, 3}) {
        for (int64_t kind = 0; kind < 6; ++kind) {
          Prompt one(length, 2, group, width, kind / 3, kind % 3);
          std::vector<float> expected;
          for (int32_t path = count - 1; path >= 0; --path) {
            expect(one.run(pool, path), "decode step");
            if (expected.empty()) expected = one.values();
            expect(close(one.values(), expected, kind < 3 ? 1e-4f : 3e-2f), "attention");
          }
        }
      }
    }
  }
  owl_pool_destroy(pool);
}

void pictures_and_rows() {
  owl_pool *pool = owl_pool_create(3);
  for (int32_t path = 0; path < paths_in(owl_vector_paths()); ++path) {
    for (int64_t type = 0; type < 2; ++type) {
      for (const int64_t width : {1, 15, 64, 100}) {
        const int64_t rows = 67, bytes = Prompt::bytes(type);
        const Buffer x(3 * rows * width * bytes), out(rows * width * bytes);
        std::memset(x.data, 0, static_cast<size_t>(3 * rows * width * bytes));
        const auto at = [&](int64_t row) { return x.data + row * width * bytes; };
        owl_whole_attention_task task = {type, 1, rows, 1, width, at(0), 0, width, 0, out.data, {}};
        task.part[0] = {at(rows), at(2 * rows), rows - 1, 0, width, 0, 0, width, 0};
        task.part[1] = {at(2 * rows - 1), at(3 * rows - 1), 1, 0, width, 0, 0, width, 0};
        owl_whole_attention(pool, &task, path);
        const int32_t kind = static_cast<int32_t>(type);
        owl_layer_norm(pool, kind, at(0), at(1), nullptr, out.data, rows, width, 1e-5f, path);
        owl_quick_gelu(pool, kind, at(0), at(1), out.data, rows, width, path);
        owl_swiglu(pool, kind, at(0), out.data, rows, width, path);
        const Buffer both(2 * rows * width * bytes);
        owl_swiglu_backward(pool, kind, at(0), at(2 * rows), both.data, rows, width, path);
        owl_rms_norm_backward(pool, kind, at(0), at(3 * rows - 1), at(2 * rows), out.data, rows, width, 1e-5f, path);
        for (const int64_t group : {0, 2, 32}) {
          const int64_t row = group > 0 ? (width + 1) / 2 : width, scales = group > 0 ? (width + group - 1) / group : 1;
          const Buffer q(rows * row), scale(rows * scales * 4);
          std::memset(scale.data, 0, static_cast<size_t>(rows * scales * 4));
          owl_dequantize(pool, group > 0 ? OWL_INT4 : OWL_INT8, kind, q.data, row,
                         reinterpret_cast<const float *>(scale.data), out.data, rows, width, group, path);
        }
      }
    }
    std::vector<float> x, y(1999), expected;
    for (int i = 0; i < 1999; ++i) {
      x.push_back(static_cast<float>(i - 1000) / 12.0f);
      expected.push_back(std::exp(x.back()));
    }
    owl_exp(x.data(), y.data(), 1999, path);
    for (size_t i = 0; i < y.size(); ++i) y[i] /= expected[i], expected[i] = 1.0f;
    expect(close(y, expected, 3e-7f), "exp");
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
  attention();
  pictures_and_rows();
  items_once();
  shared_pool();
  forked();
  for (int i = 0; i < 20; ++i) owl_pool_destroy(owl_pool_create(i));
  std::printf("%016llx %s\n", static_cast<unsigned long long>(hash), owl_linear_paths());
  return failures == 0 ? 0 : 1;
}
