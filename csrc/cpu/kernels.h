// Everything of one instruction set.
#pragma once

#include "vec.h"
#include "exp.h"
#include "softmax.h"
#include "cross_entropy_short.h"
#include "activations.h"
#include "elements.h"
#include "product.h"
#include "optim.h"
#include "convert.h"

namespace tilegrad::cpu {

#define TG_TABLE_(name) name##_kernels
#define TG_TABLE(name) TG_TABLE_(name)
#define TG_NAME_(name) #name
#define TG_NAME(name) TG_NAME_(name)

extern const Kernels TG_TABLE(TG_ISA);
const Kernels TG_TABLE(TG_ISA) = {
    TG_NAME(TG_ISA),
    TG_ISA::softmax,
    TG_ISA::softmax_backward,
    TG_ISA::cross_entropy,
    TG_ISA::cross_entropy_backward,
    TG_ISA::epilogue,
    TG_ISA::epilogue_backward,
    TG_ISA::product,
    TG_ISA::scale,
    TG_ISA::convert,
    TG_ISA::sgd,
    TG_ISA::adam,
};

}  // namespace tilegrad::cpu
