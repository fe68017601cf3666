// Which instruction sets this machine has, and lists of the paths that are made for them.
#pragma once

#include <cstring>

struct Machine {
  bool avx2 = false;        // with F16C and FMA, as every processor with AVX2 has them
  bool avxvnni = false;     // and avx2
  bool avx512 = false;      // F, BW, VL, DQ, and avx2
  bool avx512vnni = false;  // and avx512
  bool avx512bf16 = false;  // and avx512
  bool neon = false;        // any 64-bit ARM
  bool dotprod = false;     // and neon
};

const Machine &machine();

// The paths of an operation that this machine can run, best first.
template <typename Path>
struct PathList {
  static constexpr int kMost = 6;
  const Path *path[kMost];
  int count = 0;
  char names[96] = "";

  // make: null where the compiler cannot make it. What the machine cannot run must not even be asked for.
  void add(const Path *(*make)(), bool runs) {
    const Path *candidate = runs ? make() : nullptr;
    if (candidate == nullptr) return;
    if (count > 0) std::strcat(names, ",");
    std::strcat(names, candidate->name);
    path[count++] = candidate;
  }
};
