#define TG_ISA avx2
#define TG_BYTES 32
#include "kernels.h"
