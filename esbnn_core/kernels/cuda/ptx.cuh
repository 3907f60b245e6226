// What the kernels use below CUDA C++: matrix instructions, asynchronous copies and conversions, and
// short names of types. NVRTC compiles this file without any header. tests/helpers/emulation holds a twin for g++.
#ifndef ESBNN_PTX
#define ESBNN_PTX

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

// sum += popcount(a & b) over 256 bits. A thread (quarter t = lane % 4, row g = lane / 4) holds of A words t and t + 4
// of rows g (a[0], a[2]) and g + 8 (a[1], a[3]), of B words t and t + 4 of column g, of the sums columns 2t and 2t + 1
// of rows g (sum[0], sum[1]) and g + 8. Which bits "word t" means is free as long as A and B agree.
__device__ __forceinline__ void mma_bits(int (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
               "{%0,%1,%2,%3};\n"
               : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// sum += a * b over 32 signed bytes, four to a register, in the same places.
__device__ __forceinline__ void mma_bytes(int (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
               : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// BYTES (4, 8 or 16) from global to shared memory, or zeros where `inside` is false: then nothing is read at `from`.
template <int BYTES> __device__ __forceinline__ void copy_async(void *to, const void *from, bool inside) {
  const u32 place = static_cast<u32>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(place), "l"(from), "n"(BYTES),
               "r"(inside ? BYTES : 0)
               : "memory");
}

__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Wait until at most LEFT of the committed groups are in flight.
template <int LEFT> __device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(LEFT) : "memory");
}

// Two floats to two halves or bfloat16s, rounded to nearest even; `low` in the lower 16 bits.
__device__ __forceinline__ u32 to_halves(float low, float high) {
  u32 both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

__device__ __forceinline__ u32 to_bfloats(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// Words side by side at an address that is aligned to all of them.
template <class Words> __device__ __forceinline__ Words read_words(const void *from) {
  return *static_cast<const Words *>(from);
}
template <class Words> __device__ __forceinline__ void write_words(void *to, const Words &words) {
  *static_cast<Words *>(to) = words;
}

__device__ __forceinline__ float from_half(u32 bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(x) : "h"(static_cast<u16>(bits)));
  return x;
}

#endif
