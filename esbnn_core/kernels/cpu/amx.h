// Whether a process may use AMX: the processor has it, the operating system saves its state and permits its use.
#pragma once
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef ESBNN_X86
#include <cpuid.h>
#endif

namespace esbnn {

inline bool amx_allowed() {
#if defined(ESBNN_AMX_EMULATED)
  return true;
#elif defined(ESBNN_X86) && defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!(d >> 24 & 1) || !(d >> 25 & 1)) return false;                           // AMX-TILE, AMX-INT8
  if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c >> 27 & 1)) return false; // xgetbv may be executed
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low >> 17 & 3) != 3) return false;                 // XTILECFG, XTILEDATA
  const long request_permission = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

} // namespace esbnn
