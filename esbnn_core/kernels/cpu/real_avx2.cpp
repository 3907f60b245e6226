#define ISA real_avx2_code
#include "real.h"

const esbnn::RealKernels esbnn::real_avx2 = {
    esbnn::ISA::conv,    esbnn::ISA::pool, esbnn::ISA::extremes,
    esbnn::ISA::average, esbnn::ISA::tail, esbnn::ISA::sum};
