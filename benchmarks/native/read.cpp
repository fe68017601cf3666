// How fast memory can be read: several streams at once, each fetched ahead of its use.

#include <cstddef>
#include <cstdint>

namespace {

typedef std::uint64_t Line __attribute__((vector_size(64)));  // a cache line

constexpr std::size_t kStreams = 8, kAhead = 16;  // lines: 1 KB

}  // namespace

// Reads kStreams * lines cache lines from `data` (aligned to one) and returns something made of all of them.
extern "C" std::uint64_t read_lines(const void* data, std::size_t lines) {
  const Line* source = static_cast<const Line*>(data);
  Line sums[kStreams] = {};
  for (std::size_t i = 0; i < lines; ++i) {
    for (std::size_t s = 0; s < kStreams; ++s) {
      const Line* line = source + s * lines + i;
      __builtin_prefetch(line + kAhead);  // behind the end as well: a prefetch never faults
      sums[s] ^= *line;
    }
  }
  Line all = {};
  for (const Line& sum : sums) all ^= sum;
  return all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
}
