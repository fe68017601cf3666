#include "paths.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "owl_cpu.h"

namespace {

constexpr int kMostPaths = 5;

struct Paths {
  Path path[kMostPaths];
  int count = 0;
  char names[64] = "";

  // Left out where the compiler could not make all of it.
  void add(const Path &candidate) {
    if (!candidate.quantized || !candidate.dense_f32 || !candidate.dense_bf16) return;
    if (count > 0) std::strcat(names, ",");
    std::strcat(names, candidate.name);
    path[count++] = candidate;
  }

  // What this machine cannot run must not even be asked for.
  Paths() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
    const unsigned seven = avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 ? a : 0;
    const bool avxvnni = (seven & (1u << 4)) != 0, bf16 = (seven & (1u << 5)) != 0;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && bf16) {
      add({"avx512_bf16", quantized_avx512(), dense_f32_avx512(), dense_bf16_avx512bf16()});
    }
    if (avx512) add({"avx512_vnni", quantized_avx512(), dense_f32_avx512(), dense_bf16_avx512()});
    if (avxvnni) add({"avx_vnni", quantized_avxvnni(), dense_f32_avx2(), dense_bf16_avx2()});
    if (avx2) add({"avx2", quantized_avx2(), dense_f32_avx2(), dense_bf16_avx2()});
#elif defined(__aarch64__) && defined(__linux__)
    if ((getauxval(AT_HWCAP) & (1ul << 20)) != 0) {  // HWCAP_ASIMDDP
      add({"neon_dotprod", quantized_neon(), dense_f32_neon(), dense_bf16_neon()});
    }
#endif
    add({"portable", quantized_portable(), dense_f32_portable(), dense_bf16_portable()});
  }
};

const Paths &paths() {
  static const Paths found;
  return found;
}

}  // namespace

const Path &path_at(int32_t place) { return paths().path[place]; }

OWL_API const char *owl_linear_paths() { return paths().names; }
