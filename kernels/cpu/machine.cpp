#include "machine.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

Machine found() {
  Machine has;
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  has.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  const bool more = has.avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0;
  has.avxvnni = more && (a & (1u << 4)) != 0;
  has.avx512 = has.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  has.avx512vnni = has.avx512 && __builtin_cpu_supports("avx512vnni");
  has.avx512bf16 = has.avx512 && more && (a & (1u << 5)) != 0;
#elif defined(__aarch64__)
  has.neon = true;
#if defined(__linux__)
  has.dotprod = (getauxval(AT_HWCAP) & (1ul << 20)) != 0;  // HWCAP_ASIMDDP
#endif
#endif
  return has;
}

}  // namespace

const Machine &machine() {
  static const Machine has = found();
  return has;
}
