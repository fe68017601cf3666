// One value of bf16 and back. Local to the file that includes it: the same function compiled for two
// instruction sets must never be merged into one.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

inline float widened(float value) { return value; }

inline float widened(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Round to nearest even, as torch does; NaN stays NaN (rounding its bits could turn it into infinity).
inline uint16_t narrowed(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

inline void put(float value, float *to) { *to = value; }
inline void put(float value, uint16_t *to) { *to = narrowed(value); }

}  // namespace
