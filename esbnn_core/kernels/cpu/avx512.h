// What both AVX-512 paths share (included inside namespace esbnn::ISA).
static inline unsigned not_negative(const Floats &y) {
  return _mm512_cmp_ps_mask(__m512(y.of[0]), _mm512_setzero_ps(), _CMP_GE_OQ);
}
