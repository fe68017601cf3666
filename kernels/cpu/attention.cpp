// Attention: which rows meet which keys, and where those lie.
#include <algorithm>
#include <cmath>

#include "owl_cpu.h"
#include "pool.h"
#include "vectors.h"

namespace {

constexpr int64_t kMostRows = kTaskValues / 32;
constexpr int64_t kSizes[3] = {4, 2, 1};  // bytes of fp32, bf16, int8

inline const void *at(const void *data, int64_t offset, int64_t type) {
  return static_cast<const char *>(data) + offset * kSizes[type];
}
inline void *at(void *data, int64_t offset, int64_t type) {
  return static_cast<char *>(data) + offset * kSizes[type];
}

// Of scores: weights are powers of 2.
inline float score_factor(int64_t width) {
  return static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(width)));
}

// Fills a block up: every place can be read.
void repeat_last(KeyBlock *block, int64_t count) {
  block->count = count;
  for (int64_t i = count; i < kKeys; ++i) {
    block->place[i] = block->place[count - 1];
    block->place[kKeys + i] = block->place[kKeys + count - 1];
    block->key_factor[i] = block->value_factor[i] = 0.0f;
  }
}

// A vector of the cache.
inline int64_t place_of(const owl_attention_task &task, int64_t block, int64_t row, int64_t head) {
  return block * task.block_size * task.kv_heads + row * task.cache_row + head * task.cache_head;
}

struct PagedKeys {
  const owl_attention_task *task;
  const int32_t *table;
  int64_t head;
};

void locate_paged(const void *keys, int64_t first, int64_t count, KeyBlock *block) {
  const PagedKeys &mine = *static_cast<const PagedKeys *>(keys);
  const owl_attention_task &task = *mine.task;
  const float factor = score_factor(task.width);
  const int64_t size = kSizes[task.cache_type], next = task.cache_row * task.width * size;
  int64_t page = first / task.block_size, row = first % task.block_size;
  for (int64_t i = 0; i < count; ++page, row = 0) {
    int64_t place = place_of(task, mine.table[page], row, mine.head);
    const char *key = static_cast<const char *>(task.key_cache) + place * task.width * size;
    const char *value = static_cast<const char *>(task.value_cache) + place * task.width * size;
    const int64_t last = std::min(i + task.block_size - row, count);
    for (; i < last; ++i, place += task.cache_row, key += next, value += next) {
      block->place[i] = key;
      block->place[kKeys + i] = value;
      block->key_factor[i] = task.key_scale != nullptr ? factor * task.key_scale[place] : factor;
      block->value_factor[i] = task.value_scale != nullptr ? task.value_scale[place] : 1.0f;
    }
  }
  repeat_last(block, count);
}

// Parts of keys and values, one behind the other, of one head.
struct PlainKeys {
  struct Part {
    const void *key, *value;
    int64_t count, key_row, value_row;
  };
  Part part[3];
  int64_t type;
  float factor;
};

void locate_plain(const void *keys, int64_t first, int64_t count, KeyBlock *block) {
  const PlainKeys &mine = *static_cast<const PlainKeys *>(keys);
  const PlainKeys::Part *part = mine.part;
  for (int64_t i = 0; i < count; ++i) {
    while (first + i >= part->count) first -= part++->count;
    block->place[i] = at(part->key, (first + i) * part->key_row, mine.type);
    block->place[kKeys + i] = at(part->value, (first + i) * part->value_row, mine.type);
    block->key_factor[i] = mine.factor;
    block->value_factor[i] = 1.0f;
  }
  repeat_last(block, count);
}

constexpr int64_t kItemsPerThread = 4;  // of a decode step: so that a slow thread leaves little to wait for

// How many tasks some rows are cut into, each of them of at most kTaskValues values.
struct Cut {
  int64_t size, tasks;
  Cut(int64_t rows, int64_t width) {
    const int64_t most = kTaskValues / ((width + 31) / 32 * 32);
    tasks = (rows + most - 1) / most;
    const int64_t even = tasks > 0 ? (rows + tasks - 1) / tasks : 0, tiled = (even + 11) / 12 * 12;
    size = tiled <= most ? tiled : even;
  }
};

struct Rows {
  const void *query[kMostRows];
  void *out[kMostRows];
};

