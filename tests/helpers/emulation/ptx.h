// The twin of esbnn_core/kernels/cuda/ptx.cuh for g++: the instructions as the PTX manual describes them. Matrix
// instructions take their operands apart by the documented fragment layouts, on their own and not by what the kernels
// believe.
#pragma once
#define ESBNN_PTX // the guard of the file that this one stands in for
#include "device.h"

struct Operands { u32 a[4], b[2]; };
struct Sums { int c[4]; };

// c[i] of a lane: row lane / 4, or lane / 4 + 8 for i > 1; column 2 * (lane % 4) + (i & 1)
template <class Value, int DEPTH, class Product>
void multiply(const Value (&a)[16][DEPTH], const Value (&b)[8][DEPTH], Product product, Sums *out) {
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) {
      const int row = lane / 4 + (i < 2 ? 0 : 8), column = 2 * (lane % 4) + (i & 1);
      int sum = 0;
      for (int k = 0; k < DEPTH; k++) sum += product(a[row][k], b[column][k]);
      out[lane].c[i] = sum;
    }
}

inline void add(int (&sum)[4], const Sums &more) {
  for (int i = 0; i < 4; i++) sum[i] += more.c[i];
}

// m16n8k256. Value k of row r of A: lane 4 * (r % 8) + k / 32 % 4, register r / 8 + 2 * (k / 128), bit k % 32.
// Value k of column c of B: lane 4 * c + k / 32 % 4, register k / 128, bit k % 32.
inline void mma_bits(int (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  add(sum, meet<Operands, Sums>(MMA_BITS, {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, [](const Operands *in, Sums *out) {
    u32 left[16][8], right[8][8];
    for (int r = 0; r < 16; r++)
      for (int word = 0; word < 8; word++) left[r][word] = in[4 * (r % 8) + word % 4].a[r / 8 + 2 * (word / 4)];
    for (int c = 0; c < 8; c++)
      for (int word = 0; word < 8; word++) right[c][word] = in[4 * c + word % 4].b[word / 4];
    multiply(left, right, [](u32 x, u32 y) { return __builtin_popcount(x & y); }, out);
  }));
}

// m16n8k32. Value k of row r of A: lane 4 * (r % 8) + k / 4 % 4, register r / 8 + 2 * (k / 16), byte k % 4.
// Value k of column c of B: lane 4 * c + k / 4 % 4, register k / 16, byte k % 4.
inline void mma_bytes(int (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  add(sum, meet<Operands, Sums>(MMA_BYTES, {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, [](const Operands *in, Sums *out) {
    signed char a[16][32], b[8][32];
    for (int r = 0; r < 16; r++)
      for (int word = 0; word < 8; word++) // four values at once: byte 0 is the first in memory
        std::memcpy(&a[r][4 * word], &in[4 * (r % 8) + word % 4].a[r / 8 + 2 * (word / 4)], 4);
    for (int c = 0; c < 8; c++)
      for (int word = 0; word < 8; word++) std::memcpy(&b[c][4 * word], &in[4 * c + word % 4].b[word / 4], 4);
    short left[16][32], right[8][32]; // the products of which the compiler sums eight at a time
    for (int r = 0; r < 16; r++)
      for (int k = 0; k < 32; k++) left[r][k] = a[r][k];
    for (int c = 0; c < 8; c++)
      for (int k = 0; k < 32; k++) right[c][k] = b[c][k];
    multiply(left, right, [](int x, int y) { return x * y; }, out);
  }));
}

template <int BYTES> void copy_async(void *to, const void *from, bool inside) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "");
  check_aligned(to, BYTES), check_aligned(from, BYTES);
  later(to, from, BYTES, inside);
}
inline void copies_commit() { commit_copies(); }
template <int LEFT> void copies_wait() { wait_copies(LEFT); }

template <class Words> Words read_words(const void *from) {
  check_aligned(from, sizeof(Words));
  Words words;
  std::memcpy(&words, from, sizeof(Words));
  return words;
}
template <class Words> void write_words(void *to, const Words &words) {
  check_aligned(to, sizeof(Words));
  std::memcpy(to, &words, sizeof(Words));
}

inline u32 to_half(float x) {
  const u32 bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7FFFu;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u; // 65520 and more
  if (magnitude < 0x38800000u) { // below 2^-14: a multiple of 2^-24; the scaling is exact, the rounding to even
    return sign | u32(std::nearbyint(__uint_as_float(magnitude) * 16777216.0f));
  }
  const u32 rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
  return sign | (rounded - 0x38000000u) >> 13;
}

inline u32 to_bfloat(float x) {
  const u32 bits = __float_as_uint(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;
  return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

inline u32 to_halves(float low, float high) { return to_half(low) | to_half(high) << 16; }
inline u32 to_bfloats(float low, float high) { return to_bfloat(low) | to_bfloat(high) << 16; }

inline float from_half(u32 bits) {
  const u32 exponent = bits >> 10 & 31u, fraction = bits & 0x3FFu;
  float x = std::ldexp(float(exponent ? fraction | 0x400u : fraction), int(exponent ? exponent : 1) - 25);
  if (exponent == 31) x = fraction ? NAN : INFINITY;
  return bits & 0x8000u ? -x : x;
}
