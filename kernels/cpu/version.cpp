#include "owl_cpu.h"

OWL_API int32_t owl_abi_version() { return OWL_ABI_VERSION; }
