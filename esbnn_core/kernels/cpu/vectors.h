// LANES numbers side by side, as many vectors of the instruction set as that takes (in namespace esbnn::ISA: their number
// differs). A vector type of the compiler's own with LANES numbers does not do: where the processor's are smaller, GCC
// compares and stores it number by number.
#pragma once
#include <cstring>

#include "conv.h"

namespace esbnn {
namespace ISA {

#if defined(__AVX512F__)
constexpr int PARTS = 1;
#elif defined(__AVX2__)
constexpr int PARTS = 2;
#else
constexpr int PARTS = 4;
#endif

template <typename Number> struct Vector {
  typedef Number Part __attribute__((vector_size(LANES / PARTS * sizeof(Number))));
  Part of[PARTS];
};
using Floats = Vector<float>;
using Ints = Vector<int32_t>;
using Words = Vector<uint32_t>;
using Halves = Vector<uint16_t>;

// The same bits in another type.
template <typename To, typename From> static inline To as(const From &from) {
  static_assert(sizeof(To) == sizeof(From), "types of one size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// The numbers converted one by one.
template <typename To, typename From> static inline Vector<To> convert(const Vector<From> &from) {
  Vector<To> to;
  for (int i = 0; i < PARTS; i++) to.of[i] = __builtin_convertvector(from.of[i], typename Vector<To>::Part);
  return to;
}

template <typename Number> static inline Vector<Number> load_vector(const void *from) {
  Vector<Number> to;
  for (int i = 0; i < PARTS; i++)
    std::memcpy(&to.of[i], static_cast<const char *>(from) + i * sizeof(to.of[i]), sizeof(to.of[i]));
  return to;
}

template <typename Number> static inline void store_vector(void *to, const Vector<Number> &from) {
  for (int i = 0; i < PARTS; i++)
    std::memcpy(static_cast<char *>(to) + i * sizeof(from.of[i]), &from.of[i], sizeof(from.of[i]));
}

#define ESBNN_ARITHMETIC(OP) \
  template <typename N> static inline Vector<N> operator OP(const Vector<N> &a, const Vector<N> &b) { \
    Vector<N> to; \
    for (int i = 0; i < PARTS; i++) to.of[i] = a.of[i] OP b.of[i]; \
    return to; \
  } \
  template <typename N> static inline Vector<N> operator OP(const Vector<N> &a, N b) { \
    Vector<N> to; \
    for (int i = 0; i < PARTS; i++) to.of[i] = a.of[i] OP b; \
    return to; \
  }
ESBNN_ARITHMETIC(+)
ESBNN_ARITHMETIC(-)
ESBNN_ARITHMETIC(*)
ESBNN_ARITHMETIC(&)
ESBNN_ARITHMETIC(|)
#undef ESBNN_ARITHMETIC

#define ESBNN_SHIFT(OP) \
  template <typename N> static inline Vector<N> operator OP(const Vector<N> &a, int b) { \
    Vector<N> to; \
    for (int i = 0; i < PARTS; i++) to.of[i] = a.of[i] OP b; \
    return to; \
  }
ESBNN_SHIFT(<<)
ESBNN_SHIFT(>>)
#undef ESBNN_SHIFT

// Comparisons give all bits of a number, or none.
#define ESBNN_COMPARISON(OP) \
  template <typename N> static inline Ints operator OP(const Vector<N> &a, const Vector<N> &b) { \
    Ints to; \
    for (int i = 0; i < PARTS; i++) to.of[i] = a.of[i] OP b.of[i]; \
    return to; \
  } \
  template <typename N> static inline Ints operator OP(const Vector<N> &a, N b) { \
    Ints to; \
    for (int i = 0; i < PARTS; i++) to.of[i] = a.of[i] OP b; \
    return to; \
  }
ESBNN_COMPARISON(!=)
ESBNN_COMPARISON(<)
ESBNN_COMPARISON(>=)
#undef ESBNN_COMPARISON

template <typename N> static inline Vector<N> operator~(const Vector<N> &a) {
  Vector<N> to;
  for (int i = 0; i < PARTS; i++) to.of[i] = ~a.of[i];
  return to;
}

// y where it is positive, else `other`
static inline Floats positive_or(const Floats &y, const Floats &other) {
  Floats to;
  for (int i = 0; i < PARTS; i++) to.of[i] = y.of[i] > 0 ? y.of[i] : other.of[i];
  return to;
}

} // namespace ISA
} // namespace esbnn
