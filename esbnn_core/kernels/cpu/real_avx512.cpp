#define ISA real_avx512_code
#include "real.h"

const esbnn::RealKernels esbnn::real_avx512 = {
    esbnn::ISA::conv,    esbnn::ISA::pool, esbnn::ISA::extremes,
    esbnn::ISA::average, esbnn::ISA::tail, esbnn::ISA::sum};