// Rows [first, last) of those of a sequence that share a head of the keys; row r is of token r / group.
void put_rows(const owl_attention_task &task, int64_t token, int64_t head, int64_t first, int64_t last, Rows *rows) {
  const int64_t group = task.heads / task.kv_heads;
  for (int64_t r = first; r < last; ++r) {
    const int64_t n = token + r / group, h = head * group + r % group;
    rows->query[r - first] = at(task.query, n * task.query_row + h * task.query_head, task.type);
    rows->out[r - first] = at(task.out, (n * task.heads + h) * task.width, task.type);
  }
}

// Every sequence's rows, causal; keys in the cache, or beside the queries.
void attend_sequences(owl_pool *pool, const owl_attention_task &task, bool paged, const Vectors &vectors) {
  const int64_t group = task.heads / task.kv_heads;
  int64_t longest = 0;
  for (int64_t b = 0; b < task.sequences; ++b) {
    const int64_t rows = task.bounds[b + 1] - task.bounds[b];
    longest = rows > longest ? rows : longest;
  }
  const int64_t most = Cut(longest * group, task.width).tasks, lanes = task.sequences * task.kv_heads;
  parallel(pool, most * lanes, [&](int64_t item) {
    const int64_t head = item % task.kv_heads, b = item % lanes / task.kv_heads;
    const int64_t token = task.bounds[b], tokens = task.bounds[b + 1] - token;
    const Cut cut(tokens * group, task.width);
    const int64_t number = most - 1 - item / lanes;  // those with the most keys first
    if (number >= cut.tasks || number * cut.size >= tokens * group) return;
    const int64_t first = number * cut.size, end = tokens * group;
    const int64_t last = std::min(first + cut.size, end);
    Rows rows;
    put_rows(task, token, head, first, last, &rows);
    const int64_t length = paged ? task.lengths[b * task.length_step] : tokens;
    AttentionTask mine = {last - first, task.width, rows.query, rows.out, group, first, length - tokens + 1, 1,
                          false, nullptr, nullptr, 0};
    if (paged) {
      const PagedKeys keys = {&task, task.tables + b * task.table_row, head};
      mine.scaled_values = task.value_scale != nullptr;
      mine.locate = locate_paged;
      mine.keys = &keys;
      vectors.attend[task.type][task.cache_type](mine);
    } else {
      const PlainKeys keys = {{{at(task.key, token * task.key_row + head * task.key_head, task.type),
                                at(task.value, token * task.value_row + head * task.value_head, task.type),
                                tokens, task.key_row, task.value_row}},
                              task.type, score_factor(task.width)};
      mine.locate = locate_plain;
      mine.keys = &keys;
      vectors.attend[task.type][task.type](mine);
    }
  });
}

// The angles of one row.
struct Rotation {
  const void *cos, *sin;
  alignas(64) uint32_t missing[kWidestHead / 2];  // NaN, in fp32 and in bf16

  Rotation(const owl_attention_task &task, int64_t row) {
    const int64_t angle = task.positions != nullptr ? task.positions[row] : row;
    if (angle >= 0 && angle < task.angles) {
      cos = at(task.cos, angle * (task.width / 2), task.type);
      sin = at(task.sin, angle * (task.width / 2), task.type);
    } else {
      for (uint32_t &bits : missing) bits = 0x7fc07fc0u;
      cos = sin = missing;
    }
  }
};

// A new key, rotated, and its value into their slot.
void append(const owl_attention_task &task, int64_t row, int64_t head, const Rotation &rotation,
            const Vectors &vectors) {
  const int64_t slot = task.slots[row];
  if (slot < 0) return;
  alignas(64) float rotated[kWidestHead];
  const int64_t place = place_of(task, slot / task.block_size, slot % task.block_size, head), type = task.cache_type;
  const void *key = at(task.key, row * task.key_row + head * task.key_head, task.type);
  const void *value = at(task.value, row * task.value_row + head * task.value_head, task.type);
  vectors.rotate[task.type](key, rotation.cos, rotation.sin, task.width, rotated);
  const Keep keep = vectors.keep[task.type][type];
  const bool scaled = task.key_scale != nullptr;
  keep(rotated, task.width, at(task.key_cache, place * task.width, type),
       scaled ? task.key_scale + place : nullptr);
  keep(value, task.width, at(task.value_cache, place * task.width, type),
       scaled ? task.value_scale + place : nullptr);
}

}  // namespace

