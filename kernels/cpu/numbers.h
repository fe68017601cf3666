// Number formats as bit patterns, the same on every machine. Local to the file that includes it: a function
// compiled for two instruction sets must never be merged into one.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

inline float widen(float value) { return value; }

inline float widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline void put(float value, float *to) { *to = value; }

// Round to nearest even, as torch does; NaN stays NaN (rounding its bits could turn it into infinity).
inline void put(float value, uint16_t *to) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *to = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

}  // namespace
