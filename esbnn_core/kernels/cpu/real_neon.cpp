#define ISA real_neon_code
#include "real.h"

const esbnn::RealKernels esbnn::real_neon = {
    esbnn::ISA::conv,    esbnn::ISA::pool, esbnn::ISA::extremes,
    esbnn::ISA::average, esbnn::ISA::tail, esbnn::ISA::sum};