OWL_API void owl_rotary_append(owl_pool *pool, const owl_attention_task *given, int32_t path) {
  const owl_attention_task &task = *given;
  const Vectors &vectors = vectors_of(path);
  parallel(pool, task.rows, [&](int64_t row) {
    const Rotation rotation(task, row);
    for (int64_t head = 0; head < task.heads; ++head) {
      vectors.rotate[task.type](at(task.query, row * task.query_row + head * task.query_head, task.type), rotation.cos,
                                rotation.sin, task.width,
                                at(task.out, (row * task.heads + head) * task.width, task.type));
    }
    for (int64_t head = 0; head < task.kv_heads; ++head) append(task, row, head, rotation, vectors);
  });
}

OWL_API void owl_paged_attention(owl_pool *pool, const owl_attention_task *task, int32_t path) {
  attend_sequences(pool, *task, true, vectors_of(path));
}

OWL_API void owl_packed_attention(owl_pool *pool, const owl_attention_task *task, int32_t path) {
  attend_sequences(pool, *task, false, vectors_of(path));
}

OWL_API void owl_decode_attention(owl_pool *pool, const owl_attention_task *given, int32_t path) {
  const owl_attention_task &task = *given;
  const Vectors &vectors = vectors_of(path);
  const int64_t group = task.heads / task.kv_heads, threads = pool == nullptr ? 1 : owl_pool_threads(pool);
  // Heads beside each other are one item, so that each can prefetch the next one's keys.
  const int64_t fair = task.sequences * task.kv_heads / (threads * kItemsPerThread);
  const int64_t together = fair < 1 ? 1 : std::min(fair, task.kv_heads);
  const int64_t parts = (task.kv_heads + together - 1) / together;
  const auto attend = [&](int64_t row, int64_t head) {
    const int64_t length = task.lengths[row * task.length_step];
    const Rotation rotation(task, row);
    if (length > 0) append(task, row, head, rotation, vectors);
    alignas(64) float rotated[kTaskValues];
    Rows rows;
    put_rows(task, row, head, 0, group, &rows);
    for (int64_t r = 0; r < group; ++r) {
      void *to = at(static_cast<void *>(rotated), r * task.width, task.type);
      vectors.rotate[task.type](rows.query[r], rotation.cos, rotation.sin, task.width, to);
      rows.query[r] = to;
    }
    const PagedKeys keys = {&task, task.tables + row * task.table_row, head};
    vectors.attend[task.type][task.cache_type](
        {group, task.width, rows.query, rows.out, group, 0, length, 0, task.value_scale != nullptr, locate_paged, &keys,
         head + 1 < task.kv_heads ? task.cache_head * task.width * kSizes[task.cache_type] : 0});
  };
  parallel(pool, task.sequences * parts, [&](int64_t item) {
    const int64_t first = item % parts * together, last = std::min(first + together, task.kv_heads);
    for (int64_t head = first; head < last; ++head) attend(item / parts, head);
  });
}

OWL_API void owl_whole_attention(owl_pool *pool, const owl_whole_attention_task *given, int32_t path) {
  const owl_whole_attention_task &task = *given;
  const Vectors &vectors = vectors_of(path);
  const Cut cut(task.queries, task.width);
  int64_t count = 0;
  for (const owl_key_part &part : task.part) count += part.count;
  parallel(pool, task.pictures * task.heads * cut.tasks, [&](int64_t item) {
    const int64_t number = item % cut.tasks, head = item / cut.tasks % task.heads;
    const int64_t picture = item / cut.tasks / task.heads, first = number * cut.size;
    if (first >= task.queries) return;
    const int64_t last = std::min(first + cut.size, task.queries);
    Rows rows;
    for (int64_t row = first; row < last; ++row) {
      const int64_t place = picture * task.query_picture + row * task.query_row + head * task.query_head;
      rows.query[row - first] = at(task.query, place, task.type);
      rows.out[row - first] =
          at(task.out, ((picture * task.queries + row) * task.heads + head) * task.width, task.type);
    }
    PlainKeys keys = {{}, task.type, score_factor(task.width)};
    for (int i = 0; i < 3; ++i) {
      const owl_key_part &part = task.part[i];
      keys.part[i] = {at(part.key, picture * part.key_picture + head * part.key_head, task.type),
                      at(part.value, picture * part.value_picture + head * part.value_head, task.type), part.count,
                      part.key_row, part.value_row};
    }
    vectors.attend[task.type][task.type](
        {last - first, task.width, rows.query, rows.out, 1, 0, count, 0, false, locate_plain, &keys, 0});
  });
}
